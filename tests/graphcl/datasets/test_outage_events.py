"""Outage events: their rules, what breaks them, and the selection of locations and events."""

from dataclasses import fields, replace

import pytest
import torch

from graphcl.datasets import OutageEvents
from graphcl.datasets.validation import split_unit
from graphcl.errors import DataError

NAN = float("nan")


def make(**changes):
    """Return legal events: two storms at four locations on a line."""
    events = OutageEvents(
        location=("a", "b", "c", "d"),
        latlon=torch.tensor([[41.0, 41.1, 41.2, 41.2], [-72.0] * 4], dtype=torch.float64).T,
        static=torch.tensor([[0.5, 1.0], [NAN, 2.0], [0.7, 3.0], [0.1, 4.0]]),
        static_names=("canopy_share [1]", "age [a]"),
        customers=torch.tensor([10.0, 0.0, 30.0, 40.0]),
        district=("west", "east", "west", "east"),
        borders=torch.tensor([[0, 1, 2], [1, 2, 3]]),
        event=("ida", "sandy"),
        event_type=("rain", "tropical"),
        weather=torch.arange(16.0).reshape(2, 4, 2),
        weather_names=("gust_max [m/s]", "rain_total [mm]"),
        outages=torch.tensor([[0, 1, 2, 3], [4, 5, 6, 99]]),
    )
    return replace(events, **changes)


def changed(field, index, value):
    """Return legal events but for one entry of one tensor."""
    tensor = getattr(make(), field).clone()
    tensor[index] = value
    return make(**{field: tensor})


def same(one, other):
    """Whether two containers hold the same to the last bit; missing values are alike."""
    for field in fields(OutageEvents):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            if a.dtype != b.dtype or not torch.equal(a.nan_to_num(-7.5), b.nan_to_num(-7.5)):
                return False
        elif a != b:
            return False
    return True


def test_legal_events_pass_unchanged():
    events = make()
    assert events.validate() is events
    assert (events.num_events, events.num_locations) == (2, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"outages": None},
        {"borders": torch.empty(2, 0, dtype=torch.int64)},
        {"static": torch.empty(4, 0), "static_names": ()},
    ],
    ids=["forecast", "no borders", "no static features"],
)
def test_optional_parts_may_be_absent(changes):
    make(**changes).validate()


def test_a_value_may_be_missing_where_another_is_there():
    changed("weather", (0, 1, 0), NAN).validate()


