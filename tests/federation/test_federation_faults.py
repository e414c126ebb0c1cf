"""Faults on purpose: planned by the seed alone, plausible to the checks, and on the record."""

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

from federation.experiment import Experiment
from federation.fault_tables import FaultTable
from federation.faults import Faults, attack, hostile_clients
from federation.learners import NodeLearner
from federation.records import num_bytes, to_arrays, to_tensors
from federation.run_directory import RunDirectory
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.prototypes import check_upload
from graphcl.errors import ConfigError, FederationError
from simulations.carriers.local import LocalGrid

CLASSES, WIDTH = 4, 3
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=CLASSES)
KINDS = {
    "drop": "dropped",
    "lose": "lost",
    "stale": "stale",
    "partial": "partial",
    "corrupt": "corrupt",
}
EVERYTHING = {
    "faults.drop": 0.2,
    "faults.lose": 0.2,
    "faults.stale": 0.4,
    "faults.partial": 0.3,
    "faults.corrupt": 0.2,
    "faults.crash": 0.1,
    "faults.hang": 0.1,
    "faults.memory": 0.1,
    "faults.slow": 0.1,
    "faults.slow_seconds": 0.001,
    "faults.hostile": 0.34,
    "run.min_success": 0.0,
    "run.rounds": 6,
}


def planned(experiment, server_round):
    faults = Faults(experiment, FACTS).of_round(server_round)
    return {name: getattr(faults, name) for name in (*KINDS.values(), "hostile")}


def test_plan_depends_on_seed_and_round_alone(tiny):
    keys = {"partition.clients": 3} | EVERYTHING
    one = [planned(tiny("fedproto", **keys), r) for r in range(1, 30)]
    other = [planned(tiny("fedavg", "elsewhere", **keys), r) for r in range(1, 30)]
    assert one == other
    assert one != [planned(tiny("fedproto", **keys, **{"run.seed": 1}), r) for r in range(1, 30)]
    assert len({tuple(sorted(plan["dropped"])) for plan in one}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_faults_are_drawn_apart_and_as_often_as_asked(kind):
    experiment = Experiment.from_flat({f"faults.{kind}": 0.3, "partition.clients": 200})
    plans = [planned(experiment, r) for r in range(1, 21)]
    share = sum(len(plan[KINDS[kind]]) for plan in plans) / (20 * 200)
    assert share == pytest.approx(0.3, abs=4 * (0.21 / 4000) ** 0.5)
    assert not any(
        plan[other] for plan in plans for other in KINDS.values() if other != KINDS[kind]
    )
    with_others = experiment.override({f"faults.{other}": 0.5 for other in set(KINDS) - {kind}})
    assert [planned(with_others, r)[KINDS[kind]] for r in range(1, 21)] == [
        plan[KINDS[kind]] for plan in plans
    ]


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.2, 4), (0.24, 5), (1.0, 20)])
def test_share_of_hostile_clients_is_exact_and_grows_by_joining(share, number):
    base = Experiment.from_flat({"partition.clients": 20, "faults.hostile": share})
    assert len(hostile_clients(base)) == number
    assert hostile_clients(base) <= hostile_clients(base.override({"faults.hostile": 1.0}))


def test_without_faults_nothing_is_changed_or_kept(tiny):
    faults = Faults(tiny(), FACTS)
    content = RecordDict({"prototypes": to_arrays({"values": torch.ones(1)})})
    struck = faults.of_round(1)
    assert all(struck.reaches(p) for p in range(3))
    assert struck.arriving(0, RecordDict(), content, CLASSES) is content
    assert struck.struck == {}
    assert faults.state() == {}


PROTOTYPES = {
    "classes": torch.tensor([0, 1, 3]),
    "values": torch.tensor([[1.0, 2, 3], [-1, 0, 1], [4, 4, 4]]),
    "support": torch.tensor([5, 2, 1]),
    "fisher": torch.tensor([[0.1] * 3, [0.2] * 3, [0.3] * 3]),
}
SENT = {"classes": torch.tensor([2]), "values": torch.tensor([[9.0, 9, 9]])}


