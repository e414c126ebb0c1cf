"""Intervals around expected counts, calibrated on events that the model had not seen.

Split conformal prediction with bins: how far observed counts were from expected ones, on the scale
of square roots (where a count's spread hardly depends on its size), by the size of the expected
count. The guarantee holds for a situation exchangeable with those of the calibration; situations
of one storm depend on one another and storms differ, so coverage on a new storm is to be measured.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graphcl.errors import GraphCLError

_LEAST = 200  # situations in a bin: the 2.5 % tail of a 95 % interval then holds five


@dataclass(frozen=True)
class CountIntervals:
    """Calibrated bounds of counts by expected count.

    Attributes:
        level: Nominal coverage, in (0, 1); less than was asked for where too few situations
            calibrate a bin: n situations carry a level of ``(n - 1) / (n + 1)`` at most.
        edges: ``[K - 1]``, the largest expected count of each bin but the last, ascending.
        low, high: ``[K]``, quantiles of each bin, on the scale of square roots.
    """

    level: float
    edges: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def calibrate(
        cls, expected: Tensor, observed: Tensor, level: float = 0.9, max_bins: int = 20
    ) -> "CountIntervals":
        """Take the bounds from out-of-sample expectations and what was observed.

        Shapes:
            expected, observed: ``[n]``, not negative.

        Args:
            expected: Predicted without the situation's event.
            observed: Counts.
            level: Nominal coverage, in (0, 1).
            max_bins: Bins of about equally many situations, fewer where there are few situations
                or many of the same expected count.

        Raises:
            GraphCLError: The level is out of range, fewer than 2 situations, shapes differ, or a
                count is negative or not finite.

        Source:
            Vovk et al., Algorithmic Learning in a Random World, 2005 (Mondrian bins); Anscombe,
            1948 (square root of counts).
        """
        alike = expected.shape == observed.shape and expected.dim() == 1
        if not 0 < level < 1 or not alike or len(expected) < 2:
            raise GraphCLError(
                f"intervals: level is {level}, expected has shape {tuple(expected.shape)} and "
                f"observed {tuple(observed.shape)}; pass a level in (0, 1) and two alike vectors "
                "of at least 2"
            )
        for name, counts in (("expected", expected), ("observed", observed)):
            bad = (~(counts.isfinite() & (counts >= 0))).nonzero().flatten()
            if len(bad):
                raise GraphCLError(
                    f"intervals: {name}[{int(bad[0])}] is {counts[bad[0]].item()} ({len(bad)} "
                    "such); pass counts that are finite and not negative"
                )
        edges = _edges(expected.double(), max_bins)
        residual = _root(observed.double()) - _root(expected.double())
        place = torch.bucketize(expected.double(), edges)
        inside = [residual[place == k].sort().values for k in range(len(edges) + 1)]
        fewest = min(map(len, inside))
        level = min(level, (fewest - 1) / (fewest + 1))
        bounds = [_tails(sorted_residual, level) for sorted_residual in inside]
        return cls(level, edges, *(torch.stack(side) for side in zip(*bounds, strict=True)))

    def around(self, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Return whole bounds, lower and upper, of expected counts of any shape."""
        place = torch.bucketize(expected.double(), self.edges)
        root = _root(expected.double())
        low, high = (
            (root + side[place]).clamp(min=0).square() - 0.375 for side in (self.low, self.high)
        )
        # Float noise must not move a bound by 1; adding 0 makes -0 a 0.
        low, high = (low - 1e-6).ceil().clamp(min=0) + 0.0, (high + 1e-6).floor().clamp(min=0)
        # Where no whole count lies between the bounds, take the ones on both sides.
        return torch.minimum(low, high), torch.maximum(low, high)


def _edges(expected: Tensor, max_bins: int) -> Tensor:
    """Return upper ends of bins, each of ``_LEAST`` situations at least where there are several."""
    ordered = expected.sort().values
    n, below, edges = len(ordered), 0, []
    bins = max(1, min(max_bins, n // _LEAST))
    for k in range(1, bins):
        edge = ordered[n * k // bins - 1]
        # Situations of the same expected count stay together, so a bin may pass its rank.
        end = int(torch.searchsorted(ordered, edge, right=True))
        if min(end - below, n - end) >= _LEAST:
            edges.append(edge)
            below = end
    return torch.stack(edges) if edges else ordered[:0]


def _root(count: Tensor) -> Tensor:
    return (count + 0.375).sqrt()


def _tails(residual: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the order statistics below and above which half of the rest is expected."""
    n, rest = len(residual), (1 - level) / 2
    rank = max(1, math.floor((n + 1) * rest + 1e-9))
    return residual[rank - 1], residual[n - rank]
