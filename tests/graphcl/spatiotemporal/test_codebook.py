"""The Causal Codebook: read-out, best prototype, and contrast with the second best."""

import math

import pytest
import torch
from forecast_series import noise
from torch import Tensor

from graphcl.spatiotemporal import CausalCodebook

ROWS, D, TEMPERATURE = 6, 4, 0.3


@pytest.fixture
def codebook() -> CausalCodebook:
    """Return a codebook in float64 of prototypes of unlike lengths."""
    codebook = CausalCodebook(ROWS, D, TEMPERATURE).double()
    lengths = torch.arange(1.0, ROWS + 1)[:, None]
    codebook.prototypes.data = (lengths * noise(ROWS, D)).double()
    return codebook


def queries() -> Tensor:
    return noise(5, 3, D, seed=1).double()


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def cosine(one: list[float], other: list[float]) -> float:
    return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))


def test_a_match_is_that_of_the_equations_query_by_query(codebook) -> None:
    query = queries()
    rows = codebook.prototypes.tolist()
    readout, losses, best, by_angle = [], [], [], []
    for q in query.flatten(0, 1).tolist():
        scores = [dot(q, row) for row in rows]
        total = sum(math.exp(s) for s in scores)
        shares = [math.exp(s) / total for s in scores]
        readout.append([dot(shares, [row[d] for row in rows]) for d in range(D)])
        first, second = sorted(range(ROWS), key=lambda j: -scores[j])[:2]
        near, far = (math.exp(cosine(q, rows[j]) / TEMPERATURE) for j in (first, second))
        losses.append(-math.log(near / (near + far)))
        best.append(first)
        by_angle.append(max(range(ROWS), key=lambda j: cosine(q, rows[j])))
    assert best != by_angle  # the best is that of the scores, though the contrast is of cosines
    match = codebook(query)
    torch.testing.assert_close(match.readout.flatten(0, 1).tolist(), readout)
    assert match.alignment.item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert match.best.shape == (5, 3)
    assert match.best.flatten().tolist() == best


def test_the_contrast_is_ln_2_where_both_cosines_are_equal() -> None:
    codebook = CausalCodebook(3, 2, temperature=0.1)
    codebook.prototypes.data = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    match = codebook(torch.tensor([[3.0, 1.0], [0.5, -4.0]]))
    assert match.best.tolist() == [1, 1]
    assert match.alignment.item() == pytest.approx(math.log(2))


def test_the_contrast_trains_the_query_and_the_two_best_prototypes(codebook) -> None:
    query = queries()[0, 0].requires_grad_()
    first, second = (query @ codebook.prototypes.T).topk(2).indices.tolist()
    match = codebook(query)
    match.alignment.backward()
    assert query.grad is not None
    assert query.grad.any()
    assert codebook.prototypes.grad is not None
    assert codebook.prototypes.grad.any(1).nonzero().flatten().tolist() == sorted([first, second])
    with torch.no_grad():
        step = codebook(query - 0.01 * query.grad)
    assert step.alignment < match.alignment


def test_the_read_out_trains_the_query_and_every_prototype(codebook) -> None:
    query = queries().requires_grad_()
    codebook(query).readout.square().sum().backward()
    assert query.grad is not None
    assert query.grad.any(-1).all()
    assert codebook.prototypes.grad is not None
    assert codebook.prototypes.grad.any(-1).all()


def test_the_order_of_the_prototypes_means_nothing_but_their_number(codebook) -> None:
    match = codebook(queries())
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    codebook.prototypes.data = codebook.prototypes.data[order]
    moved = codebook(queries())
    torch.testing.assert_close(moved.readout, match.readout)
    torch.testing.assert_close(moved.alignment, match.alignment)
    assert torch.equal(order[moved.best], match.best)