def attacked(tiny, **keys) -> dict[str, torch.Tensor]:
    """What a hostile client sends up in place of ``PROTOTYPES``; it passes every check."""
    content = RecordDict(
        {"prototypes": to_arrays(PROTOTYPES), "metrics": MetricRecord({"num-examples": 8})}
    )
    sent = RecordDict({"prototypes": to_arrays(SENT)})
    lying = attack(FaultTable(hostile=0.2, **keys), sent, content, CLASSES)
    check_upload(lying, tiny(**{"model.embedding_channels": WIDTH}), FACTS, fisher=True)
    assert torch.equal(to_tensors(content["prototypes"])["values"], PROTOTYPES["values"])
    return to_tensors(lying.array_records["prototypes"])


@pytest.mark.parametrize(("name", "factor"), [("sign_flip", -3.0), ("scale", 3.0)])
def test_prototypes_are_turned_round_or_multiplied(tiny, name, factor):
    lying = attacked(tiny, attack=name, strength=3.0)
    assert torch.equal(lying["values"], factor * PROTOTYPES["values"])
    assert all(torch.equal(lying[k], PROTOTYPES[k]) for k in ("classes", "support", "fisher"))


def test_label_swap_claims_prototypes_for_the_class_after_theirs(tiny):
    lying = attacked(tiny, attack="label_swap")
    assert lying["classes"].tolist() == [1, 2, 0]
    assert all(torch.equal(lying[k], PROTOTYPES[k]) for k in ("values", "support", "fisher"))


@pytest.mark.parametrize(
    ("label", "target", "strength", "expected"),
    [
        (0, 1, 1.0, [-1, 0, 1]),  # its own
        (0, 1, 0.5, [0, 1, 2]),  # half the way
        (0, 1, 2.0, [-3, -2, -1]),  # and beyond
        (0, 2, 1.0, [9, 9, 9]),  # the one it was sent
    ],
)
def test_backdoor_draws_one_class_towards_another(tiny, label, target, strength, expected):
    keys = {"backdoor_class": label, "backdoor_target": target, "strength": strength}
    lying = attacked(tiny, attack="backdoor", **keys)
    assert lying["values"][0].tolist() == expected
    assert torch.equal(lying["values"][1:], PROTOTYPES["values"][1:])
    assert all(torch.equal(lying[k], PROTOTYPES[k]) for k in ("classes", "support", "fisher"))


def test_backdoor_of_a_class_that_is_not_held_leaves_the_reply_as_it_is(tiny):
    content = RecordDict({"prototypes": to_arrays(PROTOTYPES)})
    sent = RecordDict({"prototypes": to_arrays(SENT)})
    table = FaultTable(hostile=0.2, attack="backdoor", backdoor_class=2, backdoor_target=0)
    assert attack(table, sent, content, CLASSES) is content


def test_it_is_told_how_much_of_a_class_an_attack_draws_to_another(tiny, tmp_path, lines_of):
    keys = {"faults.attack": "backdoor", "faults.backdoor_class": 1, "faults.backdoor_target": 2}
    experiment = tiny("fedproto", tmp_path, **keys, **{"data.csbm.nodes": 200})
    held = {}
    for partition in range(3):
        learner = NodeLearner(experiment, partition)
        out = learner.outputs("test")["test"]
        metrics = learner.evaluate(lambda out: {"head": (out.y + 1) % 3})
        held[partition] = int((out.y == 1).sum())
        assert metrics["backdoor"] == 1.0
        assert metrics["backdoor-examples"] == held[partition] > 0
        assert learner.evaluate(lambda out: {"head": out.y})["backdoor"] == 0.0
    LocalGrid(experiment).serve()
    (last,) = lines_of(tmp_path, kind="round", round=2)
    shares = [line["backdoor"] for line in lines_of(tmp_path, kind="client", round=2)]
    assert last["backdoor"] == pytest.approx(
        sum(s * n for s, n in zip(shares, held.values(), strict=True)) / sum(held.values())
    )
    calm = NodeLearner(tiny("fedproto", "elsewhere"), 0)
    assert "backdoor" not in calm.evaluate(lambda out: {"head": out.y})


def test_a_share_without_its_number_of_examples_costs_its_own_reply_alone(tiny, staged, tmp_path):
    grid = staged(tiny("fedproto", tmp_path))
    grid.tamper["evaluate", 1, 1] = lambda content: content["metrics"].update(backdoor=0.5)
    grid.serve()
    lines = [line for line in RunDirectory(tmp_path).lines() if line["kind"] == "client"]
    told = [line["evaluation"] for line in lines if "evaluation" in line]
    assert told == ["ReplyError: the metrics lack ['backdoor-examples']"]


