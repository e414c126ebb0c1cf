"""A client that fails costs its own reply: the round, the aggregate and the others go on."""

import contextlib
import json
import math

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

from federation.figures import weighted_mean
from federation.records import to_arrays, to_bytes, to_tensors, unpack
from federation.run_directory import RunDirectory
from federation.strategies import ALGORITHMS, Facts
from graphcl.errors import FederationError

# Under which every client trains; scfsgl is about forecasts alone.
ALL = sorted(set(ALGORITHMS) - {"pooled", "scfsgl"})
PERSONAL = [name for name in ALL if ALGORITHMS[name].exchange.personal]
FACTS = Facts({1: 0, 2: 1, 3: 2, 4: 3}, channels={"in-channels": 5}, num_classes=3)
KEY = ("train", 2, 1)  # who misbehaves, and when


def replace(record: str, name: str, change):
    """Change one array of a reply."""

    def tamper(content):
        tensors = to_tensors(content.array_records[record])
        content[record] = to_arrays(tensors | {name: change(tensors[name])})

    return tamper


def metric(**changed):
    """Change metrics of a reply."""

    def tamper(content):
        changes = {name.replace("_", "-"): value for name, value in changed.items()}
        content["metrics"] = MetricRecord({**content["metrics"], **changes})

    return tamper


def nan(tensor):
    return torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 1, math.nan, tensor)


def without(record: str, name: str | None = None):
    def tamper(content):
        if name is None:
            del content[record]
        elif record == "metrics":
            kept = {key: value for key, value in content[record].items() if key != name}
            content[record] = MetricRecord(kept)
        else:
            kept = {key: value for key, value in content[record].items() if key != name}
            content[record] = ArrayRecord(kept)

    return tamper


FAULTS = {
    "fedavg nan": (
        "fedavg",
        replace("arrays", "head.bias", nan),
        "'head.bias' is not finite at [1]",
    ),
    "fedavg shape": (
        "fedavg",
        replace("arrays", "head.bias", lambda t: t[:-1]),
        "shape [2], not [3]",
    ),
    "fedavg less": ("fedavg", without("arrays", "head.bias"), "another model"),
    "fedavg none": ("fedavg", without("arrays"), "got ['metrics']"),
    "fedproto nan": (
        "fedproto",
        replace("prototypes", "values", nan),
        "'values' is not finite at [0, 1]",
    ),
    "fedproto width": (
        "fedproto",
        replace("prototypes", "values", lambda t: t[:, 1:]),
        "'values' has shape",
    ),
    "feddbp fisher": ("feddbp", replace("prototypes", "fisher", lambda t: t + 1), "leaves [0, 1]"),
    "feddbp less": ("feddbp", without("prototypes", "fisher"), "expected the arrays"),
    "other partition": ("feddbp", metric(partition_id=0), "partition 1 speaks for 0"),
    "nan loss": ("local", metric(loss=math.nan), "metric 'loss' is nan"),
    "infinite support": ("fedavg", metric(num_examples=math.inf), "metric 'num-examples' is inf"),
    "endless support": ("fedavg", metric(num_examples=1e300), "'num-examples' is 1e+300, not a"),
    "negative support": ("fedavg", metric(num_examples=-4), "metric 'num-examples' is -4"),
    "list": ("local", metric(loss=[1.0, 2.0]), "metric 'loss' is"),
    "no metrics": ("fedavg", without("metrics"), "no metrics"),
    "no support": ("fedavg", without("metrics", "num-examples"), "no metrics with 'num-examples'"),
    "no loss": ("local", without("metrics", "loss"), "loss"),
}


def check_only_that_client_failed(grid, directory, lines_of, reason):
    """Client 1 failed in round 2 alone, its reason is on record, and the run reached its end."""
    failed = lines_of(directory, kind="client", status="failed")
    assert [(line["round"], line["partition"]) for line in failed] == [(2, 1)]
    assert reason in failed[0]["reason"]
    rounds = lines_of(directory, kind="round")
    assert [line["ok"] for line in rounds] == [3, 2, 3]
    assert [line["failed"] for line in rounds] == [0, 1, 0]
    assert "accuracy" in failed[0]  # it is evaluated all the same


def check_left_out(grid, name):
    """What went to the clients after round 2 comes from clients 0 and 2 alone."""
    if name in ("fedavg", "fedprox"):
        replies = [grid.replies["train", 2, c].content for c in (0, 2)]
        support = [int(reply["metrics"]["num-examples"]) for reply in replies]
        arrays = [to_tensors(reply["arrays"]) for reply in replies]
        aggregate = to_tensors(grid.sent["train", 3, 0].content["arrays"])
        for key, value in aggregate.items():
            mean = sum(n * a[key].double() for n, a in zip(support, arrays, strict=True)) / sum(
                support
            )
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
    elif name in ("fedproto", "feddbp"):  # the failed client's upload is that of round 1
        strategy = ALGORITHMS[name].strategy(grid.experiment, FACTS)
        strategy.aggregate_train(1, [grid.replies["train", 1, c] for c in range(3)])
        strategy.aggregate_train(2, [grid.replies["train", 2, c] for c in (0, 2)])
        for c in range(3):
            sent = to_tensors(grid.sent["train", 3, c].content["prototypes"])
            mine = to_tensors(strategy.table_for(c).to_arrays())
            assert torch.equal(sent["values"], mine["values"])


