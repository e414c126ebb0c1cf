"""Forecasters without gradients, against loops and least squares of numpy."""

import numpy as np
import pytest
import torch
from forecast_series import DAY, NAN, holed, noise, series_of
from torch import Tensor

from graphcl.datasets import Windows, chronological_split, load_series
from graphcl.metrics import masked_mae
from graphcl.spatiotemporal import (
    ForecasterConfig,
    HistoricalAverage,
    LastValue,
    LinearForecaster,
)
from graphcl.spatiotemporal.naive import _RIDGE

HISTORY, HORIZON = 5, 3
CONFIG = ForecasterConfig(HISTORY, HORIZON)

channels = pytest.mark.parametrize("num_channels", [1, 2])
gaps = pytest.mark.parametrize("share", [0.0, 0.3], ids=["complete", "gaps"])


def daily(num_steps: int, num_channels: int, share: float = 0.0) -> Tensor:
    """Return values with a cycle of a day, a level per node and channel, and noise."""
    hour = 2 * torch.pi * torch.arange(num_steps) / 24
    shift = torch.arange(3.0 * num_channels).view(1, 3, num_channels)
    wave = 4 * (hour[:, None, None] + shift).sin() + 10 * shift
    return holed(wave + noise(*wave.shape), share)


def at(series, step: int, node: int, channel: int) -> float:
    return float(series.values[step, node, channel])


@channels
def test_last_value_repeats_what_was_observed_last(num_channels) -> None:
    series = series_of(daily(200, num_channels, 0.3))
    series.values[160:166, 1] = NAN  # longer than a window
    train, val, test = chronological_split(series, 0.5, 0.2)
    found = LastValue(CONFIG).fit(train, val).predict(test)
    assert found.shape == (60 - 8 + 1, HORIZON, 3, num_channels)
    mean = np.nanmean(train.values.double(), (0, 1))
    for window, node, channel in np.ndindex(len(found), 3, num_channels):
        seen = [at(test, window + step, node, channel) for step in range(HISTORY)]
        expected = next((v for v in reversed(seen) if v == v), mean[channel])
        assert found[window, :, node, channel].tolist() == pytest.approx([expected] * 3, abs=1e-4)


@channels
@gaps
def test_the_historical_average_is_that_of_a_loop(num_channels, share) -> None:
    series = series_of(daily(300, num_channels, share))
    series.values[:210, 0, 0].view(-1)[4::24] = NAN  # never seen at four o'clock
    series.values[:210, 2, -1] = NAN if share else 7.0  # never seen at all; constant
    train, val, test = chronological_split(series, 0.7, 0.1)
    found = HistoricalAverage(CONFIG).fit(train, val).predict(test)
    means = np.nanmean(train.values.double(), (0, 1))
    for node, channel in np.ndindex(3, num_channels):
        values = train.values[:, node, channel].double().numpy()
        known = values[~np.isnan(values)]
        overall = known.mean() if len(known) else means[channel]
        for window, ahead in np.ndindex(len(found), HORIZON):
            hour = (240 + window + HISTORY + ahead) % 24
            own = values[hour::24]
            own = own[~np.isnan(own)]
            expected = own.mean() if len(own) else overall
            assert float(found[window, ahead, node, channel]) == pytest.approx(expected, abs=1e-4)


def test_the_historical_average_is_the_mean_where_no_cycle_was_seen_twice() -> None:
    train, val, test = chronological_split(series_of(daily(60, 2)), 0.6, 0.2)
    found = HistoricalAverage(CONFIG).fit(train, val).predict(test)
    torch.testing.assert_close(found, train.values.mean(0).expand_as(found), rtol=1e-4, atol=1e-4)


def test_the_average_of_the_weeks_of_a_year_has_the_season_in_all_of_them() -> None:
    # 52.18 weeks make a year: the rest of a week must not be a place that no training year had.
    week = torch.arange(30 * 52)
    season = (2 * torch.pi * week * 7 * DAY / 31_556_952).cos().view(-1, 1, 1)
    train, val, test = chronological_split(series_of(season, 7 * DAY), 0.1, 0.1)
    forecaster = HistoricalAverage(CONFIG).fit(train, val)
    windows = Windows(test, HISTORY, HORIZON)
    y = windows.batch(torch.arange(len(windows))).y
    assert (forecaster.predict(test) - y).abs().max() < 0.25


