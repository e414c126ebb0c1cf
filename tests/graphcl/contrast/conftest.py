from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def pair_score(a: Tensor, b: Tensor, name: str) -> Tensor:
    if name == "dot":
        return (a * b).sum()
    if name == "cosine":
        if not a.any() or not b.any():
            return (0 * a).sum() + (0 * b).sum()
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())
    return -((a - b).square().sum().clamp(min=1e-12).sqrt())


def slow_loss(
    queries: Tensor,
    keys: Tensor,
    target: Tensor,
    candidates: Tensor | None = None,
    score: str = "cosine",
    temperature: float | Tensor = 0.5,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """The formula, pair by pair, with dense T and W."""
    n, m = len(queries), len(keys)
    total, norm = queries.sum() * 0, queries.new_zeros(())
    for i in range(n):
        weights = [1.0 if candidates is None else float(candidates[i, j]) for j in range(m)]
        wanted = [float(target[i, j]) for j in range(m)]
        if not any(weights) or not any(wanted):
            continue
        scores = [pair_score(queries[i], keys[j], score) / temperature for j in range(m)]
        denominator = sum(w * s.exp() for w, s in zip(weights, scores, strict=True) if w)
        row = sum(-t * (s - denominator.log()) for t, s in zip(wanted, scores, strict=True) if t)
        w = 1.0 if sample_weight is None else sample_weight[i]
        total, norm = total + w * row, norm + w
    return total / norm if norm else total


@pytest.fixture
def reference() -> Callable[..., Tensor]:
    return slow_loss


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
