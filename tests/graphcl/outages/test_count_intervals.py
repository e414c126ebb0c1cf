"""Intervals of counts: what they promise, and that a page can print them."""

from itertools import pairwise

import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.metrics import interval_coverage
from graphcl.outages import CountIntervals


def situations(n, seed=0):
    """Expected counts over three decades, and counts that spread more than Poisson ones do."""
    rng = torch.Generator().manual_seed(seed)
    expected = 10 ** (3 * torch.rand(n, generator=rng, dtype=torch.float64))
    spread = torch.exp(0.4 * torch.randn(n, generator=rng, dtype=torch.float64))
    return expected, torch.poisson(expected * spread, generator=rng)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_exchangeable_counts_are_covered_as_promised_whether_small_or_large(level):
    intervals = CountIntervals.calibrate(*situations(20_000), level, max_bins=5)
    assert intervals.level == level
    expected, observed = situations(40_000, seed=1)
    low, high = intervals.around(expected)
    place = torch.bucketize(expected, intervals.edges)
    assert place.unique().tolist() == [0, 1, 2, 3, 4]
    for k in range(5):
        inside = place == k
        covered = interval_coverage(low[inside], high[inside], observed[inside])
        assert covered == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize(("n", "level"), [(2, 1 / 3), (8, 7 / 9), (39, 0.9), (399, 0.9)])
def test_few_situations_promise_less(n, level):
    assert CountIntervals.calibrate(*situations(n)).level == pytest.approx(level)


def test_a_level_that_no_bin_can_carry_is_not_promised():
    intervals = CountIntervals.calibrate(*situations(4000), 0.999)
    assert intervals.level == pytest.approx(199 / 201)


def test_bins_of_tied_expectations_are_never_small():
    """A bin of a handful would be calibrated by its two extremes and promise the level of many."""
    expected, observed = situations(2000)
    expected[:395], observed[:395] = 0, 0
    edges = CountIntervals.calibrate(expected, observed, 0.9, max_bins=10).edges
    assert torch.bucketize(expected, edges).bincount().min() >= 200
    zeros = CountIntervals.calibrate(torch.zeros(2000), torch.zeros(2000))
    assert len(zeros.edges) == 0


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_bounds_are_whole_ordered_and_never_minus_zero(level):
    # Rounding is a perfect model but for halves: many intervals hold no whole number inside.
    expected, observed = situations(2000)
    for counts in (observed, expected.round()):
        intervals = CountIntervals.calibrate(expected, counts, level)
        low, high = intervals.around(torch.linspace(0, 2000, 9000).reshape(9, 1000))
        assert low.shape == high.shape == (9, 1000)
        assert torch.equal(low, low.round())
        assert torch.equal(high, high.round())
        assert (low <= high).all()
        assert not torch.cat([low, high]).signbit().any()


def test_a_higher_level_is_a_wider_interval():
    expected = situations(3000, seed=2)[0]
    bounds = [
        CountIntervals.calibrate(*situations(3000), level).around(expected)
        for level in (0.5, 0.8, 0.95)
    ]
    for (low, high), (lower, higher) in pairwise(bounds):
        assert (lower <= low).all()
        assert (high <= higher).all()


def test_a_perfect_model_has_intervals_of_one_count():
    counts = torch.arange(300.0)
    low, high = CountIntervals.calibrate(counts, counts).around(counts)
    assert torch.equal(low, counts.double())
    assert torch.equal(high, counts.double())


@pytest.mark.parametrize(
    ("expected", "observed", "level", "message"),
    [
        (torch.ones(5), torch.ones(5), 0.0, "level is 0.0"),
        (torch.ones(5), torch.ones(5), 1.0, "level is 1.0"),
        (torch.ones(5), torch.ones(4), 0.9, r"shape \(5,\) and observed \(4,\)"),
        (torch.ones(5, 2), torch.ones(5, 2), 0.9, "two alike vectors"),
        (torch.ones(1), torch.ones(1), 0.9, "at least 2"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), 0.9, r"expected\[1\] is nan"),
        (torch.ones(2), torch.tensor([-1, 1]), 0.9, r"observed\[0\] is -1 \(1 such\)"),
    ],
)
def test_what_cannot_be_calibrated_is_named(expected, observed, level, message):
    with pytest.raises(GraphCLError, match=message):
        CountIntervals.calibrate(expected, observed, level)