def ridge_regression(train, test) -> Tensor:
    """Return forecasts of numpy's least squares, fitted to each output on rows of its own."""
    C = train.num_channels
    scale = [np.nanmean(train.values.double(), (0, 1)), np.nanstd(train.values.double(), (0, 1))]

    def rows(series):
        values = (series.values.double().numpy() - scale[0]) / scale[1]
        features, targets = [], []
        for start in range(series.num_steps - HISTORY - HORIZON + 1):
            for node in range(series.num_nodes):
                x = values[start : start + HISTORY, node]
                seen = [x[~np.isnan(x[:, c]), c] for c in range(C)]
                level = np.array([s[-1] if len(s) else 0.0 for s in seen])
                features.append([*np.nan_to_num(x - level).flatten(), *level, 1.0])
                y = values[start + HISTORY : start + HISTORY + HORIZON, node]
                targets.append((y - level).flatten())
        return np.array(features), np.array(targets)

    X, Y = rows(train)
    queries, _ = rows(test)
    levels = queries[:, HISTORY * C : HISTORY * C + C]
    outputs = []
    for output in range(HORIZON * C):
        known = ~np.isnan(Y[:, output])
        A, b = X[known], Y[known, output]
        # Ridge regression is least squares with a row more for each feature.
        extra = np.sqrt(_RIDGE * (A**2).sum(0).mean()) * np.eye(A.shape[1])
        A, b = np.concatenate([A, extra]), np.concatenate([b, np.zeros(len(extra))])
        weight = np.linalg.lstsq(A, b, rcond=None)[0]
        outputs.append(queries @ weight + levels[:, output % C])
    forecast = np.stack(outputs, -1).reshape(-1, test.num_nodes, HORIZON, C)
    return torch.from_numpy(forecast.transpose(0, 2, 1, 3) * scale[1] + scale[0])


@channels
@gaps
def test_the_linear_forecaster_is_least_squares_with_a_tiny_ridge(num_channels, share) -> None:
    train, val, test = chronological_split(series_of(daily(200, num_channels, share)), 0.6, 0.1)
    found = LinearForecaster(CONFIG).fit(train, val).predict(test)
    expected = ridge_regression(train, test)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-3)
    assert expected.std() > 1


def test_a_channel_reads_the_windows_of_all_channels() -> None:
    lead = noise(400, 3, 1)
    series = series_of(torch.cat([lead, lead.roll(1, 0)], -1))  # the second repeats the first
    train, val, test = chronological_split(series)
    found = LinearForecaster(CONFIG).fit(train, val).predict(test)
    windows = Windows(test, HISTORY, HORIZON)
    error = (found - windows.batch(torch.arange(len(windows))).y)[:, 0].abs().mean((0, 1))
    assert error[0] > 0.5
    assert error[1] < 0.05


def test_an_output_that_was_never_observed_falls_back_on_the_last_value() -> None:
    values = daily(40, 2)
    values[HISTORY:28, :, 1] = NAN
    train, val, _ = chronological_split(series_of(values), 0.7, 0.2)
    one = LinearForecaster(CONFIG).fit(train, val).predict(val)
    other = LastValue(CONFIG).fit(train, val).predict(val)
    torch.testing.assert_close(one[..., 1], other[..., 1])
    assert not torch.allclose(one[..., 0], other[..., 0], atol=0.1)


def test_a_season_of_real_counts_is_told_from_training_years(data_root) -> None:
    series = load_series(
        data_root / "spatiotemporal" / "ili_us_hhs_regions.npz",
        names={"values": "counts"},
        channel_names=["cases [1]"],
        start="2002-09-30",
        interval=7 * DAY,
    )
    train, val, test = chronological_split(series, 0.6, 0.2)
    config = ForecasterConfig(history=8, horizon=12)
    windows = Windows(test, 8, 12)
    y = windows.batch(torch.arange(len(windows))).y[:, -1]
    errors: dict[type, float] = {}
    for kind in (LastValue, HistoricalAverage, LinearForecaster):
        found = kind(config).fit(train, val).predict(test)
        errors[kind] = masked_mae(found[:, -1], y, ~y.isnan())
    assert errors[HistoricalAverage] < 0.75 * errors[LastValue]  # 0.63 when written
    assert errors[LinearForecaster] < 0.9 * errors[LastValue]  # 0.81 when written


@pytest.mark.parametrize("kind", [LastValue, HistoricalAverage, LinearForecaster])
def test_a_file_keeps_the_forecasts(kind, tmp_path) -> None:
    train, val, test = chronological_split(series_of(daily(300, 2, 0.3)), 0.7, 0.1)
    model = kind(CONFIG).fit(train, val)
    model.save(tmp_path / "model.safetensors")
    loaded = kind.load(tmp_path / "model.safetensors", test)
    assert torch.equal(loaded.predict(test), model.predict(test))
    assert loaded.config == model.config
