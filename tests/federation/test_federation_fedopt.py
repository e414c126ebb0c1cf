"""The server's optimisers step along the clients' mean move, against float64 references."""

import pytest
import torch
from torch import Tensor

from federation.records import to_tensors

State = dict[str, Tensor]
LEARNING_RATE = 0.05


def first_weights(grid) -> State:
    return tensors_of(grid.sent["train", 1, 0])


def tensors_of(message) -> State:
    return to_tensors(message.content.array_records["arrays"])


def mean_reply(grid, server_round: int) -> State:
    contents = [grid.replies["train", server_round, c].content for c in range(3)]
    samples = [float(c["metrics"]["num-examples"]) for c in contents]
    arrays = [to_tensors(c.array_records["arrays"]) for c in contents]
    return {
        name: sum(n * a[name].double() for n, a in zip(samples, arrays, strict=True)) / sum(samples)
        for name in arrays[0]
    }


def fedadam(weight: Tensor, moves: list[Tensor], b1: float, b2: float, tau: float) -> Tensor:
    """Where one array is after some mean moves; Reddi et al.'s loop, with Adam's correction."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for t, move in enumerate(moves, 1):
        first = b1 * first + (1 - b1) * move
        second = b2 * second + (1 - b2) * move**2
        step = (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + tau)
        weight = weight + LEARNING_RATE * step
    return weight


def fedavgm(weight: Tensor, moves: list[Tensor], momentum: float) -> Tensor:
    velocity = torch.zeros_like(weight)
    for move in moves:
        velocity = momentum * velocity + move
        weight = weight + LEARNING_RATE * velocity
    return weight


@pytest.mark.parametrize(
    ("name", "keys", "reference"),
    [
        (
            "fedadam",
            {"beta_1": 0.8, "beta_2": 0.9, "tau": 0.01},
            lambda weight, moves: fedadam(weight, moves, 0.8, 0.9, 0.01),
        ),
        ("fedavgm", {"momentum": 0.7}, lambda weight, moves: fedavgm(weight, moves, 0.7)),
        ("fedavgm", {"momentum": 0.0}, lambda weight, moves: weight + LEARNING_RATE * sum(moves)),
    ],
)
def test_weights_after_each_round_are_those_of_the_equations(
    tiny, staged, tmp_path, name, keys, reference
):
    own = {f"strategy.{name}.{key}": value for key, value in keys.items()}
    own[f"strategy.{name}.learning_rate"] = LEARNING_RATE
    grid = staged(tiny(name, tmp_path, **{"run.rounds": 3, **own}))
    grid.serve()
    begin = {key: value.double() for key, value in first_weights(grid).items()}
    moves: dict[str, list[Tensor]] = {key: [] for key in begin}
    for server_round in (1, 2, 3):
        sent, mean = tensors_of(grid.sent["train", server_round, 0]), mean_reply(grid, server_round)
        after = tensors_of(grid.sent["evaluate", server_round, 0])
        for key in begin:
            moves[key].append(mean[key] - sent[key].double())
            expected = reference(begin[key], moves[key])
            assert after[key].dtype == sent[key].dtype
            torch.testing.assert_close(after[key].double(), expected, rtol=1e-4, atol=1e-5)
            assert not torch.equal(after[key], sent[key])


def test_momentum_of_zero_and_a_step_of_one_is_fedavg(tiny, staged, tmp_path):
    ends = []
    for name in ("fedavg", "fedavgm"):
        grid = staged(tiny(name, tmp_path / name, **{"strategy.fedavgm.momentum": 0.0}))
        grid.serve()
        ends.append(tensors_of(grid.sent["evaluate", 2, 0]))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_scales_are_averaged_and_no_step_is_taken_from_what_nobody_trained(
    outages, staged, tmp_path, name
):
    """Clients take the scales of features and the mean rate from their events in round one."""
    ends = {}
    for strategy in (name, "fedavg"):
        grid = staged(outages(strategy, tmp_path / strategy, **{"run.rounds": 3}))
        grid.serve()
        ends[strategy] = [tensors_of(grid.sent["evaluate", r, 0]) for r in (1, 3)]
    for after, mean in zip(ends[name], ends["fedavg"], strict=True):
        scales = {key for key in after if "_scale." in key}
        assert len(scales) == 4
        for key in scales:
            torch.testing.assert_close(after[key], mean[key])
    first, mean = ends[name][0], ends["fedavg"][0]
    torch.testing.assert_close(first["network.rate.bias"], mean["network.rate.bias"])


@pytest.mark.parametrize("name", ["fedadam", "fedavgm"])
def test_epochs_are_counted_as_they_passed(shops, staged, tmp_path, name):
    keys = {"recommend.method": "faerec", "run.rounds": 3, "train.epochs": 2}
    grid = staged(shops(name, tmp_path, **keys))
    grid.serve()
    assert tensors_of(grid.sent["evaluate", 3, 0])["network.epochs_begun"] == 6


def test_what_nobody_moves_stays_to_the_bit(tiny, staged, tmp_path):
    """Clients of unlike sizes send back what they got; single precision would not give that."""
    keys = {"run.rounds": 5, "data.csbm.nodes": 300, "partition.clients": 9}
    grid = staged(tiny("fedadam", tmp_path, **keys))

    def undo(key):
        return lambda content: content.update({"arrays": grid.sent[key].content["arrays"]})

    for key in [("train", r, c) for r in range(1, 6) for c in range(9)]:
        grid.tamper[key] = undo(key)
    grid.serve()
    trained = [grid.replies["train", 1, c].content for c in range(9)]
    assert len({int(content["metrics"]["num-examples"]) for content in trained}) > 1
    begin, end = first_weights(grid), tensors_of(grid.sent["evaluate", 5, 0])
    assert all(torch.equal(end[key], value) for key, value in begin.items())
