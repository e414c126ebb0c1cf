"""BGRL's target follows its network and teaches it; the two do not agree on one point."""

import pytest
import torch
from torch_geometric.data import Data

from graphcl.datasets import contextual_sbm
from graphcl.nodes import BGRL, BGRLConfig, linear_probe
from graphcl.nodes.prepared import prepare


@pytest.fixture(scope="module")
def data() -> Data:
    return contextual_sbm(400, 2, 16, homophily=0.9, signal=0.6, seed=0)


def test_the_target_is_the_moving_average_of_the_network(data, monkeypatch) -> None:
    """Written out for three epochs of two batches: 0.9 rises to 1 over six steps."""
    weights: list[torch.Tensor] = []
    follow = BGRL.after_step

    def record(self: BGRL, progress: float) -> None:
        weights.append(self.encoder.first.weight.detach().double().clone())
        follow(self, progress)

    monkeypatch.setattr(BGRL, "after_step", record)
    config = BGRLConfig(hidden_channels=8, momentum=0.9, batch_nodes=200, epochs=3)
    expected = BGRL(config).start(data).encoder.first.weight.detach().double()
    fitted = BGRL(config).fit(data)
    assert len(weights) == 6
    for step, weight in enumerate(weights):
        momentum = 1 - 0.1 * (torch.cos(torch.tensor(torch.pi * step / 6)).double() + 1) / 2
        expected = momentum * expected + (1 - momentum) * weight
    assert not torch.equal(fitted.target.first.weight, fitted.encoder.first.weight)
    torch.testing.assert_close(fitted.target.first.weight.double(), expected, atol=1e-6, rtol=0)


def test_gradients_reach_the_network_and_never_the_target(data) -> None:
    method = BGRL(BGRLConfig(hidden_channels=8)).start(data).train()
    sum(method.loss(prepare(data)).values()).backward()
    assert all(p.grad is None for p in method.target.parameters())
    learning = [*method.encoder.parameters(), *method.predictor.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


def test_the_loss_is_symmetric_and_zero_for_a_perfect_prediction(data, monkeypatch) -> None:
    graph = prepare(data)
    # Wide enough that no node's embedding is zero, which has no direction to predict.
    still = BGRLConfig(hidden_channels=32, drop_features=0, drop_edges=0)
    method = BGRL(still).start(data).train()
    method.predictor = torch.nn.Identity()  # target and network are equal at the start
    assert method.loss(graph)["bootstrap"].item() == pytest.approx(0, abs=1e-6)
    views = [(graph.x, graph.operator), (graph.x.flip(0), graph.operator)]
    losses = []
    for order in (views, views[::-1]):
        drawn = iter(order)
        monkeypatch.setattr("graphcl.nodes.bgrl.draw_view", lambda *_, drawn=drawn: next(drawn))
        losses.append(method.loss(graph)["bootstrap"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0.01


def test_embeddings_do_not_collapse(data) -> None:
    """Without normalisation every pair of rows had cosine 1 here, and the probe fell to 0.70."""
    z = BGRL(BGRLConfig(hidden_channels=32, epochs=100, learning_rate=0.005)).fit(data).embed(data)
    rows = torch.nn.functional.normalize(z, dim=1)
    assert (rows @ rows.T).mean() < 0.6
    shares = torch.linalg.svdvals(z - z.mean(0)).square()
    shares /= shares.sum()
    assert torch.exp(-(shares * shares.log()).sum()) > 8  # effective rank
    mask = torch.arange(400) % 5
    accuracy = linear_probe(z, data.y, mask < 2, mask == 2, mask > 2, epochs=300).mean
    features = linear_probe(data.x, data.y, mask < 2, mask == 2, mask > 2, epochs=300).mean
    assert accuracy > features + 0.05
