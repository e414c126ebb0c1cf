"""A forecast that an operator acts on: totals, intervals, and the files that carry it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphcl.errors import DataError, GraphCLError
from graphcl.outages import ForecasterConfig, OutageForecaster, SAHGNNConfig

SMALL = SAHGNNConfig(hidden_channels=8, epochs=3)


def forecaster(**changes):
    return OutageForecaster(SMALL, ForecasterConfig(**{"members": 2, "folds": 3, **changes}))


@pytest.fixture(scope="module")
def fitted(events):
    return forecaster().fit(events.of([0, 1, 2, 3, 4]))


@pytest.fixture
def storm(events):
    return replace(events.of([5]), outages=None)


def test_totals_are_sums_of_what_is_expected(fitted, storm):
    forecast = fitted.predict(storm)
    assert float(forecast.expected.double().sum()) == pytest.approx(forecast.total.expected)
    assert [total.name for total in forecast.districts] == list(storm.districts())
    for total, members in zip(forecast.districts, storm.districts().values(), strict=True):
        assert total.expected == pytest.approx(float(forecast.expected[members].double().sum()))
    summed = sum(total.expected for total in forecast.districts)
    assert summed == pytest.approx(forecast.total.expected)


def test_bounds_are_whole_and_ordered(fitted, storm):
    forecast = fitted.predict(storm)
    assert forecast.low.shape == forecast.high.shape == forecast.expected.shape == (50,)
    assert (forecast.low <= forecast.high).all()
    assert torch.equal(forecast.high, forecast.high.round())
    for total in (*forecast.districts, forecast.total):
        assert 0 <= total.low <= total.high
        assert total.low == round(total.low)


def test_few_events_promise_less_of_totals_than_of_locations(fitted, storm):
    forecast = fitted.predict(storm)
    assert forecast.level == 0.9  # 250 situations
    assert forecast.districts[0].level == 0.9  # 20 situations carry 19 / 21
    assert forecast.total.level == pytest.approx(4 / 6)  # 5 events


def test_the_expectation_is_the_mean_of_networks_that_start_apart(fitted, storm):
    one, other = (model.predict(storm) for model in fitted.models)
    assert not torch.equal(one, other)
    torch.testing.assert_close(fitted.expected(storm), (one + other) / 2)


@pytest.mark.parametrize("folds", [2, 3, 8])
def test_intervals_are_calibrated_on_events_that_a_network_had_not_seen(folds, events, monkeypatch):
    trained, predicted = [], []

    class Fake:
        def fit(self, part):
            self.seen = part.event
            trained.append(part.event)
            return self

        def predict(self, part):
            assert not set(part.event) & set(self.seen)
            predicted.extend(part.event)
            return part.outages.float()

    model = forecaster(folds=folds)
    monkeypatch.setattr(model, "_network", lambda member: Fake())
    calls = []
    model.fit(events, lambda: calls.append(1))
    assert sorted(predicted) == sorted(events.event)
    assert len(calls) == len(trained) == model.trainings(6) == 2 + min(folds, 6)
    assert trained[-2:] == [events.event] * 2  # the networks that forecast see all
    assert (model.locations.low == 0).all()  # perfect predictions of the unseen


def test_a_saved_forecaster_gives_the_same_forecast_without_pickle(fitted, storm, tmp_path):
    fitted.save(tmp_path / "model")
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"network0.safetensors", "intervals.safetensors", "territory.npz"} <= names
    with np.load(tmp_path / "model" / "territory.npz", allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)
    again = OutageForecaster.load(tmp_path / "model")
    one, other = fitted.predict(storm), again.predict(storm)
    for field in ("expected", "low", "high"):
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert (one.districts, one.total, one.level) == (other.districts, other.total, other.level)
    assert (again.config, again.forecaster) == (fitted.config, fitted.forecaster)
    assert again.territory.location == storm.location
    assert torch.equal(again.territory.static, storm.static)


def test_no_past_storm_leaves_with_the_territory(fitted, events, tmp_path):
    fitted.save(tmp_path / "model")
    territory = OutageForecaster.load(tmp_path / "model").territory
    assert territory.outages is None
    assert (territory.weather == 0).all()


def test_a_feature_that_the_first_event_lacks_can_be_saved(events, tmp_path):
    """The whole of a training would be lost in its last step."""
    weather = events.weather.clone()
    weather[0, :, 3] = torch.nan
    forecaster(members=1).fit(replace(events, weather=weather)).save(tmp_path / "model")
    assert OutageForecaster.load(tmp_path / "model").models


def test_a_folder_that_exists_is_left_alone(fitted, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(GraphCLError, match=r"model exists already: name a new folder"):
        fitted.save(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_a_folder_without_a_forecaster_is_named(fitted, tmp_path):
    with pytest.raises(GraphCLError, match=r"none.intervals\.safetensors: no saved model"):
        OutageForecaster.load(tmp_path / "none")
    fitted.save(tmp_path / "model")
    fitted.models[0].save(tmp_path / "model" / "intervals.safetensors")
    with pytest.raises(GraphCLError, match="model: no saved forecaster"):
        OutageForecaster.load(tmp_path / "model")


def test_what_was_not_fitted_neither_forecasts_nor_leaves_a_folder(storm, tmp_path):
    for act in (lambda f: f.predict(storm), lambda f: f.save(tmp_path / "model")):
        with pytest.raises(GraphCLError, match="no networks yet; call fit or load first"):
            act(forecaster())
    assert not (tmp_path / "model").exists()


def test_too_few_events_or_none_with_counts_are_refused(events):
    with pytest.raises(GraphCLError, match=r"at least 3 events with counts, .* there are 2$"):
        forecaster().fit(events.of([0, 1]))
    with pytest.raises(GraphCLError, match="there are 6 without counts"):
        forecaster().fit(replace(events, outages=None))
    with pytest.raises(GraphCLError, match="all counts of the 6 events are zero"):
        forecaster().fit(replace(events, outages=torch.zeros_like(events.outages)))


def test_several_storms_or_other_features_are_refused(fitted, events):
    with pytest.raises(GraphCLError, match=r"one storm, not 6: use of\(\[i\]\)"):
        fitted.predict(events)
    other = replace(events.of([5]), weather_names=("snow [cm]", *events.weather_names[1:]))
    with pytest.raises(DataError, match="weather_names"):
        fitted.predict(other)