RULES = {
    "no location": (
        {"location": (), "district": ()},
        "location is empty: give at least one location",
    ),
    "no event": ({"event": (), "event_type": ()}, "event is empty"),
    "short district": ({"district": ("w",)}, "district has 1 entries, must have 4"),
    "short type": ({"event_type": ("w",)}, "event_type has 1 entries, must have 2"),
    "empty name": ({"location": ("a", "", "c", "d")}, r"location\[1\] is '': write a name"),
    "padded name": ({"event": ("ida", " sandy")}, r"event\[1\] is ' sandy': .* without space"),
    "twice": ({"location": ("a", "b", "a", "d")}, "location holds 'a' 2 times: .* unique"),
    "event twice": ({"event": ("ida", "ida")}, "event holds 'ida' 2 times"),
    "feature twice": (
        {"static_names": ("age [a]",) * 2},
        r"static_names holds 'age \[a\]' 2 times",
    ),
    "no unit": (
        {"weather_names": ("gust_max", "rain [mm]")},
        r"weather_names holds 'gust_max': name the unit in brackets.*units=\{'gust_max'",
    ),
    "empty unit": (
        {"static_names": ("age []", "b [1]")},
        r"static_names holds 'age \[\]': name the unit",
    ),
    "only a unit": (
        {"static_names": ("[a]", "b [1]")},
        r"static_names holds '\[a\]': name the unit",
    ),
    "no weather": (
        {"weather_names": (), "weather": torch.empty(2, 4, 0)},
        "weather_names is empty: give at least one",
    ),
    "single latlon": ({"latlon": torch.zeros(4, 2)}, "latlon is torch.float32, must be .*float64"),
    "double static": ({"static": torch.zeros(4, 2).double()}, "static is torch.float64"),
    "int customers": ({"customers": torch.ones(4).long()}, "customers is torch.int64"),
    "int borders": ({"borders": torch.zeros(2, 1).int()}, "borders is torch.int32"),
    "half weather": ({"weather": torch.zeros(2, 4, 2).half()}, "weather is torch.float16"),
    "float counts": ({"outages": torch.zeros(2, 4)}, "outages is torch.float32, must be .*int64"),
    "wide latlon": (
        {"latlon": torch.zeros(4, 3).double()},
        r"latlon has shape \[4, 3\], must be \[N, 2\] with N = 4",
    ),
    "narrow static": ({"static": torch.zeros(4, 1)}, r"static has shape \[4, 1\], .* Fs = 2"),
    "long customers": ({"customers": torch.ones(5)}, r"customers has shape \[5\]"),
    "turned borders": (
        {"borders": torch.zeros(3, 2).long()},
        r"borders has shape \[3, 2\], must be \[2, B\]",
    ),
    "flat borders": ({"borders": torch.zeros(2).long()}, r"borders has shape \[2\]"),
    "turned weather": (
        {"weather": torch.zeros(4, 2, 2)},
        r"weather has shape \[4, 2, 2\], .* E = 2",
    ),
    "turned counts": ({"outages": torch.zeros(4, 2).long()}, r"outages has shape \[4, 2\]"),
    "no latitude": (("latlon", (1, 0), NAN), r"latlon of location 'b' is \[nan, -72.0\]"),
    "far north": (
        ("latlon", (1, 0), 141.0),
        r"latitude of location 'b' is 141.0 \(1 such\), must be -90 to 90 degrees: the columns "
        "look swapped",
    ),
    "metres": (
        ("latlon", 0, torch.tensor([4.1e6, 7.1e5]).double()),
        "latitude of location 'a' is 4100000.0 .* degrees: south and west are negative",
    ),
    "swapped would not fit": (
        ("latlon", slice(2), torch.tensor([[95.0, 1.0], [41.0, -100.0]]).double()),
        "latitude of location 'a' is 95.0 .* degrees: south and west are negative",
    ),
    "far east": (("latlon", (3, 1), 288.0), "longitude of location 'd' is 288.0 .*-180 to 180"),
    "negative customers": (("customers", 2, -1.0), "customers of location 'c' is -1.0"),
    "no customers": (("customers", 0, NAN), "customers of location 'a' is nan"),
    "all customers": (("customers", 0, float("inf")), "customers of location 'a' is inf"),
    "loop": (("borders", (1, 1), 1), r"borders\[:, 1\] is \[1, 1\] \(1 such\): u < v"),
    "backwards": (("borders", (0, 0), 3), r"borders\[:, 0\] is \[3, 1\]"),
    "far border": (("borders", (1, 2), 4), r"borders\[:, 2\] is \[2, 4\] .* locations are 0 to 3"),
    "below border": (("borders", (0, 0), -1), r"borders\[:, 0\] is \[-1, 1\]"),
    "border twice": (
        {"borders": torch.tensor([[0, 1, 0], [1, 2, 1]])},
        r"borders holds \[0, 1\] more than once",
    ),
    "infinite static": (
        ("static", (2, 1), float("inf")),
        r"static 'age \[a\]' is inf at location 'c'",
    ),
    "infinite weather": (
        ("weather", (1, 2, 0), float("-inf")),
        r"weather 'gust_max \[m/s\]' is -inf in event 'sandy' at location 'c'",
    ),
    "static missing": (("static", (slice(None), 1), NAN), r"static 'age \[a\]' is missing everyw"),
    "weather missing": (
        ("weather", (..., 1), NAN),
        r"weather 'rain_total \[mm\]' is missing everywhere: fill it in",
    ),
    "no weather there": (
        ("weather", (1, 3), NAN),
        "weather is missing entirely in event 'sandy' at location 'd'",
    ),
    "negative count": (
        ("outages", (1, 1), -4),
        r"outages is -4 in event 'sandy' at location 'b' \(1 such\): counts are not negative",
    ),
}


