"""Metrics of counts, against scikit-learn and against loops in double precision."""

import math

import pytest
import torch
from sklearn import metrics as reference

from graphcl.errors import GraphCLError
from graphcl.metrics import (
    crmse,
    interval_coverage,
    mape,
    mean_absolute_error,
    morisita_horn,
    ncrmse,
    r2,
    root_mean_squared_error,
)

PAIRED = (
    mean_absolute_error,
    root_mean_squared_error,
    mape,
    r2,
    crmse,
    ncrmse,
    morisita_horn,
)


@pytest.fixture
def totals():
    """Predicted and counted totals of events, large as after a storm; a third has no outages."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(1, 5_000_000, (30,), generator=rng)
    y[::3] = 0
    return (y * torch.rand(30, generator=rng) + 10 * torch.rand(30, generator=rng)), y


@pytest.mark.parametrize(
    ("metric", "same"),
    [
        (mean_absolute_error, reference.mean_absolute_error),
        (root_mean_squared_error, reference.root_mean_squared_error),
        (r2, reference.r2_score),
    ],
)
def test_it_is_what_scikit_learn_computes(metric, same, totals):
    predicted, y = totals
    assert metric(predicted, y) == pytest.approx(same(y, predicted.double()), rel=1e-12)


def test_errors_are_taken_over_every_event_and_location():
    predicted, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1, 0], [3, 8]])
    assert mean_absolute_error(predicted, y) == 6 / 4
    assert root_mean_squared_error(predicted, y) == math.sqrt(20 / 4)


def test_mape_skips_events_without_outages(totals):
    predicted, y = totals
    pairs = [(p, a) for p, a in zip(predicted.tolist(), y.tolist(), strict=True) if a]
    expected = 100 * math.fsum(abs(p - a) / a for p, a in pairs) / len(pairs)
    assert len(pairs) == 20
    assert mape(predicted, y) == pytest.approx(expected, rel=1e-12)


def test_crmse_is_the_error_left_without_bias(totals):
    predicted, y = totals[0].tolist(), totals[1].tolist()
    mean, counted = math.fsum(predicted) / 30, math.fsum(y) / 30
    squares = [((p - mean) - (a - counted)) ** 2 for p, a in zip(predicted, y, strict=True)]
    expected = math.sqrt(math.fsum(squares) / 30)
    assert crmse(*totals) == pytest.approx(expected, rel=1e-12)
    assert ncrmse(*totals) == pytest.approx(100 * expected / counted, rel=1e-12)


def test_a_constant_bias_leaves_crmse_alone():
    y = torch.tensor([3, 40, 7])
    assert crmse(y + 1000, y) == ncrmse(y + 1000, y) == 0


def test_the_mean_of_the_totals_explains_nothing():
    y = torch.tensor([1, 2, 6])
    assert r2(torch.full((3,), 3.0), y) == 0
    assert r2(y, y) == 1
    assert r2(torch.tensor([6, 2, 1]), y) < 0


def test_float32_totals_lose_nothing_in_their_mean():
    """In float32 a sum of squares of such totals is off in its third digit."""
    y = torch.arange(10_000_000, 10_000_100)
    assert r2(y.float() + 1, y) == pytest.approx(1 - 1 / ((100**2 - 1) / 12), rel=1e-12)


def test_morisita_horn_is_its_formula(totals):
    predicted, y = totals[0].tolist(), totals[1].tolist()
    X, Y = math.fsum(predicted), math.fsum(y)
    overlap = 2 * math.fsum(p * a for p, a in zip(predicted, y, strict=True))
    own = math.fsum(p * p for p in predicted) / X**2 + math.fsum(a * a for a in y) / Y**2
    assert morisita_horn(*totals) == pytest.approx(overlap / (own * X * Y), rel=1e-12)


def test_morisita_horn_compares_patterns_and_not_totals(totals):
    predicted, y = totals
    value = morisita_horn(predicted, y)
    assert 0 < value < 1
    assert morisita_horn(1024 * predicted, y) == pytest.approx(value, rel=1e-12)
    assert morisita_horn(y, predicted) == pytest.approx(value, rel=1e-12)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert morisita_horn(predicted[order], y[order]) == pytest.approx(value, rel=1e-12)


def test_morisita_horn_at_its_ends():
    y = torch.tensor([0, 3, 1, 8])
    assert morisita_horn(0.25 * y, y) == pytest.approx(1, abs=1e-15)
    assert morisita_horn(torch.tensor([7, 0, 0, 0]), y) == 0
    assert morisita_horn(torch.zeros(4), torch.zeros(4)) == 1
    assert morisita_horn(torch.zeros(4), y) == morisita_horn(y, torch.zeros(4)) == 0


def test_the_bounds_belong_to_their_interval():
    low, high = torch.tensor([0, 2, 2, 2]), torch.tensor([0, 4, 4, 4])
    assert interval_coverage(low, high, torch.tensor([0, 2, 4, 5])) == 0.75
    assert interval_coverage(low, high, torch.tensor([1, 1, 1, 1])) == 0


@pytest.mark.parametrize("metric", PAIRED)
def test_unlike_shapes_are_never_broadcast(metric):
    with pytest.raises(GraphCLError, match=r"predicted \[3, 1\], y \[3\]"):
        metric(torch.ones(3, 1), torch.ones(3))


@pytest.mark.parametrize("metric", PAIRED)
def test_no_entries_have_no_metric(metric):
    with pytest.raises(GraphCLError, match=f"{metric.__name__}: predicted is empty"):
        metric(torch.ones(0), torch.ones(0))


@pytest.mark.parametrize("metric", PAIRED)
def test_what_is_not_finite_is_named(metric):
    with pytest.raises(GraphCLError, match=r"predicted\[1\] is nan \(1 such\)"):
        metric(torch.tensor([1.0, math.nan]), torch.tensor([1, 2]))


def test_negative_counts_are_named():
    with pytest.raises(GraphCLError, match=r"y\[1\] is -2.* must not be negative"):
        morisita_horn(torch.tensor([1, 2]), torch.tensor([1, -2]))


def test_metrics_relative_to_outages_need_some():
    nothing = torch.zeros(2)
    with pytest.raises(GraphCLError, match="mape: y is 0 in all 2 events"):
        mape(torch.ones(2), nothing)
    with pytest.raises(GraphCLError, match="ncrmse: y has the mean 0"):
        ncrmse(torch.ones(2), nothing)


@pytest.mark.parametrize("y", [[0.1, 0.1, 0.1], [4.0]])
def test_r2_needs_two_unlike_totals(y):
    with pytest.raises(GraphCLError, match=f"in all {len(y)} events"):
        r2(torch.ones(len(y)), torch.tensor(y))


def test_intervals_whose_bounds_are_swapped_are_named():
    low, high = torch.tensor([0, 5]), torch.tensor([1, 3])
    with pytest.raises(GraphCLError, match=r"interval_coverage: low\[1\] is 5.*above high"):
        interval_coverage(low, high, low)


def test_coverage_needs_a_count_for_every_interval():
    with pytest.raises(GraphCLError, match=r"y \[3\]"):
        interval_coverage(torch.zeros(2), torch.ones(2), torch.zeros(3))
