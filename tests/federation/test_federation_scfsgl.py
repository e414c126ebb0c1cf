"""SC-FSGL: codebooks are clustered, and of the other weights' mean takes whom it helps."""

import math
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from federation import client_app
from federation.learners import ForecastLearner
from federation.records import to_arrays, to_tensors
from federation.run_directory import RunDirectory
from federation.strategies import ALGORITHMS, Facts, scfsgl
from federation.strategies.scfsgl import SHARES, SCFSGLExchange, cluster_prototypes
from graphcl.errors import ReplyError
from simulations.carriers.local import LocalGrid

CODEBOOK = "network.codebook.prototypes"
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={}, num_classes=4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(one, other) -> bool:
    assert set(one) == set(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def others(learner: ForecastLearner) -> dict[str, Tensor]:
    """Return a copy of what crosses beside the codebook."""
    weights = scfsgl._weights_of(learner.model, learner.config)
    return {name: value.clone() for name, value in weights.items()}


# The mean of codebooks.


def slow_clusters(start: Tensor, rows: Tensor, support: Tensor) -> Tensor:
    centres = start.double().tolist()
    for _ in range(10):
        members: list[list[tuple[float, list[float]]]] = [[] for _ in centres]
        for row, weight in zip(rows.double().tolist(), support.double().tolist(), strict=True):
            nearest = min(range(len(centres)), key=lambda k: math.dist(row, centres[k]))
            members[nearest].append((weight, row))
        for k, held in enumerate(members):
            mass = math.fsum(weight for weight, _ in held)
            if mass:
                centres[k] = [
                    math.fsum(weight * row[d] for weight, row in held) / mass
                    for d in range(len(centres[k]))
                ]
    return torch.tensor(centres, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_those_of_a_slow_reference(seed):
    start, rows = normal(4, 3, seed=seed), normal(20, 3, seed=seed + 100)
    support = torch.randint(0, 6, (20,), generator=torch.Generator().manual_seed(seed))
    found = cluster_prototypes(start, rows, support)
    expected = slow_clusters(start, rows, support)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(cluster_prototypes(start, rows, support), found)


def test_clusters_keep_the_mass_of_their_rows():
    start = 10 * torch.eye(3)
    rows = start.repeat(5, 1) + normal(15, 3)
    support = torch.arange(15)
    found = cluster_prototypes(start, rows, support)
    mass = torch.tensor([float(support[k::3].sum()) for k in range(3)])
    torch.testing.assert_close((mass[:, None] * found).sum(0), support.float() @ rows)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cluster_prototypes(start, rows[order], support[order]), found)


def test_a_cluster_without_support_keeps_its_row():
    start = torch.tensor([[0.0, 0.0], [5.0, 5.0], [9.0, 0.0]])
    rows = torch.tensor([[1.0, 0.0], [6.0, 5.0], [0.0, 1.0]])
    found = cluster_prototypes(start, rows, torch.tensor([3, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [5.0, 5.0], [9.0, 0.0]]))
    assert torch.equal(cluster_prototypes(start, rows, torch.zeros(3)), start)


def test_a_tie_goes_to_the_first_cluster():
    start = torch.tensor([[-1.0], [1.0], [1.0]])
    found = cluster_prototypes(start, torch.tensor([[0.0], [2.0]]), torch.ones(2))
    assert found.flatten().tolist() == [0.0, 2.0, 1.0]


# The server.


def reply(codebook: Tensor, support: Tensor, weights: dict[str, Tensor]) -> SimpleNamespace:
    arrays = {"codebook": {"prototypes": codebook, "support": support}, "weights": weights}
    return SimpleNamespace(content=RecordDict({n: to_arrays(a) for n, a in arrays.items()}))


@pytest.fixture
def replies(forecasts):
    """Return replies of three clients, of unlike support."""
    first = others(ForecastLearner(forecasts("scfsgl"), 0))
    return [
        reply(
            normal(4, 8, seed=seed),
            torch.tensor([seed, 5, 0, 2 * seed]),
            {name: value + normal(*value.shape, seed=seed) for name, value in first.items()},
        )
        for seed in range(3)
    ]


def aggregated(experiment, replies) -> dict[str, Tensor]:
    strategy = ALGORITHMS["scfsgl"].strategy(experiment, FACTS)
    strategy.aggregate_train(1, replies)
    content = strategy.content_for(0)
    return {**to_tensors(content["codebook"]), **to_tensors(content["weights"])}


def test_the_order_of_replies_does_not_matter(forecasts, replies):
    found = aggregated(forecasts("scfsgl"), replies)
    assert same(aggregated(forecasts("scfsgl"), replies), found)
    for order in ([2, 0, 1], [1, 0, 2]):
        torch.testing.assert_close(
            aggregated(forecasts("scfsgl"), [replies[i] for i in order]), found
        )


def test_rows_of_all_clients_are_clustered_from_the_codebook_of_the_round_before(
    forecasts, replies
):
    experiment = forecasts("scfsgl")
    strategy = ALGORITHMS["scfsgl"].strategy(experiment, FACTS)
    for server_round in (1, 2):
        before = to_tensors(strategy.content_for(0)["codebook"])["prototypes"]
        strategy.aggregate_train(server_round, replies)
        codebooks = [to_tensors(r.content["codebook"]) for r in replies]
        rows, support = (torch.cat([c[n] for c in codebooks]) for n in ("prototypes", "support"))
        found = to_tensors(strategy.content_for(0)["codebook"])["prototypes"]
        expected = slow_clusters(before, rows, support)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_papers_mean_is_that_of_the_rows_by_place(forecasts, replies):
    found = aggregated(forecasts("scfsgl", **{"strategy.scfsgl.fuse": "mean"}), replies)
    for name, value in found.items():
        record = "codebook" if name == "prototypes" else "weights"
        given = [to_tensors(one.content[record])[name].double() for one in replies]
        torch.testing.assert_close(value.double(), sum(given) / 3, rtol=1e-6, atol=1e-7)


def test_weights_of_the_server_survive_a_checkpoint(forecasts, replies):
    one, other = (ALGORITHMS["scfsgl"].strategy(forecasts("scfsgl"), FACTS) for _ in range(2))
    one.aggregate_train(1, replies)
    other.load_state(one.state())
    for record, arrays in one.content_for(0).items():
        assert same(to_tensors(other.content_for(0)[record]), to_tensors(arrays))


# On the wire.


def test_the_papers_wire_is_the_codebook_alone(forecasts, staged, tmp_path, lines_of):
    sizes = {}
    for rows in (4, 20):
        keys = {"strategy.scfsgl.share": "codebook", "forecast.num_prototypes": rows}
        grid = staged(forecasts("scfsgl", tmp_path / str(rows), **keys))
        grid.serve()
        for server_round in (1, 2):
            for partition in range(3):
                down = grid.sent["train", server_round, partition].content
                up = grid.replies["train", server_round, partition].content
                shapes = [
                    {
                        (record, name): (tuple(tensor.shape), tensor.dtype)
                        for record, arrays in content.array_records.items()
                        for name, tensor in to_tensors(arrays).items()
                    }
                    for content in (down, up)
                ]
                prototypes = {("codebook", "prototypes"): ((rows, 8), torch.float32)}
                support = {("codebook", "support"): ((rows,), torch.int64)}
                assert shapes == [prototypes, prototypes | support]
        [line, *_] = lines_of(tmp_path / str(rows), kind="client", round=2)
        sizes[rows] = line["bytes_down"], line["bytes_up"]
    framing = 8  # lengths take up to two bytes more where there is more to tell
    for small, large, row in zip(*sizes.values(), (8 * 4, 8 * 4 + 8), strict=True):
        assert 16 * row <= large - small <= 16 * row + framing
        assert large < 20 * row + 1000


def test_all_clients_are_evaluated_with_the_codebook_of_the_server(
    forecasts, staged, tmp_path, monkeypatch
):
    seen, original = [], ForecastLearner.evaluate

    def evaluate(learner, predict):
        seen.append(learner.model.state_dict()[CODEBOOK].clone())
        return original(learner, predict)

    monkeypatch.setattr(ForecastLearner, "evaluate", evaluate)
    grid = staged(forecasts("scfsgl", tmp_path, **{"run.rounds": 1}))
    grid.serve()
    sent = to_tensors(grid.sent["evaluate", 1, 0].content["codebook"])["prototypes"]
    assert len(seen) == 3
    assert all(torch.equal(codebook, sent) for codebook in seen)
    trained = to_tensors(grid.replies["train", 1, 0].content["codebook"])["prototypes"]
    assert not torch.equal(trained, sent)


def test_replies_are_taken_by_client_whenever_they_arrive(
    forecasts, staged, tmp_path, summary_of, new_process
):
    class Reversed(staged):
        def deliver(self, messages, timeout):
            return super().deliver(messages, timeout)[::-1]

    for grid in (staged, Reversed):
        new_process()
        grid(forecasts("scfsgl", tmp_path / grid.__name__)).serve()
    digests = {summary_of(tmp_path / name)["digest"] for name in ("StagedGrid", "Reversed")}
    assert len(digests) == 1


def test_support_counts_the_best_matches_of_both_sides(forecasts):
    support = ForecastLearner(forecasts("scfsgl"), 0).support()
    assert support.shape == (4,)
    assert int(support.sum()) == 64 * 5 * 2  # windows, sensors, sides


# What a client takes.


def received(exchange: SCFSGLExchange, weights: dict[str, Tensor]) -> None:
    codebook = {"prototypes": exchange.learner.model.state_dict()[CODEBOOK]}
    exchange.receive(RecordDict({"codebook": to_arrays(codebook), "weights": to_arrays(weights)}))


@pytest.fixture
def exchange(forecasts):
    """Return the client half of a client whose weights have not moved yet."""
    experiment = forecasts("scfsgl", **{"train.epochs": 4})
    return SCFSGLExchange(experiment, ForecastLearner(experiment, 0))


def trained(experiment) -> dict[str, Tensor]:
    learner = ForecastLearner(experiment, 0)
    torch.manual_seed(0)
    learner.fit(lambda _: {})
    return others(learner)


def test_a_client_keeps_its_own_weights_where_the_mean_does_harm(exchange):
    learner = exchange.learner
    own, error = others(learner), learner.val_error()
    received(exchange, {name: 9 * normal(*value.shape) for name, value in own.items()})
    assert same(others(learner), own)
    assert learner.val_error() == error


def test_a_client_takes_the_mean_where_it_helps(exchange):
    learner = exchange.learner
    own, error = others(learner), learner.val_error()
    mean = trained(exchange.experiment)
    errors = {}
    for share in SHARES:
        mixed = {name: (1 - share) * own[name] + share * mean[name] for name in own}
        learner.load_weights({**learner.model.state_dict(), **mixed})
        errors[share] = learner.val_error()
    learner.load_weights({**learner.model.state_dict(), **own})
    received(exchange, mean)
    share = min(SHARES, key=lambda share: errors[share])
    assert share > 0
    assert learner.val_error() == pytest.approx(errors[share], rel=1e-5)
    assert learner.val_error() < error
    expected = {name: (1 - share) * own[name] + share * mean[name] for name in own}
    torch.testing.assert_close(others(learner), expected)


def test_a_mean_of_its_own_weights_changes_nothing(exchange):
    own = others(exchange.learner)
    received(exchange, own)
    assert same(others(exchange.learner), own)


def test_a_mean_that_breaks_the_forecast_is_not_taken(exchange):
    own = others(exchange.learner)
    received(exchange, {name: torch.full_like(value, 1e38) for name, value in own.items()})
    assert same(others(exchange.learner), own)


# What a client takes where parts are separated by transfer.


@pytest.fixture
def apart(forecasts):
    """Return ``exchange`` under separation by transfer."""
    keys = {"train.epochs": 4, "model.dropout": 0.0, "forecast.separation": "transfer"}
    experiment = forecasts("scfsgl", **keys)
    return SCFSGLExchange(experiment, ForecastLearner(experiment, 0))


def of_own(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return those behind the own part."""
    return {name: value for name, value in weights.items() if name.startswith("network.own.")}


def test_the_shared_part_is_the_mean_whatever_it_does(apart):
    own = others(apart.learner)
    mean = {name: value + 9 * normal(*value.shape) for name, value in own.items()}
    received(apart, mean)
    found = others(apart.learner)
    shared = own.keys() - of_own(own).keys()
    assert shared
    assert all(torch.equal(found[name], mean[name]) for name in shared)


def test_the_own_part_stays_where_the_mean_does_harm(apart):
    own, error = others(apart.learner), apart.learner.val_error()
    harmful = {name: 9 * normal(*value.shape) for name, value in of_own(own).items()}
    assert harmful
    received(apart, {**own, **harmful})
    assert same(others(apart.learner), own)
    assert apart.learner.val_error() == error


def test_of_the_mean_of_the_own_part_a_client_takes_the_best_share(apart):
    learner = apart.learner
    own, mean = others(learner), trained(apart.experiment)
    candidates = {}
    for share in SHARES:
        mixed = {n: (1 - share) * value + share * mean[n] for n, value in of_own(own).items()}
        learner.load_weights({**learner.model.state_dict(), **mean, **mixed})
        candidates[learner.val_error()] = mixed
    learner.load_weights({**learner.model.state_dict(), **own})
    received(apart, mean)
    best = min(candidates)
    assert learner.val_error() == pytest.approx(best, rel=1e-5)
    torch.testing.assert_close(others(learner), {**mean, **candidates[best]})


def test_the_own_part_trains_on_what_the_mean_leaves_and_not_on_what_it_drifts_to(apart):
    network, mean = apart.learner.model.network, trained(apart.experiment)
    received(apart, mean)
    sample = next(apart.learner._spread("train"))
    with torch.no_grad():
        before = network.eval()(sample)
        network.out.bias += 1.0
        torch.testing.assert_close(network(sample), before + 1.0)
        torch.testing.assert_close(network.train()(sample), before)


def test_without_separation_all_weights_stay_where_the_mean_does_harm(forecasts):
    experiment = forecasts("scfsgl", **{"forecast.separation": "off"})
    exchange = SCFSGLExchange(experiment, ForecastLearner(experiment, 0))
    own = others(exchange.learner)
    received(exchange, {name: 9 * normal(*value.shape) for name, value in own.items()})
    assert same(others(exchange.learner), own)


# What stays.


def test_what_an_evaluation_takes_is_given_back(forecasts, tmp_path, new_process, monkeypatch):
    """What a learner in memory took to be evaluated is never taken for what stays."""
    monkeypatch.setattr(scfsgl, "SHARES", (0.25,))
    new_process()
    experiment = forecasts("scfsgl", tmp_path, **{"partition.clients": 2})
    LocalGrid(experiment).serve()  # ends with an evaluation
    for partition in range(2):
        learner = client_app._build(experiment, partition).learner
        assert learner.holds is None


def test_training_goes_on_from_what_was_taken(exchange):
    learner = exchange.learner
    received(exchange, trained(exchange.experiment))
    taken = {
        name: value.clone() for name, value in learner.model.network.encoder.named_parameters()
    }
    learner.fit(lambda _: {})
    assert same(dict(learner.model.network.previous.named_parameters()), taken)


def test_evaluation_leaves_the_stored_state(forecasts, staged, tmp_path):
    grid = staged(forecasts("scfsgl", tmp_path))
    grid.serve()
    for server_round in (1, 2):
        for partition in range(3):
            states = grid.states["evaluate", server_round, partition]
            assert states["before"]["learner"] is states["after"]["learner"]


@pytest.mark.parametrize("separation", ["conditional", "transfer"])
def test_a_run_in_one_process_is_a_run_that_was_resumed(
    forecasts, tmp_path, summary_of, new_process, monkeypatch, separation
):
    """A learner that stays in memory must not keep what an evaluation mixed."""
    monkeypatch.setattr(scfsgl, "SHARES", (0.25,))
    keys = {"run.rounds": 3, "partition.clients": 2, "forecast.separation": separation}
    LocalGrid(forecasts("scfsgl", tmp_path / "whole", **keys)).serve()
    experiment = forecasts("scfsgl", tmp_path / "resumed", **keys)
    original = RunDirectory.checkpoint

    def checkpoint(run, server_round, *state):
        original(run, server_round, *state)
        raise KeyboardInterrupt

    new_process()
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "checkpoint", checkpoint)
        with pytest.raises(KeyboardInterrupt):
            LocalGrid(experiment).serve()
    new_process()
    LocalGrid(experiment).serve()
    assert summary_of(tmp_path / "resumed")["digest"] == summary_of(tmp_path / "whole")["digest"]


# Replies that must not enter.


def tampered(name: str, value: Tensor | None, record: str = "codebook"):
    """Return what replaces one array of a reply, or leaves it out."""

    def change(content: RecordDict) -> None:
        tensors = to_tensors(content[record])
        tensors = {n: t for n, t in tensors.items() if n != name}
        content[record] = to_arrays(tensors | ({} if value is None else {name: value}))

    return change


OUT = "network.out.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tampered("prototypes", torch.zeros(5, 8)), r"'prototypes' has shape \[5, 8\], not \[4, 8"),
        (tampered("prototypes", torch.zeros(4, 8).double()), "'prototypes' holds torch.float64"),
        (tampered("prototypes", torch.full((4, 8), math.nan)), "'prototypes' is not finite at"),
        (tampered("prototypes", None), r"expected prototypes and support, got \['support'\]"),
        (tampered("rows", torch.zeros(4)), "expected prototypes and support, got .*'rows'"),
        (tampered("support", torch.zeros(3, dtype=torch.long)), r"'support' has shape \[3\], not"),
        (tampered("support", torch.ones(4)), "'support' holds torch.float32, not torch.int64"),
        (tampered("support", torch.tensor([1, -1, 0, 0])), "'support' has a negative count"),
        (tampered(OUT, None, "weights"), "expected the weights .* the client holds another model"),
        (
            tampered("network.encoder.node", torch.zeros(5, 1, 8), "weights"),
            "expected the weights .* the client holds another model",
        ),
        (tampered(OUT, torch.zeros(11), "weights"), rf"'{OUT}' has shape \[11\], not \[12\]"),
        (tampered(OUT, torch.zeros(12).half(), "weights"), f"'{OUT}' holds torch.float16"),
        (tampered(OUT, torch.full((12,), math.inf), "weights"), rf"'{OUT}' is not finite at \[0\]"),
    ],
)
def test_malformed_replies_are_refused(forecasts, replies, change, message):
    content, experiment = replies[1].content, forecasts("scfsgl")
    check = ALGORITHMS["scfsgl"].check_reply
    check(content, ArrayRecord(), experiment, FACTS)
    change(content)
    with pytest.raises(ReplyError, match=message):
        check(content, ArrayRecord(), experiment, FACTS)


def test_weights_are_refused_where_the_codebook_alone_is_shared(forecasts, replies):
    experiment = forecasts("scfsgl", **{"strategy.scfsgl.share": "codebook"})
    with pytest.raises(ReplyError, match=r"expected the weights \[\], got \['network"):
        ALGORITHMS["scfsgl"].check_reply(replies[0].content, ArrayRecord(), experiment, FACTS)


def test_a_refused_reply_never_enters_the_aggregate(
    forecasts, staged, tmp_path, lines_of, new_process
):
    key = ("train", 1, 1)
    broken = staged(forecasts("scfsgl", tmp_path / "broken"))
    broken.tamper[key] = tampered("prototypes", torch.full((4, 8), math.nan))
    lost = staged(forecasts("scfsgl", tmp_path / "lost"))
    lost.lost.add(key)
    for grid in (broken, lost):
        new_process()
        grid.serve()
    for record in ("codebook", "weights"):
        one, other = (to_tensors(g.sent["evaluate", 1, 0].content[record]) for g in (broken, lost))
        assert same(one, other)
    [line] = lines_of(tmp_path / "broken", kind="client", round=1, partition=1)
    assert line["status"] == "failed"
    assert line["reason"] == "ReplyError: array 'prototypes' is not finite at [0, 0]"


def test_a_round_without_a_good_reply_leaves_the_server_as_it_was(forecasts, staged, tmp_path):
    grid = staged(forecasts("scfsgl", tmp_path, **{"run.min_success": 0.0}))
    for partition in range(3):
        grid.tamper["train", 1, partition] = lambda content: content.pop("weights")
    grid.serve()
    for record in ("codebook", "weights"):
        first, second = (to_tensors(grid.sent["train", r, 0].content[record]) for r in (1, 2))
        assert same(first, second)
