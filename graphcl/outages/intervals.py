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
            calibrate it: n situations carry a level of ``(n - 1) / (n + 1)`` at most.
        edges: ``[K - 1]``, expected counts between the bins, ascending.
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
            max_bins: Bins of equally many situations, fewer where there are few situations.

        Raises:
            GraphCLError: The level is out of range, fewer than 2 situations, or shapes differ.

        Source:
            Vovk et al., Algorithmic Learning in a Random World, 2005 (Mondrian bins); Anscombe,
            1948 (square root of counts).
        """
        if not 0 < level < 1 or expected.shape != observed.shape or len(expected) < 2:
            raise GraphCLError(
                f"intervals: level is {level}, expected has shape {tuple(expected.shape)} and "
                f"observed {tuple(observed.shape)}; pass a level in (0, 1) and two alike vectors "
                "of at least 2"
            )
        level = min(level, (len(expected) - 1) / (len(expected) + 1))
        bins = max(1, min(max_bins, len(expected) // _LEAST))
        ranks = torch.arange(1, bins) / bins
        edges = torch.quantile(expected.double(), ranks.double()).unique()
        residual = _root(observed.double()) - _root(expected.double())
        place = torch.bucketize(expected.double(), edges)
        inside = [residual[place == k].sort().values for k in range(len(edges) + 1)]
        bounds = [_tails(r if len(r) else residual.sort().values, level) for r in inside]
        return cls(level, edges, *(torch.stack(side) for side in zip(*bounds, strict=True)))

    def around(self, expected: Tensor) -> tuple[Tensor, Tensor]:
        """Return whole bounds, lower and upper, of expected counts of any shape."""
        place = torch.bucketize(expected.double(), self.edges)
        root = _root(expected.double())
        low, high = (
            (root + side[place]).clamp(min=0).square() - 0.375 for side in (self.low, self.high)
        )
        # Rounded half of a thousandth outward of nothing: float noise must not move a bound by 1.
        return (low - 1e-6).ceil().clamp(min=0), (high + 1e-6).floor().clamp(min=0)


def _root(count: Tensor) -> Tensor:
    return (count + 0.375).sqrt()


def _tails(residual: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return the order statistics below and above which half of the rest is expected."""
    n, rest = len(residual), (1 - level) / 2
    rank = max(1, math.floor((n + 1) * rest + 1e-9))
    return residual[rank - 1], residual[n - rank]
