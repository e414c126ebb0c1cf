"""Gaps, constant sensors, short clients, unlike graphs, clocks: a number or a clear refusal."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from forecast_series import HOUR, NAN, holed, noise, series_of
from tiny_forecasters import HISTORY, HORIZON, every, one_layer

from graphcl.datasets import chronological_split, load_series
from graphcl.errors import DataError, GraphCLError
from graphcl.spatiotemporal import ForecasterConfig, HistoricalAverage, NetworkForecaster


def cut(values):
    """Return the parts of a series of some values, 96 steps, 32 and 32."""
    return chronological_split(series_of(values), 0.6, 0.2)


@pytest.fixture(scope="module")
def values():
    return holed(20 + 5 * noise(160, 4, 2), 0.1)


@pytest.fixture(scope="module")
def parts(values):
    return cut(values)


def finite(model, test) -> bool:
    """Whether every forecast is a number, also that from the last steps."""
    forecast = model.forecast(test).validate()
    return bool(model.predict(test).isfinite().all() and forecast.values.isfinite().all())


# Gaps


@every
def test_a_sensor_that_is_missing_throughout_training_is_forecast(make, values):
    values = values.clone()
    values[:96, 2] = NAN
    train, val, test = cut(values)
    model = make().fit(train, val)
    assert finite(model, test)
    silent = test.values.clone()
    silent[:, 2] = NAN
    away = model.predict(replace(test, values=silent))[:, :, 2] - 20
    assert away.abs().max() < 20  # four deviations


@every
def test_a_window_without_one_observation_is_forecast(make, parts):
    train, val, test = parts
    model = make().fit(train, val)
    empty = replace(test, values=torch.full_like(test.values, NAN))
    assert finite(model, empty)
    assert (model.forecast(empty).values - 20).abs().max() < 20  # four deviations


@every
def test_windows_without_observations_in_training_teach_nothing_wild(make, values):
    values = values.clone()
    values[20:60] = NAN
    train, val, test = cut(values)
    assert finite(make().fit(train, val), test)


@every
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_without_an_observation_to_forecast_is_refused(make, values, part):
    values = values.clone()
    first, end = [(HISTORY, 96), (96 + HISTORY, 128)][part]
    values[first:end] = NAN
    train, val, _ = cut(values)
    message = rf"^road: no value is observed in the {end - first} steps after the first 4 \(history"
    with pytest.raises(DataError, match=message):
        make().fit(train, val)


@every
def test_training_without_one_observation_is_refused(make, values):
    values = values.clone()
    values[:96] = NAN
    with pytest.raises(DataError, match=r"^road: no value is observed .*: give steps with observ"):
        make().fit(*cut(values)[:2])


@every
def test_a_channel_that_is_missing_throughout_training_is_refused(make, values):
    values = values.clone()
    values[:96, :, 1] = NAN
    with pytest.raises(DataError, match=r"^road: 'x1 \[1\]' has no observed value .*: leave the"):
        make().fit(*cut(values)[:2])


def test_an_error_over_nothing_is_no_perfect_score(parts):
    train, val, test = parts
    model = one_layer().fit(train, val)
    empty = replace(test, values=torch.full_like(test.values, NAN))
    with pytest.raises(DataError, match=r"^road: no value is observed"):
        model.error(model.windows(empty))


# Constant sensors


@every
@pytest.mark.parametrize("level", [0.0, 1e6, -3.3])
def test_a_constant_sensor_is_forecast_beside_others(make, values, level):
    values = values.clone()
    values[:, 1] = level
    train, val, test = cut(values)
    assert finite(make().fit(train, val), test)


@every
@pytest.mark.parametrize("level", [0.0, 1e6, -3.3])
def test_a_channel_that_is_constant_everywhere_stays_near_it(make, values, level):
    values = values.clone()
    values[..., 0] = level
    train, val, test = cut(values)
    model = make().fit(train, val)
    assert finite(model, test)
    # Two epochs leave a network within a few of the 1 that such a channel is scaled by.
    near = 10.0 if isinstance(model, NetworkForecaster) else 1e-5
    assert (model.predict(test)[..., 0] - level).abs().max() < near + 1e-6 * abs(level)


@every
def test_a_series_that_never_changes_is_forecast(make):
    train, val, test = cut(torch.full((160, 4, 2), 7.5))
    assert finite(make().fit(train, val), test)


@every
def test_a_channel_that_changes_only_after_training_is_forecast(make, values):
    values = values.clone()
    values[:96, :, 0] = 2.0
    train, val, test = cut(values)
    assert finite(make().fit(train, val), test)


# A client shorter than one window


@every
@pytest.mark.parametrize("part", [0, 1])
def test_a_part_shorter_than_a_window_is_refused_at_fit(make, parts, part):
    given = [*parts[:2]]
    given[part] = given[part].between(0, 6)
    message = r"^road: 6 steps are fewer than the 7 of one window \(history 4 and horizon 3\): give"
    with pytest.raises(DataError, match=message):
        make().fit(*given)


@every
def test_a_series_shorter_than_a_window_is_refused_at_predict_and_forecast(make, parts):
    train, val, test = parts
    model = make().fit(train, val)
    with pytest.raises(DataError, match=r"^road: 6 steps are fewer than the 7 of one window"):
        model.predict(test.between(0, 6))
    message = "^road: forecast: 3 steps are fewer than the 4 .*; give a longer window"
    with pytest.raises(DataError, match=message):
        model.forecast(test.between(0, 3))


@every
def test_parts_of_exactly_one_window_train(make, values):
    series = series_of(values)
    one = HISTORY + HORIZON
    model = make().fit(series.between(0, one), series.between(one, 2 * one))
    assert finite(model, series.between(2 * one, 3 * one))


# Unlike graphs


OTHERS = {
    "fewer nodes": (
        lambda s: s.at([0, 2]),
        "node: .* trained on 4 .*: missing n1, n3; unknown none",
    ),
    "other names": (
        lambda s: replace(s, node=("n0", "n1", "n2", "n9")),
        "node: .* trained on 4 .*: missing n3; unknown n9",
    ),
    "another order": (
        lambda s: s.at([1, 0, 2, 3]),
        "node: .* on 4 in another order .*: missing none; unknown none",
    ),
    "fewer channels": (
        lambda s: replace(s, values=s.values[..., :1], channel_names=("x0 [1]",)),
        r"channel_names: .* on 2 .*: missing x1 \[1\]; unknown none",
    ),
    "other units": (
        lambda s: replace(s, channel_names=("x0 [1]", "x1 [mph]")),
        r"channel_names: .*: missing x1 \[1\]; unknown x1 \[mph\]",
    ),
    "another interval": (
        lambda s: replace(s, interval=300),
        "interval is 300 s, but the forecaster was trained on steps of 3600 s: resample",
    ),
}
others = pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)


@every
@others
def test_another_graph_than_that_of_training_is_refused(make, parts, change, message):
    train, val, test = parts
    model = make().fit(train, val)
    for ask in (model.predict, model.forecast):
        with pytest.raises(DataError, match=f"^road: {message}"):
            ask(change(test))


@every
@others
def test_validation_steps_of_another_graph_are_refused(make, parts, change, message):
    train, val, _ = parts
    with pytest.raises(DataError, match=f"^road: {message}"):
        make().fit(train, change(val))


@every
def test_a_forecaster_that_learned_nothing_refuses_to_forecast(make, parts):
    for ask in (make().predict, make().forecast):
        with pytest.raises(GraphCLError, match="has no weights yet; call fit or load first"):
            ask(parts[2])


@every
def test_a_fit_that_is_refused_leaves_the_forecaster_as_it_was(make, parts, values):
    train, val, test = parts
    model = make().fit(train, val)
    expected = model.predict(test)
    mute = values[:96].clone()
    mute[..., 1] = NAN
    for given in (
        (train.between(0, 3), val),
        (train, val.between(0, 3)),
        (train.at([0, 1]), val),
        (replace(train, values=mute), val),
    ):
        with pytest.raises(DataError):
            model.fit(*given)
        assert torch.equal(model.predict(test), expected)


@every
def test_nodes_without_edges_are_forecast(make, parts):
    train, val, test = (
        replace(part, edge_index=part.edge_index[:, :0], edge_weight=part.edge_weight[:0])
        for part in parts
    )
    assert finite(make().fit(train, val), test)


# Clocks

CHANGED = datetime(2012, 3, 25, 1, tzinfo=UTC)  # Berlin's clocks are set forward
ROWS = 160


@pytest.fixture
def load(tmp_path):
    """Return what loads a series of one node from the text of its times."""

    def read(texts):
        path = tmp_path / "road.npz"
        rows = np.sin(np.arange(len(texts)) * 2 * np.pi / 24)[:, None]
        channel = np.array(["x [1]"])
        edges = np.empty((0, 2), dtype=np.int64)
        np.savez(path, values=rows, channel_names=channel, edges=edges, time=np.array(texts))
        return load_series(path)

    return read


def hours(back_from=CHANGED, rows=ROWS) -> list[datetime]:
    """Return hours in UTC, a third of them after clocks are set."""
    return [back_from + timedelta(hours=row - 2 * rows // 3) for row in range(rows)]


def berlin(time: datetime, autumn: bool = False) -> datetime:
    """Return a time in Berlin near that change, or near the one in autumn."""
    change = datetime(2012, 10, 28, 1, tzinfo=UTC) if autumn else CHANGED
    summer = (time >= change) != autumn
    return time.astimezone(timezone(timedelta(hours=2 if summer else 1)))


@every
def test_time_in_utc_and_with_offsets_goes_on_through_a_change_of_clocks(make, load):
    forecasts = []
    for texts in (
        [time.isoformat() for time in hours()],
        [berlin(time).isoformat() for time in hours()],
    ):
        series = load(texts)
        train, val, _ = chronological_split(series, 0.5, 0.2)  # clocks change in validation
        model = make().fit(train, val)
        assert finite(model, series)
        forecasts.append(model.forecast(series))
        assert forecasts[-1].time[0] == series.time[-1] + np.timedelta64(HOUR, "s")
    assert torch.equal(forecasts[0].values, forecasts[1].values)
    assert forecasts[0].start == forecasts[1].start


def test_a_day_is_as_long_where_clocks_change(load):
    series = load([time.isoformat() for time in hours()])
    train, val, test = chronological_split(series, 0.5, 0.2)
    model = HistoricalAverage(ForecasterConfig(HISTORY, HORIZON)).fit(train, val)
    windows = model.windows(test)
    y = windows.batch(torch.arange(len(windows))).y
    torch.testing.assert_close(model.predict(test), y, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("autumn", "message"), [(False, "an hour of a Sunday night is"), (True, "that was there alrea")]
)
def test_local_time_never_reaches_a_forecaster(load, autumn, message):
    change = datetime(2012, 10, 28, 1, tzinfo=UTC) if autumn else CHANGED
    local = [berlin(time, autumn).replace(tzinfo=None).isoformat() for time in hours(change)]
    with pytest.raises(DataError, match=rf"road\.npz: time\[\d+\] is .*{message}.*: write UTC"):
        load(local)


def test_a_time_that_is_there_twice_never_reaches_a_forecaster(load):
    texts = [f"{time:%Y-%m-%dT%H:%M}Z" for time in hours()]
    texts[50] = texts[49]
    message = re.escape("road.npz: time[50] is 2012-03-22T16:00:00 again (1 such): keep one row")
    with pytest.raises(DataError, match=message):
        load(texts)


@every
def test_rows_that_are_left_out_are_gaps(make, load):
    kept = [time for row, time in enumerate(hours()) if row % 7 and not 40 <= row < 60]
    series = load([f"{time:%Y-%m-%dT%H:%M}Z" for time in kept])
    assert series.num_steps == ROWS - 1
    train, val, test = chronological_split(series, 0.6, 0.2)
    assert finite(make().fit(train, val), test)