@pytest.mark.parametrize(("name", "factor"), [("sign_flip", -2.0), ("scale", 2.0)])
def test_updates_of_weights_are_turned_round_or_multiplied(name, factor):
    start = {"a": torch.tensor([1.0, 2.0]), "count": torch.tensor([3])}
    end = {"a": torch.tensor([1.5, 0.0]), "count": torch.tensor([7])}
    sent, content = (RecordDict({"arrays": to_arrays(weights)}) for weights in (start, end))
    table = FaultTable(hostile=0.2, attack=name, strength=2.0)
    lying = to_tensors(attack(table, sent, content, 0).array_records["arrays"])
    assert lying["a"].tolist() == [1 + factor * 0.5, 2 - factor * 2.0]
    assert lying["count"].tolist() == [7]  # what is whole stays so
    assert lying["a"].dtype == torch.float32


def test_hostile_updates_reach_the_aggregate(tiny, staged, tmp_path, lines_of):
    keys = {"faults.hostile": 1.0, "faults.attack": "scale", "faults.strength": 5.0}
    grid = staged(tiny("fedavg", tmp_path, **keys))
    honest = {}
    for p in range(3):
        grid.tamper["train", 1, p] = lambda content, p=p: honest.update({p: content})
    grid.serve()
    start = to_tensors(grid.sent["train", 1, 0].content.array_records["arrays"])
    after = to_tensors(grid.sent["evaluate", 1, 0].content.array_records["arrays"])
    total = sum(c["metrics"]["num-examples"] for c in honest.values())
    replies = [
        (c["metrics"]["num-examples"], to_tensors(c.array_records["arrays"]))
        for c in honest.values()
    ]
    for name, value in start.items():
        mean = sum(n * weights[name] for n, weights in replies) / total
        torch.testing.assert_close(after[name], value + 5 * (mean - value), rtol=1e-4, atol=1e-5)
    lines = lines_of(tmp_path, kind="client")
    assert {(line["status"], line["fault"]) for line in lines} == {("ok", "hostile")}


def test_dropped_clients_get_no_message_and_lost_replies_count_as_failed(
    tiny, staged, tmp_path, lines_of, summary_of
):
    keys = {"faults.drop": 0.4, "faults.lose": 0.4, "run.min_success": 0.0, "run.rounds": 6}
    grid = staged(tiny("fedproto", tmp_path, **keys))
    grid.serve()
    seen = set()
    for line in lines_of(tmp_path, kind="client"):
        plan = planned(grid.experiment, line["round"])
        key, p = ("train", line["round"], line["partition"]), line["partition"]
        fault = "dropped" if p in plan["dropped"] else "lost" if p in plan["lost"] else ""
        seen.add(fault)
        assert line.get("fault", "") == fault
        assert (key in grid.sent) == (fault != "dropped")
        assert line["status"] == ("failed" if fault else "ok")
        assert line.get("reason", "") == (f"fault plan: {fault}" if fault else "")
        assert (line["bytes_down"] == 0) == (fault == "dropped")
        assert (line["bytes_up"] == 0) == bool(fault)
        assert "accuracy" in line  # evaluations are spared
    assert seen == {"dropped", "lost", ""}
    assert summary_of(tmp_path)["faults"] == "40 % dropped a round, 40 % of replies lost"


def test_too_many_drops_stop_the_run_where_success_is_asked_for(tiny, tmp_path):
    experiment = tiny("fedavg", tmp_path, **{"faults.drop": 1.0})
    with pytest.raises(FederationError, match=r"0 of 3 .*min_success.*fault plan: dropped"):
        LocalGrid(experiment).serve()


@pytest.mark.parametrize("name", ["fedavg", "fedproto"])
def test_rounds_in_which_all_drop_out_change_nothing(tiny, staged, tmp_path, name):
    keys = {"faults.drop": 1.0, "run.min_success": 0.0}
    grid = staged(tiny(name, tmp_path, **keys))
    grid.serve()
    assert not any(kind == "train" for kind, _, _ in grid.sent)


