"""What a few runs can tell: intervals of means, paired tests, and the price of many questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE


@dataclass(frozen=True)
class Mean:
    """A mean and how far it may be off.

    Attributes:
        mean: Of the values.
        half_width: Of the 95 % interval by Student's t; None of a single value, which tells no
            spread.
        count: Number of values.
    """

    mean: float
    half_width: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A paired difference and whether it could be chance.

    Attributes:
        mean: Mean difference and its 95 % interval by Student's t, which takes the differences
            for normal.
        p_value: Of Wilcoxon's signed-rank test, two-sided: exact up to 50 pairs (13 where
            differences tie or are zero), by the normal approximation beyond.
        least_p_value: What the test would give if all pairs pointed one way: 2 / 2ⁿ.
    """

    mean: Mean
    p_value: float
    least_p_value: float


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of values with its 95 % interval by Student's t.

    Raises:
        ValueError: Without a value.
    """
    if not values:
        raise ValueError("the mean of nothing was asked for")
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Mean(mean, None, count)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Mean(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count), count)


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Compare values with their partners in another sequence of the same length.

    Raises:
        ValueError: If the lengths differ, or without a pair.
    """
    differences = [value - other for value, other in zip(values, others, strict=True)]
    # 0.3 - 0.2 and 0.2 - 0.1 are unlike as floats, and ranks must tie where shares do.
    largest = max(map(abs, differences), default=0.0)
    ranked = [round(difference / largest, 9) if largest else 0.0 for difference in differences]
    p_value = 1.0  # SciPy has none where no pair differs
    if any(ranked):
        p_value = float(stats.wilcoxon(ranked, zero_method="wilcox").pvalue)
    return Difference(mean_of(differences), p_value, 2.0 ** (1 - len(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979), in their order."""
    count = len(p_values)
    corrected = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
