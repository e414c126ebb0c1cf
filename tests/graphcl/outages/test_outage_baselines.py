"""What forecasts are compared with: trees, and the last similar storm."""

from dataclasses import replace

import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.metrics import root_mean_squared_error
from graphcl.outages import LastSimilarStorm, NoOutages, OutageTrees


def test_the_counts_are_exactly_those_of_the_most_similar_storm(events):
    model = LastSimilarStorm().fit(events)
    order = [4, 1, 1, 0]
    noise = torch.randn(4, *events.weather.shape[1:], generator=torch.Generator().manual_seed(0))
    weather = events.weather[order] * (1 + 0.01 * noise)
    asked = replace(
        events, event=tuple("abcd"), event_type=("storm",) * 4, weather=weather, outages=None
    )
    assert torch.equal(model.predict(asked), events.outages[order].float())


def test_missing_weather_does_not_hide_the_similar_storm(events):
    weather = events.weather.clone()
    weather[:, 0, 0] = torch.nan
    model = LastSimilarStorm().fit(replace(events, weather=weather))
    assert torch.equal(model.predict(events), events.outages.float())


def test_the_last_similar_storm_speaks_of_its_own_locations_only(events, shuffled):
    model = LastSimilarStorm().fit(events)
    with pytest.raises(GraphCLError, match=r"known at 50 locations, .* not at these 10"):
        model.predict(events.at(torch.arange(10)))
    with pytest.raises(GraphCLError, match="the same ones in the same order"):
        model.predict(shuffled.events)


@pytest.mark.parametrize("kind", ["boosting", "forest"])
def test_trees_learn_are_repeatable_and_never_negative(kind, events):
    past, new = events.of([0, 1, 2, 3, 4]), events.of([5])
    expected = OutageTrees(kind).fit(past).predict(new)
    assert expected.shape == (1, 50)
    assert (expected >= 0).all()
    assert torch.equal(OutageTrees(kind).fit(past).predict(new), expected)
    fitted = OutageTrees(kind).fit(past).predict(past)
    observed = past.outages.float()
    mean = observed.mean().expand_as(observed)
    assert root_mean_squared_error(fitted, observed) < 0.7 * root_mean_squared_error(mean, observed)


@pytest.mark.parametrize("kind", ["boosting", "forest"])
def test_trees_take_missing_values(kind, events):
    weather = events.weather.clone()
    weather[:, ::3, 0] = torch.nan
    holed = replace(events, weather=weather)
    assert OutageTrees(kind).fit(holed).predict(holed).isfinite().all()


@pytest.mark.parametrize("model", [OutageTrees("boosting"), LastSimilarStorm()])
def test_events_without_counts_teach_nothing(model, events):
    with pytest.raises(GraphCLError, match="the events have no counts to learn from"):
        model.fit(replace(events, outages=None))


@pytest.mark.parametrize("kind", ["boosting", "forest"])
def test_trees_that_never_saw_an_outage_expect_none(kind, events):
    quiet = replace(events, outages=torch.zeros_like(events.outages))
    trees = OutageTrees(kind).fit(quiet)
    assert torch.equal(trees.predict(events.of([0, 1])), torch.zeros(2, 50))
    assert float(trees.fit(events).predict(events).sum()) > 0  # and can learn better


def test_no_outages_are_expected_anywhere(events) -> None:
    expected = NoOutages().fit(events).predict(events)
    assert expected.shape == events.outages.shape
    assert not expected.any()
