"""Simulated storms: counts follow the stated rates, and rates follow wind, trees and direction."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
import torch

from graphcl.datasets import simulate_storms
from graphcl.errors import DataError


@pytest.fixture(scope="module")
def storms():
    return simulate_storms(num_events=60)


def tensors(simulation):
    events = {
        field.name: getattr(simulation.events, field.name) for field in fields(simulation.events)
    }
    truth = {name: getattr(simulation, name) for name in ("rate", "fragility", "track", "wind")}
    return {name: value for name, value in (events | truth).items() if torch.is_tensor(value)}


def test_one_seed_decides_everything(storms):
    again, other = simulate_storms(num_events=60), simulate_storms(num_events=60, seed=1)
    for name, value in tensors(storms).items():
        assert torch.equal(value, tensors(again)[name]), name
        assert name == "borders" or not torch.equal(value, tensors(other)[name]), name


def test_more_events_leave_the_first_as_they_were(storms):
    few = simulate_storms(num_events=5)
    assert torch.equal(few.events.weather, storms.events.weather[:5])
    assert torch.equal(few.events.outages, storms.events.outages[:5])


def test_shapes_types_and_units_are_the_documented_ones(storms):
    events = storms.events.validate()
    assert repr(events) == (
        "OutageEvents(60 events, 400 locations in 4 districts, 7 static and 8 weather features, "
        "760 borders)"
    )
    assert storms.rate.shape == storms.wind.shape == (60, 400)
    assert storms.fragility.shape == (400,)
    assert storms.track.shape[::2] == (60, 2)
    assert storms.track.dtype == torch.float64
    assert {storms.rate.dtype, storms.wind.dtype, storms.fragility.dtype} == {torch.float32}
    assert events.customers.min() >= 5
    assert set(events.event_type) == {"thunderstorm", "rain/wind", "ice", "tropical"}


def test_counts_are_poisson_with_the_stated_rate(storms):
    rate, outages = storms.rate.double(), storms.events.outages.double()
    assert (rate <= storms.events.customers).all()
    # Five standard deviations of the total; the standardized residuals have variance one.
    assert abs((outages - rate).sum()) < 5 * rate.sum().sqrt()
    busy = rate > 1
    residual = (outages - rate)[busy] / rate[busy].sqrt()
    assert float(residual.square().mean()) == pytest.approx(1.0, abs=0.1)
    assert (outages[rate == 0] == 0).all()


def test_rising_kinds_of_storm_break_more(storms):
    kinds = np.array(storms.events.event_type)
    totals = storms.events.outages.sum(dim=1).double().numpy()
    median = {kind: np.median(totals[kinds == kind]) for kind in set(kinds.tolist())}
    assert 1 < median["thunderstorm"] < median["rain/wind"] < median["tropical"]
    assert 1000 < median["tropical"] < 20_000
    assert (storms.events.outages == 0).double().mean() > 0.3


def test_more_wind_breaks_more_per_unit_of_fragility(storms):
    damage = (storms.events.outages / storms.fragility).flatten()
    order = storms.wind.flatten().argsort()
    quarters = [damage[part].mean().item() for part in order.chunk(4)]
    assert quarters == sorted(quarters)
    assert quarters[3] > 5 * quarters[1]


def test_ice_falls_only_in_ice_storms_and_breaks_lines_in_calm_air(storms):
    ice = storms.events.weather[..., storms.events.weather_names.index("ice [mm]")]
    icy = torch.tensor([kind == "ice" for kind in storms.events.event_type])
    assert (ice[~icy] == 0).all()
    assert (ice[icy] > 0).all()
    calm = storms.wind < 13
    assert storms.rate[icy][calm[icy]].mean() > 10 * storms.rate[~icy][calm[~icy]].mean()


def positions_km(simulation):
    """Return km east and north of the mean location, on a local plane."""
    lat, lon = simulation.events.latlon.unbind(dim=1)
    east = (lon - lon.mean()) * torch.cos(torch.deg2rad(torch.tensor(41.6)))
    return 111.19 * torch.stack([east, lat - lat.mean()], dim=1)


def test_neighbours_are_a_cell_apart():
    simulation = simulate_storms(90, 1, spacing=2.0)
    u, v = simulation.events.borders
    assert len(u) == 9 * 9 + 80  # a grid of nine rows of ten: 9 in each row, 80 between rows
    xy = positions_km(simulation)
    distance = (xy[u] - xy[v]).norm(dim=1)
    assert distance.min() > 2.0 * 0.6 - 1e-3
    assert distance.max() < 2.0 * 1.5
    assert float(distance.mean()) == pytest.approx(2.0, rel=0.1)


def test_gusts_are_higher_near_the_track_and_to_its_right():
    """On average over tropical storms, since terrain and texture scale the wind at random."""
    simulation = simulate_storms(num_events=1200)
    events = simulation.events
    scale = torch.tensor([111.19 * np.cos(np.deg2rad(41.6)), 111.19])
    nearer, righter = [], []
    for e in (e for e, kind in enumerate(events.event_type) if kind == "tropical"):
        track = simulation.track[e].flip(1) * scale
        heading = (track[-1] - track[0]) / (track[-1] - track[0]).norm()
        assert torch.allclose(events.weather[e, :, 5:7].double(), heading, atol=1e-5)
        offset = events.latlon.flip(1) * scale - track[0]
        right = offset @ torch.stack([heading[1], -heading[0]])
        wind = simulation.wind[e]
        nearer.append(wind[right.abs() < 40].mean() - wind[right.abs() > 60].mean())
        righter.append(wind[(right > 15) & (right < 45)].mean())
        righter[-1] = righter[-1] - wind[(right < -15) & (right > -45)].mean()
    assert torch.stack(nearer).nanmean() > 3
    assert torch.stack(righter).nanmean() > 2.5


def test_trees_upwind_explain_damage_that_trees_downwind_do_not(storms):
    events = storms.events
    xy, canopy = positions_km(storms), events.static[:, 2]
    gain = {"upwind": [], "downwind": []}
    for e in (e for e, kind in enumerate(events.event_type) if kind in ("tropical", "rain/wind")):
        heading = events.weather[e, 0, 5:7].double()
        load = ((storms.wind[e] - 13).clamp(min=0) / 10) ** 2
        around = {"upwind": torch.zeros(400), "downwind": torch.zeros(400)}
        for a, b in events.borders.T.tolist():
            step = float((xy[b] - xy[a]) @ heading)
            ahead, behind = (b, a) if step > 0 else (a, b)
            around["upwind"][ahead] += abs(step) * load[behind] * canopy[behind]
            around["downwind"][behind] += abs(step) * load[ahead] * canopy[ahead]
        keep = load > 0.05
        own = (0.3 + canopy[keep]) * load[keep]
        y = (storms.rate[e] / storms.fragility)[keep] - own  # what a location's own wind leaves
        for side, value in around.items():
            pair = torch.stack([y / load[keep], value[keep] / load[keep]])
            gain[side].append(float(torch.corrcoef(pair)[0, 1]))
    assert np.mean(gain["upwind"]) > np.mean(gain["downwind"]) + 0.2


def test_observed_weather_follows_the_truth_but_is_not_it(storms):
    gust = storms.events.weather[..., 0]
    assert float(torch.corrcoef(torch.stack([gust.flatten(), storms.wind.flatten()]))[0, 1]) > 0.95
    assert (gust - storms.wind).std() > 1
    assert (storms.events.weather[..., :5] >= 0).all()


def test_selecting_locations_keeps_their_counts_beside_their_weather(storms):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    shuffled = storms.events.at(order).validate()
    assert torch.equal(shuffled.outages, storms.events.outages[:, order])
    assert torch.equal(shuffled.weather, storms.events.weather[:, order])
    back = shuffled.at(order.argsort())
    assert torch.equal(back.borders, storms.events.borders)
    assert back.location == storms.events.location


def test_districts_are_strips_from_west_to_east(storms):
    longitude = storms.events.latlon[:, 1]
    strips = [longitude[members] for members in storms.events.districts().values()]
    assert [len(strip) for strip in strips] == [100] * 4
    assert all(one.max() < other.min() for one, other in pairwise(strips))


def test_twenty_thousand_locations_are_feasible_and_no_rate_passes_the_customers():
    simulation = simulate_storms(20_000, num_districts=8)
    assert simulation.events.outages.shape == (24, 20_000)
    assert (simulation.rate <= simulation.events.customers).all()
    assert (simulation.rate == simulation.events.customers).any()


@pytest.mark.parametrize(("num_locations", "districts"), [(1, 1), (4, 2), (9, 3), (10, 4), (99, 4)])
def test_a_small_grid_has_fewer_districts_by_default(num_locations, districts):
    events = simulate_storms(num_locations, 2).events
    assert len(set(events.district)) == districts


def test_one_location_is_enough():
    simulation = simulate_storms(1, 2, num_districts=1)
    assert simulation.events.borders.shape == (2, 0)
    assert simulation.events.outages.shape == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_locations": 0}, "num_locations is 0"),
        ({"num_events": 0}, "num_events 0: both must be at least 1"),
        ({"num_districts": 0}, "num_districts is 0, must be 1 to 20"),
        ({"num_districts": 21}, "num_districts is 21, must be 1 to 20, the columns"),
        ({"spacing": 0.0}, "spacing is 0.0, must be a positive number of km"),
        ({"spacing": float("nan")}, "spacing is nan"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        simulate_storms(**arguments)