def test_a_late_client_is_represented_by_its_reply_before(tiny, staged, tmp_path, lines_of):
    keys = {"faults.stale": 0.5, "run.min_success": 0.0, "run.rounds": 6}
    grid = staged(tiny("fedproto", tmp_path, **keys))
    current = {}
    for r in range(1, 7):
        for p in range(3):
            grid.tamper["train", r, p] = lambda c, k=(r, p): current.update({k: dict(c["metrics"])})
    grid.serve()
    statuses = set()
    for line in lines_of(tmp_path, kind="client"):
        r, p = line["round"], line["partition"]
        stale = p in planned(grid.experiment, r)["stale"]
        assert (line.get("fault") == "stale") == stale
        source = (r - 1, p) if stale else (r, p)
        if source in current:
            assert line["loss"] == current[source]["loss"]
            statuses.add((line["status"], stale))
        else:
            assert line["status"] == "failed"
            statuses.add("nothing before")
    assert {("ok", True), ("ok", False), "nothing before"} <= statuses


@pytest.mark.parametrize("name", ["fedproto", "feddbp"])
def test_partial_replies_lack_half_their_classes_and_pass(tiny, staged, tmp_path, lines_of, name):
    grid = staged(tiny(name, tmp_path, **{"faults.partial": 1.0}))
    whole = {}
    for p in range(3):
        grid.tamper["train", 1, p] = lambda c, p=p: whole.update(
            {p: (to_tensors(c.array_records["prototypes"]), num_bytes(c))}
        )
    grid.serve()
    for line in lines_of(tmp_path, kind="client", round=1):
        p = line["partition"]
        part = to_tensors(grid.replies["train", 1, p].content.array_records["prototypes"])
        tensors, size = whole[p]
        held = len(tensors["classes"])
        assert held > 1
        assert line["status"] == "ok"
        assert line["fault"] == "partial"
        assert len(part["classes"]) == (held + 1) // 2
        assert line["bytes_up"] < size
        assert line["support"] == int(part["support"].sum())
        rows = [tensors["classes"].tolist().index(label) for label in part["classes"].tolist()]
        assert all(torch.equal(part[key], tensors[key][rows]) for key in tensors)


def test_partial_replies_of_weights_are_refused(tiny, tmp_path, lines_of):
    keys = {"faults.partial": 1.0, "run.min_success": 0.0}
    LocalGrid(tiny("fedavg", tmp_path, **keys)).serve()
    for line in lines_of(tmp_path, kind="client"):
        assert line["status"] == "failed"
        assert line["fault"] == "partial"
        assert "another model" in line["reason"]


@pytest.mark.parametrize("name", ["fedavg", "fedmedian", "krum", "local", "fedproto", "feddbp"])
def test_killed_run_with_faults_goes_on_to_the_same_end(
    tiny, tmp_path, summary_of, killed_and_resumed, new_process, lines_of, name
):
    """Replies that are on their way are in the checkpoint."""
    new_process()
    LocalGrid(tiny(name, tmp_path / "whole", **EVERYTHING)).serve()
    lines = lines_of(tmp_path / "whole", kind="client", status="ok")
    at = next(line["round"] for line in lines if "stale" in line.get("fault", ""))
    killed_and_resumed(tiny(name, tmp_path / "killed", **EVERYTHING), at)  # needs what was held
    whole, resumed = (summary_of(tmp_path / run) for run in ("whole", "killed"))
    assert resumed["digest"] == whole["digest"]


@pytest.mark.parametrize("name", ["fedavg", "feddbp"])
@pytest.mark.parametrize("fault", ["hostile", "partial"])
def test_a_malformed_reply_that_a_fault_meets_costs_that_reply_alone(
    tiny, staged, tmp_path, lines_of, name, fault
):
    grid = staged(tiny(name, tmp_path, **{f"faults.{fault}": 1.0, "run.min_success": 0.0}))
    record = "arrays" if name == "fedavg" else "prototypes"

    def strange(content):
        content[record] = to_arrays({"strange": torch.ones(2), "arrays": torch.ones(2)})

    grid.tamper["train", 1, 1] = strange
    grid.serve()
    [line] = lines_of(tmp_path, kind="client", round=1, partition=1)
    assert line["status"] == "failed"
    reasons = ("malformed reply: KeyError", "ReplyError: expected the arrays")
    assert line["reason"].startswith(reasons)
    assert len(lines_of(tmp_path, kind="round")) == 2


def test_every_algorithm_of_weights_survives_all_faults(tiny, tmp_path, lines_of):
    for name in ("fedprox", "fedper", "fedtrimmedavg"):
        LocalGrid(tiny(name, tmp_path / name, **EVERYTHING)).serve()
        assert len(lines_of(tmp_path / name, kind="round")) == EVERYTHING["run.rounds"]


