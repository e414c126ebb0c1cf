"""PolyGCL tells a graph from its shuffled copy; its loss and its stop are checked by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch_geometric.data import Data

from graphcl.datasets import contextual_sbm
from graphcl.nodes import PolyGCL, PolyGCLConfig, linear_probe
from graphcl.nodes.prepared import prepare

PLAIN = PolyGCLConfig(hidden_channels=8, order=3, drop_features=0.0, dropout=0.0)


@pytest.fixture(scope="module")
def data() -> Data:
    return contextual_sbm(300, 2, 16, homophily=0.9, signal=0.6, seed=0)


def test_the_loss_is_that_of_the_paper_in_float64(data) -> None:
    """Dense algebra, torch's own bilinear form and cross entropy over the 4 N scores."""
    graph = prepare(data)
    method = PolyGCL(PLAIN).start(data).double()
    with torch.no_grad():  # away from the start, where both channels sum to the identity
        method.filters.theta.add_(torch.linspace(-0.1, 0.3, 6).view(3, 2))
        method.shares.copy_(torch.tensor([0.7, -0.2]))
    x = graph.x.double() if isinstance(graph.x, torch.Tensor) else graph.x.matrix.to_dense()
    lap = graph.operator.matrix.to_dense().double()
    values, vectors = torch.linalg.eigh(lap)
    response = method.filters.response((values + 1).clamp(0, 2))

    def channels(features: torch.Tensor) -> list[torch.Tensor]:
        return [
            F.relu(method.linear(vectors @ (response[:, [c]] * (vectors.T @ features))))
            for c in range(2)
        ]

    torch.manual_seed(5)
    order = torch.randperm(len(x))
    real, false = channels(x), channels(x[order])
    summary = F.relu((0.7 * real[0] - 0.2 * real[1]).mean(0)).expand(len(x), -1).contiguous()
    scores = torch.cat([method.discriminator(z, summary)[:, 0] for z in (*real, *false)])
    wanted = torch.cat([torch.ones(2 * len(x)), torch.zeros(2 * len(x))]).double()
    expected = F.binary_cross_entropy_with_logits(scores, wanted)

    method.float()
    torch.manual_seed(5)
    (found,) = method.loss(graph).values()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_training_ends_where_the_loss_stays_and_keeps_the_best(data) -> None:
    losses: list[float] = []
    patient = replace(PLAIN, learning_rate=0.3, filter_learning_rate=0.3, patience=4, epochs=200)
    fitted = PolyGCL(patient).fit(data, lambda _, terms: losses.append(terms["loss"]))
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) < 200
    assert len(losses) - 1 - best == 4
    again = PolyGCL(replace(patient, epochs=best + 1)).fit(data)
    assert torch.equal(again.embed(data), fitted.embed(data))


def test_rows_are_as_the_network_has_them_or_of_one_length(data) -> None:
    raw = PolyGCL(PLAIN).start(data)
    graph = prepare(data)
    z = raw.embed(data)
    assert torch.equal(z, raw(graph.x, graph.operator).detach())
    scaled = PolyGCL(replace(PLAIN, unit_rows=True)).start(data).embed(data)
    torch.testing.assert_close(scaled, F.normalize(z, dim=1) * 8**0.5)


def test_it_embeds_better_than_the_features_alone(data) -> None:
    mask = torch.arange(300) % 4
    masks = (mask < 2, mask == 2, mask > 2)
    config = replace(PLAIN, hidden_channels=32, drop_features=0.2, learning_rate=0.01)
    z = PolyGCL(replace(config, epochs=150, patience=50)).fit(data).embed(data)
    accuracy = linear_probe(z, data.y, *masks, epochs=300).mean
    assert accuracy > linear_probe(data.x, data.y, *masks, epochs=300).mean
    assert accuracy > 0.8