@pytest.fixture
def run_with(tiny, staged, tmp_path):
    """Run three rounds of an algorithm on a grid that a test prepares."""

    def run(name, prepare, folder="run", **keys):
        experiment = tiny(name, tmp_path / folder, **{"run.rounds": 3} | keys)
        grid = staged(experiment)
        prepare(grid)
        grid.serve()
        return grid

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_reply_that_must_not_count_is_dropped(run_with, tmp_path, lines_of, fault):
    name, tamper, reason = FAULTS[fault]
    grid = run_with(name, lambda grid: grid.tamper.update({KEY: tamper}))
    check_only_that_client_failed(grid, tmp_path / "run", lines_of, reason)
    check_left_out(grid, name)


@pytest.mark.parametrize("name", ALL)
def test_client_that_raises_is_dropped(run_with, in_fit, tmp_path, lines_of, name):
    def prepare(grid):
        def train_and_raise(learner, penalty, fit):
            fit(learner, penalty)
            raise ZeroDivisionError("the disk is full")

        in_fit(grid, KEY, train_and_raise)

    grid = run_with(name, prepare)
    reason = "ZeroDivisionError: the disk is full"
    check_only_that_client_failed(grid, tmp_path / "run", lines_of, reason)
    check_left_out(grid, name)


@pytest.mark.parametrize("name", ALL)
def test_client_with_a_nan_loss_is_dropped(run_with, in_fit, tmp_path, lines_of, name):
    def prepare(grid):
        def poison(learner, penalty, fit):
            return fit(learner, lambda out: {**penalty(out), "poison": out.logits.sum() * math.nan})

        in_fit(grid, KEY, poison)

    grid = run_with(name, prepare)
    check_only_that_client_failed(
        grid, tmp_path / "run", lines_of, "GraphCLError: the loss is not finite"
    )
    check_left_out(grid, name)


@pytest.mark.parametrize("name", ALL)
def test_reply_that_never_arrives_is_dropped(run_with, tmp_path, lines_of, name):
    grid = run_with(name, lambda grid: grid.lost.add(KEY), **{"run.timeout": 5.0})
    check_only_that_client_failed(grid, tmp_path / "run", lines_of, "no reply within 5 s")
    check_left_out(grid, name)


@pytest.mark.parametrize("name", PERSONAL)
def test_failed_round_leaves_the_clients_state_as_it_was(run_with, in_fit, name):
    def prepare(grid):
        def train_and_raise(learner, penalty, fit):
            fit(learner, penalty)
            raise RuntimeError

        in_fit(grid, KEY, train_and_raise)

    grid = run_with(name, prepare)
    after = {r: grid.states["train", r, 1]["after"]["learner"] for r in (1, 2, 3)}
    assert after[1] is after[2]
    assert grid.states["train", 2, 0]["before"]["learner"] is not grid.contexts[0].state["learner"]
    # Evaluation and the next round start from it too, not from the half trained model.
    reference = run_with(name, lambda grid: None, "reference", **{"run.rounds": 1})
    assert bytes_of(reference.contexts[1].state["learner"]) == bytes_of(after[2])


def bytes_of(record) -> dict[str, bytes]:
    return {name: array.data for name, array in record.items()}


@pytest.mark.parametrize("name", ["fedproto", "feddbp", "local"])
def test_training_that_ends_in_nan_does_not_reach_the_clients_state(
    run_with, in_fit, tmp_path, name
):
    """The loss of the last step is finite; the weights after it are not. The client recovers."""

    def prepare(grid):
        def ruin(learner, penalty, fit):
            terms = fit(learner, penalty)
            with torch.no_grad():
                next(learner.model.parameters()).fill_(math.nan)
            return terms

        in_fit(grid, KEY, ruin)

    grid = run_with(name, prepare)
    state = unpack(grid.contexts[1].state["learner"])
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert not grid.replies["train", 3, 1].has_error()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("extra", ["metric", "metrics", "arrays"])
def test_reply_with_more_than_was_asked_does_not_end_the_run(
    run_with, tmp_path, lines_of, name, extra
):
    """One node with a newer program must not take the federation down."""

    def add(content):
        if extra == "metric":
            content["metrics"] = MetricRecord({**content["metrics"], "temperature": 3.0})
        elif extra == "metrics":
            content["more"] = MetricRecord({"num-examples": 9})
        else:
            content["more"] = to_arrays({"w": torch.zeros(3)})

    run_with(name, lambda grid: grid.tamper.update({KEY: add}))
    assert len(lines_of(tmp_path / "run", kind="round")) == 3


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_cohort_without_a_single_sample_does_not_end_the_run(run_with, tmp_path, lines_of, name):
    faults = {("train", 2, c): metric(num_examples=0) for c in range(3)}
    run_with(name, lambda grid: grid.tamper.update(faults), **{"run.min_success": 0.0})
    assert len(lines_of(tmp_path / "run", kind="round")) == 3


