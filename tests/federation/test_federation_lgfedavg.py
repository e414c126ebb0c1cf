"""LG-FedAvg: heads are averaged, encoders stay, and may differ in kind and width."""

import pytest
import torch
from torch import nn

from federation.experiment import Experiment
from federation.learners import LEARNERS, NodeLearner
from federation.learners.base import is_named
from federation.records import to_tensors, unpack
from federation.strategies.weights import shared_weights

HEAD = {"head.weight", "head.bias"}


@pytest.fixture
def unlike(tiny):
    return lambda directory, **keys: tiny(
        "lgfedavg", directory, **{"model.encoders": "gcn, gat, mlp", **keys}
    )


def sent(message) -> dict[str, torch.Tensor]:
    return to_tensors(message.content.array_records["arrays"])


def test_heads_alone_cross_the_wire_and_their_mean_is_by_training_samples(unlike, staged, tmp_path):
    grid = staged(unlike(tmp_path))
    grid.serve()
    for server_round in (1, 2):
        replies = [grid.replies["train", server_round, c].content for c in range(3)]
        heads = [to_tensors(reply.array_records["arrays"]) for reply in replies]
        support = [int(reply["metrics"]["num-examples"]) for reply in replies]
        assert len(set(support)) > 1  # a plain mean would differ
        for client in range(3):
            received = sent(grid.sent["evaluate", server_round, client])
            assert set(heads[client]) == set(received) == HEAD
            for name, value in received.items():
                total = sum(h[name].double() * n for h, n in zip(heads, support, strict=True))
                torch.testing.assert_close(
                    value.double(), total / sum(support), rtol=1e-5, atol=1e-7
                )


def test_encoders_stay_and_each_is_trained_on(unlike, staged, tmp_path):
    experiment = unlike(tmp_path)
    grid = staged(experiment)
    grid.serve()
    for client in range(3):
        kept = unpack(grid.states["train", 2, client]["after"]["learner"])
        before = unpack(grid.states["train", 2, client]["before"]["learner"])
        model = NodeLearner.build(experiment, client, {"in-channels": 5}, 3).state_dict()
        assert set(kept) == set(model) - HEAD
        assert any(not torch.equal(kept[name], before[name]) for name in kept)
        evaluated = grid.states["evaluate", 2, client]
        assert evaluated["before"]["learner"] is evaluated["after"]["learner"]


def test_every_client_starts_from_the_same_head(unlike, staged, tmp_path):
    grid = staged(unlike(tmp_path))
    grid.serve()
    first = [sent(grid.sent["train", 1, client]) for client in range(3)]
    assert all(torch.equal(first[0][name], other[name]) for other in first for name in HEAD)


def test_what_is_shared_knows_neither_the_encoder_nor_the_width_of_the_features(unlike):
    experiment = unlike("", **{"model.encoders": "gcn, gat, mlp, aspect"})
    shapes = []
    for client, width in enumerate((4, 7, 5, 9)):
        model = NodeLearner.build(experiment, client, {"in-channels": width}, 3)
        shared = shared_weights(model, experiment)
        shapes.append({name: tuple(value.shape) for name, value in shared.items()})
        assert isinstance(model.projector, nn.Identity)
    assert shapes == [{"head.weight": (3, 6), "head.bias": (3,)}] * 4


def test_unlike_encoders_may_be_run_and_compared():
    keys = {"model.encoders": "aspect, gcn, sage, gat, mlp", "strategy.name": "lgfedavg"}
    assert Experiment.from_flat(keys).unlike_models
    compared = {**keys, "strategy.name": "feddbp", "run.compare": "lgfedavg, fedproto, fedtgp"}
    assert "lgfedavg" in Experiment.from_flat(compared).planned


def test_forecasts_share_the_last_layers_too(forecasts, staged, tmp_path):
    grid = staged(forecasts("lgfedavg", tmp_path))
    grid.serve()
    names = set(sent(grid.replies["train", 1, 0]))
    heads = LEARNERS["forecast"].heads
    held = [head for head in heads if not head.startswith("network.own.")]  # of transfer alone
    assert all(any(is_named(name, [head]) for name in names) for head in held)
    assert all(is_named(name, heads) for name in names)
