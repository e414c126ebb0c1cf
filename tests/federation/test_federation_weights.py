"""FedAvg is the mean of the weights by training samples; FedProx adds half mu times a square."""

from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import nn

from federation.learners import Forward, NodeLearner
from federation.records import to_arrays, to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.weights import WeightsExchange
from graphcl.errors import ReplyError

FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=3)


def uploaded(grid, server_round: int) -> list[tuple[int, dict[str, torch.Tensor]]]:
    replies = [grid.replies["train", server_round, c].content for c in range(3)]
    return [
        (int(r["metrics"]["num-examples"]), to_tensors(r.array_records["arrays"])) for r in replies
    ]


def sent(grid, kind: str, server_round: int, partition: int = 0) -> dict[str, torch.Tensor]:
    return to_tensors(grid.sent[kind, server_round, partition].content.array_records["arrays"])


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_aggregate_is_the_mean_by_training_samples(tiny, staged, tmp_path, name):
    grid = staged(tiny(name, tmp_path))
    grid.serve()
    for server_round in (1, 2):
        replies = uploaded(grid, server_round)
        total = sum(support for support, _ in replies)
        assert len({support for support, _ in replies}) > 1  # a plain mean would differ
        aggregate = sent(grid, "evaluate", server_round)
        for key, value in aggregate.items():
            mean = sum(arrays[key].double() * support for support, arrays in replies) / total
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)


def test_round_starts_from_the_aggregate_of_the_round_before(tiny, staged, tmp_path):
    grid = staged(tiny("fedavg", tmp_path))
    grid.serve()
    evaluated = sent(grid, "evaluate", 1)
    for partition in range(3):
        trained = sent(grid, "train", 2, partition)
        assert all(torch.equal(trained[key], evaluated[key]) for key in evaluated)


def test_clients_of_a_weight_algorithm_keep_nothing(tiny, staged, tmp_path):
    grid = staged(tiny("fedavg", tmp_path))
    grid.serve()
    assert all(len(grid.contexts[partition].state) == 0 for partition in range(3))


def test_penalty_is_half_mu_times_the_squared_distance(tiny):
    """Against the same sum in float64."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    rng = torch.Generator().manual_seed(0)
    arrays = {k: torch.randn(v.shape, generator=rng) for k, v in model.state_dict().items()}
    learner = SimpleNamespace(
        model=model,
        bench=SimpleNamespace(weights=model.state_dict()),
        load_weights=model.load_state_dict,
        reset_optimizer=lambda: None,
    )
    exchange = WeightsExchange(tiny("fedprox"), learner)
    config = ConfigRecord({"proximal-mu": 0.3, "server-round": 1})
    exchange.receive(RecordDict({"arrays": to_arrays(arrays), "config": config}))
    out = Forward(torch.zeros(1, 5), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    assert exchange.penalty(out)["proximal"] == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=rng)
    square = sum(
        (p.double() - arrays[k].double()).square().sum() for k, p in model.named_parameters()
    )
    term = exchange.penalty(out)["proximal"]
    torch.testing.assert_close(term.double(), 0.15 * square, rtol=1e-5, atol=0)
    term.backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.3 * (parameter - arrays[key]).detach())


def test_a_strong_proximal_term_holds_clients_at_the_servers_weights(tiny, staged, tmp_path):
    def moved(mu: float) -> float:
        keys = {"strategy.fedprox.proximal_mu": mu, "train.epochs": 20, "train.optimizer": "sgd"}
        grid = staged(tiny("fedprox", tmp_path / str(mu), **keys))
        grid.serve()
        start = sent(grid, "train", 1)
        [(_, arrays), *_] = uploaded(grid, 1)
        return float(sum((arrays[key] - start[key]).square().sum() for key in start))

    assert moved(50.0) < moved(0.0) / 4


def test_fedprox_without_weight_is_fedavg(tiny, staged, tmp_path):
    grids = []
    for name in ("fedavg", "fedprox"):
        grids.append(staged(tiny(name, tmp_path / name, **{"strategy.fedprox.proximal_mu": 0.0})))
        grids[-1].serve()
    one, other = (sent(grid, "evaluate", 2) for grid in grids)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_weights_of_another_model_are_refused(tiny):
    learner = NodeLearner(tiny("fedavg"), 0)
    with pytest.raises(ReplyError, match="another model"):
        learner.load_weights({"head.weight": torch.zeros(3, 6)})


GLOBAL = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


def checked(tensors) -> None:
    arrays, content = to_arrays(GLOBAL), RecordDict()
    if tensors is not None:
        content["arrays"] = to_arrays(tensors)
    ALGORITHMS["fedavg"].check_reply(content, arrays, None, FACTS)


def test_good_weights_pass():
    checked({name: tensor + 1 for name, tensor in GLOBAL.items()})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, r"expected the arrays \['a', 'b'\], got \[\]"),
        ({"a": torch.zeros(2, 3)}, r"got \['a'\]"),
        (GLOBAL | {"c": torch.zeros(1)}, "another model"),
        (GLOBAL | {"b": torch.zeros(5)}, r"'b' has shape \[5\], not \[4\]"),
        (GLOBAL | {"a": torch.full((2, 3), float("nan"))}, r"'a' is not finite at \[0, 0\]"),
        (GLOBAL | {"a": torch.full((2, 3), float("inf"))}, "'a' is not finite"),
        (GLOBAL | {"a": torch.zeros(2, 3, dtype=torch.complex64)}, "'a'"),
        (GLOBAL | {"a": torch.zeros(2, 3, dtype=torch.float64)}, "'a'"),
        (GLOBAL | {"a": torch.zeros(2, 3, dtype=torch.bool)}, "'a'"),
    ],
)
def test_malformed_weights_are_refused(tensors, message):
    with pytest.raises(ReplyError, match=message):
        checked(tensors)


def test_empty_global_arrays_expect_no_arrays():
    ALGORITHMS["local"].check_reply(RecordDict(), ArrayRecord(), None, FACTS)