@pytest.mark.parametrize(
    ("keys", "start"),
    [
        ({"faults.drop": 1.5}, "faults.drop: "),
        ({"faults.attack": "scale"}, "faults: 'scale' by strength = 1 changes nothing"),
        (
            {"faults.attack": "label_swap", "faults.strength": 2.0},
            "faults: 'label_swap' has no strength, but it is 2",
        ),
        (
            {"faults.attack": "backdoor", "faults.backdoor_target": 0},
            "faults: backdoor_target = 0 is backdoor_class itself",
        ),
        (
            {"faults.attack": "label_swap", "run.compare": "fedavg"},
            "faults.attack: 'label_swap' is about the prototypes of classes, and 'fedavg' sends",
        ),
        (
            {"faults.attack": "backdoor", "strategy.name": "krum"},
            "faults.attack: 'backdoor' is about the prototypes of classes, and 'krum' sends",
        ),
        ({"run.compare": "pooled"}, "faults: 'pooled' has the data in one place"),
        (
            {
                "strategy.name": "scfsgl",
                "task.name": "forecast",
                "data.source": "confounded",
                "partition.scheme": "natural",
            },
            "faults.hostile: attacks are on prototypes and on weights, and 'scfsgl' sends",
        ),
        ({"strategy.robust.trim": 0.5}, "strategy.robust.trim: "),
        ({"strategy.robust.max_weight": 0.0}, "strategy.robust.max_weight: "),
    ],
)
def test_faults_that_make_no_sense_name_the_key(keys, start):
    with pytest.raises(ConfigError) as caught:
        Experiment.from_flat({"faults.hostile": 0.2} | keys)
    _, line = str(caught.value).splitlines()
    assert line.strip().startswith(start)


def test_backdoor_into_a_class_that_the_data_lack_is_told_before_the_first_round(tiny, tmp_path):
    keys = {"faults.hostile": 0.4, "faults.attack": "backdoor", "faults.backdoor_target": 3}
    with pytest.raises(ConfigError, match=r"faults\.backdoor_target: 3, but .* classes 0\.\.2"):
        LocalGrid(tiny("fedproto", tmp_path, **keys)).serve()


def test_summary_tells_what_goes_wrong_and_nothing_where_nothing_does():
    assert FaultTable().summary == ""
    assert FaultTable(attack="backdoor").summary == ""
    assert FaultTable(hostile=0.2).summary == "20 % hostile (sign_flip, strength 1)"
    table = FaultTable(hostile=0.1, attack="backdoor", backdoor_class=2, stale=0.25)
    assert table.summary == "10 % hostile (backdoor of class 2 to 1, strength 1), 25 % stale"
    assert FaultTable(hostile=0.1, attack="label_swap").summary == "10 % hostile (label_swap)"


def test_algorithms_without_uploads_have_nothing_to_attack(tiny, tmp_path, lines_of):
    LocalGrid(tiny("local", tmp_path, **{"faults.hostile": 1.0})).serve()
    assert not any("fault" in line for line in lines_of(tmp_path))
    assert ALGORITHMS["local"].sends == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"faults.crash": 0.1, "simulation.engine": "flower"}, "take simulation.engine = 'ray'"),
        ({"faults.memory": 0.1, "asynchrony.buffer": 1}, "drawn for rounds"),
        ({"faults.hang": 0.1, "simulation.engine": "ray"}, "simulation.client_timeout"),
    ],
)
def test_failing_processes_need_an_engine_that_survives_them(tiny, keys, message):
    with pytest.raises(ConfigError, match=message):
        tiny("fedavg", **keys)


def test_in_one_process_ailing_clients_just_fail_and_the_rest_goes_on(tiny, tmp_path, lines_of):
    keys = {"faults.crash": 0.3, "faults.memory": 0.3, "faults.slow": 0.5}
    delay = {"faults.slow_seconds": 0.001, "run.min_success": 0.0, "run.rounds": 6}
    LocalGrid(tiny("feddbp", tmp_path, **keys, **delay)).serve()
    struck = {line["fault"]: line["status"] for line in lines_of(tmp_path) if "fault" in line}
    assert struck == {"crash": "failed", "memory": "failed", "slow": "ok"}
