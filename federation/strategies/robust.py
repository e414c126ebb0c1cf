"""Joining the prototypes of a class where some of its holders may lie.

Coordinate-wise median and trimmed mean: Yin et al., ICML 2018; Krum: Blanchard et al., NeurIPS
2017, here in its selecting form. Ours: weights, which the papers do not have, and a bound on them,
since what a client claims to hold is its own word. Of two holders nobody can say which one lies:
below three, every rule is the mean with bounded weights.

All of it is in float64 and does not depend on the order of the holders.
"""

import torch
from torch import Tensor

from federation.fault_tables import RobustTable


def fuse_class(values: Tensor, weights: Tensor, table: RobustTable) -> Tensor:
    """Join the prototypes of one class by a rule of ``strategy.robust`` other than the mean.

    Shapes:
        values: ``[holders, channels]``; weights: the same, positive. Returns ``[channels]``.
    """
    values, weights = values.double(), bound_weights(weights.double(), table.max_weight)
    if len(values) < 3:
        return weighted_mean(values, weights)
    if table.rule == "median":
        return weighted_median(values, weights)
    if table.rule == "trimmed":
        return trimmed_mean(values, weights, table.trim)
    kept = central_rows(values, table.hostile)
    return weighted_mean(values[kept], weights[kept])


def bound_weights(weights: Tensor, multiple: float) -> Tensor:
    """Cut weights off at a multiple of their median over holders, of two medians the lower.

    Shapes:
        weights: ``[holders, channels]``; returned likewise.
    """
    return torch.minimum(weights, multiple * weights.median(0).values)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean over rows, ``[channels]``."""
    return (weights * values).sum(0) / weights.sum(0)


def weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the value on either side of which lies half the weight, per channel.

    Where two values bound the middle, their mean: with equal weights it is the usual median.

    Shapes:
        values, weights: ``[rows, channels]``. Returns ``[channels]``.
    """
    values, below, above = _sorted(values, weights)
    half = above[-1] / 2
    slack = 1e-12 * half  # sums in another order must not decide a tie
    lower = (above < half - slack).sum(0)
    upper = (below <= half + slack).sum(0) - 1
    return (_pick(values, lower) + _pick(values, upper)) / 2


def trimmed_mean(values: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the mean without a share of the weight at either end, per channel.

    A value on the edge counts with the part of its weight that lies within.

    Shapes:
        values, weights: ``[rows, channels]``. Returns ``[channels]``.
    """
    values, below, above = _sorted(values, weights)
    low, high = share * above[-1], (1 - share) * above[-1]
    within = (torch.minimum(above, high) - torch.maximum(below, low)).clamp(min=0)
    return weighted_mean(values, within)


def central_rows(values: Tensor, hostile: int) -> Tensor:
    """Say which rows Krum keeps: those with the least squared distance to their nearest others.

    Args:
        values: ``[rows, channels]``.
        hostile: Rows assumed hostile, of which so many are left out and so many neighbours not
            counted; taken as less than half the rows. All on a tie at the end are kept.

    Returns:
        ``[rows]``, bool.
    """
    rows = len(values)
    hostile = min(hostile, (rows - 1) // 2)
    square = torch.stack([(values - row).square().sum(1) for row in values])
    square.fill_diagonal_(torch.inf)
    score = square.sort(1).values[:, : max(1, rows - hostile - 2)].sum(1)
    return score <= score.sort().values[rows - hostile - 1]


def _sorted(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sorted columns, and the weight before and up to every value."""
    values, order = values.sort(dim=0, stable=True)
    weights = weights.gather(0, order)
    above = weights.cumsum(0)
    return values, above - weights, above


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    return values.gather(0, rows[None])[0]