@pytest.mark.parametrize(("change", "message"), RULES.values(), ids=RULES.keys())
def test_a_broken_rule_names_field_and_place(change, message):
    events = make(**change) if isinstance(change, dict) else changed(*change)
    with pytest.raises(DataError, match=f"^storms.npz: {message}"):
        events.validate("storms.npz")


@pytest.mark.parametrize("selection", [[3, 2, 0], torch.tensor([3, 2, 0])])
def test_at_follows_the_order_given_and_relabels_borders(selection):
    part = make().at(selection).validate()
    assert part.location == ("d", "c", "a")
    assert part.district == ("east", "west", "west")
    assert part.customers.tolist() == [40.0, 30.0, 10.0]
    assert part.static[:, 1].tolist() == [4.0, 3.0, 1.0]
    assert part.latlon[:, 0].tolist() == pytest.approx([41.2, 41.2, 41.0])
    assert part.outages.tolist() == [[3, 2, 0], [99, 6, 4]]
    assert part.weather[1, :, 0].tolist() == [14.0, 12.0, 8.0]
    assert part.borders.tolist() == [[0], [1]]  # c beside d stays; both borders of b leave with it
    assert part.event == make().event


def test_at_takes_a_mask():
    mask = torch.tensor([True, False, True, True])
    assert same(make().at(mask), make().at([0, 2, 3]))


def test_a_permutation_and_its_inverse_change_nothing():
    order = torch.tensor([2, 0, 3, 1])
    assert same(make().at(order).at(order.argsort()), make())


@pytest.mark.parametrize("selection", [[1], torch.tensor([False, True])])
def test_of_keeps_the_events_asked_for(selection):
    part = make().of(selection).validate()
    assert (part.event, part.event_type) == (("sandy",), ("tropical",))
    assert part.outages.tolist() == [[4, 5, 6, 99]]
    assert part.weather.tolist() == make().weather[1:].tolist()
    assert part.location == make().location


def test_a_selected_forecast_stays_without_counts():
    assert make(outages=None).of([0]).at([1, 2]).outages is None


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([], "selects nothing"),
        (torch.zeros(2, dtype=torch.bool), "selects nothing"),
        (torch.ones(3, dtype=torch.bool), r"is torch.bool of shape \[3\], .* boolean mask \[2\]"),
        (torch.zeros(1), "is torch.float32"),
        ([[0]], r"of shape \[1, 1\]"),
        ([0, 2], "holds 2, must be 0 to 1"),
        ([-1], "holds -1"),
        ([1, 0, 1], "holds 1 twice"),
    ],
)
@pytest.mark.parametrize("verb", ["at", "of"])
def test_an_impossible_selection_is_refused(verb, selection, message):
    events = make().at([0, 1])
    with pytest.raises(DataError, match=f"^{verb}: .*{message}"):
        getattr(events, verb)(selection)


def test_districts_list_their_locations_in_order_of_appearance():
    districts = make().districts()
    assert list(districts) == ["west", "east"]
    assert [members.tolist() for members in districts.values()] == [[0, 2], [1, 3]]
    assert all(members.dtype == torch.int64 for members in districts.values())


def test_repr_counts_and_shows_no_values():
    assert repr(make()) == (
        "OutageEvents(2 events, 4 locations in 2 districts, 2 static and 2 weather features, "
        "3 borders)"
    )
    assert "2 events without counts" in repr(make(outages=None))


@pytest.mark.parametrize(
    ("feature", "parts"),
    [
        ("rain per hour [mm/h]", ("rain per hour", "mm/h")),
        ("x [1]", ("x", "1")),
        ("gust", ("gust", "")),
        ("gust[m/s]", ("gust[m/s]", "")),
        ("gust [m] [s]", ("gust [m]", "s")),
    ],
)
def test_a_feature_splits_into_quantity_and_unit(feature, parts):
    assert split_unit(feature) == parts