def test_evaluation_that_fails_is_on_record_and_left_out(run_with, tmp_path, lines_of):
    run_with(
        "feddbp",
        lambda grid: grid.tamper.update({("evaluate", 2, 1): metric(accuracy=math.nan)}),
    )
    [line] = lines_of(tmp_path / "run", kind="client", round=2, partition=1)
    assert line["status"] == "ok"
    assert "metric 'accuracy' is nan" in line["evaluation"]
    assert "accuracy" not in line
    others = [x for x in lines_of(tmp_path / "run", kind="client", round=2) if x["partition"] != 1]
    [total] = lines_of(tmp_path / "run", kind="round", round=2)
    mean = sum(x["accuracy"] * x["test_examples"] for x in others)
    assert total["accuracy"] == pytest.approx(mean / sum(x["test_examples"] for x in others))


def test_run_without_a_single_evaluation_ends_or_says_why(run_with):
    """It must not end in an exception that names neither the run nor the clients."""
    faults = {("evaluate", r, c): metric(accuracy=math.nan) for r in (1, 2, 3) for c in range(3)}
    with contextlib.suppress(FederationError):
        run_with("fedavg", lambda grid: grid.tamper.update(faults))


@pytest.mark.parametrize("name", ALL)
def test_too_few_successes_stop_the_run_and_a_mended_one_ends_alike(
    tiny, staged, in_fit, tmp_path, summary_of, lines_of, new_process, name
):
    whole = tiny(name, tmp_path / "whole", **{"run.rounds": 4})
    staged(whole).serve()
    new_process()
    broken = tiny(name, tmp_path / "broken", **{"run.rounds": 4, "run.min_success": 0.9})
    grid = staged(broken)

    def refuse(learner, penalty, fit):
        fit(learner, penalty)
        raise MemoryError("no memory left")

    in_fit(grid, ("train", 3, 1), refuse)
    with pytest.raises(FederationError) as caught:
        grid.serve()
    message = str(caught.value)
    assert message.startswith("round 3: 2 of 3 clients succeeded, below run.min_success = 0.9")
    assert "client 1: MemoryError: no memory left" in message
    assert len(lines_of(tmp_path / "broken", round=3, status="failed")) == 1
    manifest = (tmp_path / "broken" / "checkpoint" / "manifest.json").read_text()
    assert json.loads(manifest)["round"] == 2
    new_process()
    staged(broken).serve()
    assert summary_of(tmp_path / "broken")["digest"] == summary_of(tmp_path / "whole")["digest"]
    assert RunDirectory(tmp_path / "broken").lines()[-1]["round"] == 4


def test_nobody_succeeds_and_the_run_goes_on_where_that_is_allowed(run_with, tmp_path, lines_of):
    grid = run_with(
        "fedavg",
        lambda grid: grid.lost.update({("train", 2, c) for c in range(3)}),
        **{"run.min_success": 0.0},
    )
    before = to_tensors(grid.sent["train", 2, 0].content["arrays"])
    after = to_tensors(grid.sent["train", 3, 0].content["arrays"])
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [line["ok"] for line in lines_of(tmp_path / "run", kind="round")] == [3, 0, 3]


@pytest.mark.parametrize("encoder", ["gcn", "sage", "gat", "gin", "sgc", "mlp"])
@pytest.mark.parametrize("name", ["fedavg", "feddbp"])
def test_silos_of_one_class_without_edges_or_with_one_node(
    tiny, staged, three_silos, tmp_path, lines_of, name, encoder
):
    keys = {
        "data.source": str(three_silos),
        "partition.scheme": "natural",
        "model.encoders": encoder,
    }
    grid = staged(tiny(name, tmp_path / "run", **keys))
    grid.serve()
    assert lines_of(tmp_path / "run", status="failed") == []
    lines = lines_of(tmp_path / "run", kind="client", round=2)
    assert [line["test_examples"] for line in lines][2] == 0
    assert [line["support"] for line in lines][2] == 1
    if name == "feddbp":
        held = [
            to_tensors(grid.replies["train", 2, c].content["prototypes"])["classes"]
            for c in range(3)
        ]
        assert [classes.tolist() for classes in held] == [[1], [0, 1, 2], [2]]


