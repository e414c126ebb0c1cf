"""Metrics of forecasts against loops over the observed entries in double precision."""

import itertools
import math

import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.metrics import masked_mae, masked_mape, masked_rmse

METRICS = (masked_mae, masked_rmse, masked_mape)


@pytest.fixture
def forecast():
    """Forecasts [B, horizon, N, C] of speeds, of which some are 0 and some missing."""
    rng = torch.Generator().manual_seed(0)
    y = 70 * torch.rand(6, 4, 5, 2, generator=rng)
    y[torch.rand(y.shape, generator=rng) < 0.1] = 0
    mask = torch.rand(y.shape, generator=rng) < 0.8
    predicted = y + torch.randn(y.shape, generator=rng)
    y[~mask] = math.nan
    predicted[~mask] = math.inf
    return predicted, y, mask


def observed(predicted, y, mask):
    """Return the pairs of forecast and observation, one by one."""
    return [
        (predicted[entry].item(), y[entry].item())
        for entry in itertools.product(*map(range, y.shape))
        if mask[entry]
    ]


def test_errors_are_those_of_a_loop_over_what_was_observed(forecast):
    pairs = observed(*forecast)
    mae = math.fsum(abs(p - a) for p, a in pairs) / len(pairs)
    rmse = math.sqrt(math.fsum((p - a) ** 2 for p, a in pairs) / len(pairs))
    assert len(pairs) < forecast[1].numel()
    assert masked_mae(*forecast) == pytest.approx(mae, rel=1e-12)
    assert masked_rmse(*forecast) == pytest.approx(rmse, rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 10.0])
def test_mape_is_that_of_a_loop_over_what_exceeds_the_floor(forecast, floor):
    pairs = [(p, a) for p, a in observed(*forecast) if abs(a) > floor]
    expected = 100 * math.fsum(abs(p - a) / abs(a) for p, a in pairs) / len(pairs)
    assert len(pairs) < len(observed(*forecast))
    assert masked_mape(*forecast, floor=floor) == pytest.approx(expected, rel=1e-12)


def test_mape_of_a_negative_observation_is_positive_and_the_floor_is_left_out():
    predicted, y = torch.tensor([-1.0, 100.0]), torch.tensor([-2.0, 1.0])
    mask = torch.tensor([True, True])
    assert masked_mape(predicted, y, mask, floor=1.0) == 50.0


@pytest.mark.parametrize("metric", METRICS)
def test_what_the_mask_hides_changes_nothing(metric, forecast):
    predicted, y, mask = forecast
    other = torch.where(mask, predicted, -5.0)
    assert metric(other, torch.where(mask, y, 3.0), mask) == metric(predicted, y, mask)


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_forecast_has_no_error(metric, forecast):
    _, y, mask = forecast
    assert metric(y, y, mask) == 0


RULES = {
    "shapes": (
        (torch.ones(3, 1), torch.ones(3), torch.ones(3).bool()),
        r"the shapes differ \(predicted \[3, 1\], y \[3\], mask \[3\]\)",
    ),
    "mask": (
        (torch.ones(3), torch.ones(3), torch.ones(1).bool()),
        r"the shapes differ .* mask \[1\]\)",
    ),
    "weights": ((torch.ones(3),) * 3, "mask is torch.float32, must be bool"),
    "unobserved": (
        (torch.ones(3), torch.ones(3), torch.zeros(3).bool()),
        "nothing is observed in 3 entries",
    ),
    "empty": ((torch.ones(0), torch.ones(0), torch.ones(0).bool()), "nothing is observed in 0"),
    "diverged": (
        (torch.tensor([[1.0, math.nan]]), torch.ones(1, 2), torch.ones(1, 2).bool()),
        r"predicted\[0, 1\] is nan \(1 such\): must be finite where the mask is True",
    ),
    "false mask": (
        (torch.ones(2), torch.tensor([math.nan, 1.0]), torch.ones(2).bool()),
        r"y\[0\] is nan",
    ),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("given", "message"), RULES.values(), ids=RULES.keys())
def test_what_has_no_mean_is_named(metric, given, message):
    with pytest.raises(GraphCLError, match=f"{metric.__name__}: {message}"):
        metric(*given)


def test_mape_needs_an_observation_above_a_floor_that_is_one():
    ones, mask = torch.ones(4), torch.ones(4).bool()
    with pytest.raises(GraphCLError, match=r"masked_mape: none of the 4 .* floor of 0\.0"):
        masked_mape(ones, torch.zeros(4), mask)
    for floor in (-1.0, math.nan):
        with pytest.raises(GraphCLError, match=r"masked_mape: floor is .* must not be negative"):
            masked_mape(ones, ones, mask, floor=floor)