def test_client_without_test_nodes_is_not_the_worst_client(
    tiny, staged, three_silos, tmp_path, summary_of, lines_of
):
    """Nothing to predict is no accuracy of zero."""
    keys = {"data.source": str(three_silos), "partition.scheme": "natural", "train.epochs": 60}
    staged(tiny("local", tmp_path / "run", **keys)).serve()
    summary = summary_of(tmp_path / "run")
    best = lines_of(tmp_path / "run", kind="client", round=summary["best_round"])
    tested = [line["accuracy"] for line in best if line["test_examples"]]
    assert min(tested) > 0  # else the test shows nothing
    assert summary["worst_client_accuracy"] == min(tested)


def test_absent_clients_are_idle_and_their_uploads_stay(tiny, staged, tmp_path, lines_of):
    keys = {"strategy.fraction": 0.5, "partition.clients": 4, "run.rounds": 6}
    grid = staged(tiny("fedproto", tmp_path, **keys))
    grid.serve()
    strategy = ALGORITHMS["fedproto"].strategy(grid.experiment, FACTS)
    seen = set()
    for server_round in range(1, 7):
        cohort = {c for kind, r, c in grid.sent if (kind, r) == ("train", server_round)}
        assert len(cohort) == 2
        seen |= cohort
        idle = lines_of(tmp_path, kind="client", round=server_round, status="idle")
        assert {line["partition"] for line in idle} == set(range(4)) - cohort
        strategy.aggregate_train(
            server_round, [grid.replies["train", server_round, c] for c in sorted(cohort)]
        )
        sent = to_tensors(grid.sent["evaluate", server_round, 0].content["prototypes"])
        assert torch.equal(sent["values"], to_tensors(strategy.table.to_arrays())["values"])
    assert seen == set(range(4))
    assert set(strategy.uploads) == seen


def test_bytes_are_those_of_the_contents(tiny, staged, tmp_path, lines_of):
    grid = staged(tiny("feddbp", tmp_path))
    grid.serve()
    for line in lines_of(tmp_path, kind="client"):
        key = ("train", line["round"], line["partition"])
        assert line["bytes_down"] == len(to_bytes(grid.sent[key].content))
        assert line["bytes_up"] == len(to_bytes(grid.replies[key].content))
    for line in lines_of(tmp_path, kind="round"):
        clients = lines_of(tmp_path, kind="client", round=line["round"])
        for name in ("bytes_up", "bytes_down"):
            assert line[name] == sum(client[name] for client in clients)


def test_evaluation_comes_as_often_as_asked_and_at_the_end(tiny, staged, tmp_path, lines_of):
    staged(tiny("fedavg", tmp_path, **{"run.rounds": 5, "run.evaluate_every": 2})).serve()
    evaluated = [line["round"] for line in lines_of(tmp_path, kind="round") if "accuracy" in line]
    assert evaluated == [2, 4, 5]


def test_best_round_is_chosen_on_validation_alone(tiny, staged, tmp_path, summary_of, lines_of):
    staged(tiny("fedavg", tmp_path, **{"run.rounds": 6, "train.learning_rate": 0.1})).serve()
    rounds = lines_of(tmp_path, kind="round")
    best = max(line["val_accuracy"] for line in rounds)
    first = next(line for line in rounds if line["val_accuracy"] == best)
    summary = summary_of(tmp_path)
    assert summary["best_round"] == first["round"]
    assert summary["test_accuracy"] == first["accuracy"]
    assert summary["final_test_accuracy"] == rounds[-1]["accuracy"]


def test_means_weigh_by_samples_and_are_zero_of_nothing():
    metrics = [{"loss": 1.0, "n": 1}, {"loss": 4.0, "n": 2}, {"n": 9}]
    assert weighted_mean(metrics, "loss", "n") == 3.0
    assert weighted_mean([], "loss", "n") == 0.0


def test_evaluation_does_not_change_what_a_client_keeps(tiny, staged, tmp_path):
    grid = staged(tiny("feddbp", tmp_path))
    grid.serve()
    for (kind, _, _), states in grid.states.items():
        if kind != "train":
            assert states["before"] == states["after"]


def test_node_without_a_partition_says_how_to_start_it(tiny, staged, tmp_path):
    grid = staged(tiny("local", tmp_path))
    del grid.contexts[1].node_config["partition-id"]
    with pytest.raises(FederationError, match="no 'partition-id'; start its SuperNode"):
        grid.serve()


def test_node_of_a_partition_that_does_not_exist_is_told_so(tiny, staged, tmp_path):
    grid = staged(tiny("local", tmp_path))
    grid.contexts[1].node_config["partition-id"] = 8
    with pytest.raises(FederationError, match="partition-id"):
        grid.serve()
