"""Power outages of one territory: what its locations are, what each storm brought, what broke."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from graphcl.datasets.validation import check_names, check_unique, select_indices, split_unit
from graphcl.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class OutageEvents:
    """Outage counts of E events at the N locations of one territory, and what may explain them.

    A feature is named with its unit in brackets: ``gust_max [m/s]``, ``canopy_share [1]``.  NaN in
    ``static`` or ``weather`` is a missing value.

    Shapes:
        - **location**: N unique names; **district**: N names, of what a location belongs to
        - **latlon**: float64 ``[N, 2]``, degrees north and degrees east
        - **static**: float32 ``[N, Fs]``, named by **static_names**; Fs may be 0
        - **customers**: float32 ``[N]``, customers served, what a count is measured against
        - **borders**: int64 ``[2, B]``, neighbouring locations u < v, each pair once; B may be 0
        - **event**: E unique names; **event_type**: E names
        - **weather**: float32 ``[E, N, Fw]``, named by **weather_names**; Fw at least 1
        - **outages**: int64 ``[E, N]``, or None for a forecast
    """

    location: tuple[str, ...]
    latlon: Tensor
    static: Tensor
    static_names: tuple[str, ...]
    customers: Tensor
    district: tuple[str, ...]
    borders: Tensor
    event: tuple[str, ...]
    event_type: tuple[str, ...]
    weather: Tensor
    weather_names: tuple[str, ...]
    outages: Tensor | None

    @property
    def num_locations(self) -> int:
        """N."""
        return len(self.location)

    @property
    def num_events(self) -> int:
        """E."""
        return len(self.event)

    def __repr__(self) -> str:
        return (
            f"OutageEvents({self.num_events} events{' without counts' * (self.outages is None)}, "
            f"{self.num_locations} locations in {len(set(self.district))} districts, "
            f"{len(self.static_names)} static and {len(self.weather_names)} weather features, "
            f"{self.borders.shape[1]} borders)"
        )

    def at(self, locations: Tensor | Sequence[int]) -> Self:
        """Return the events at some locations, in the order given; borders that leave are dropped.

        The part is not validated again: there a feature may be missing everywhere.

        Args:
            locations: Indices of locations, int64 and each once, or a boolean mask [N].

        Raises:
            DataError: Nothing is selected, or an index is out of range or repeated.
        """
        index = select_indices(locations, self.num_locations, "at: locations")
        place = torch.full((self.num_locations,), -1)
        place[index] = torch.arange(len(index))
        borders = place[self.borders]
        borders = borders[:, (borders >= 0).all(dim=0)].sort(dim=0).values
        return replace(
            self,
            location=tuple(self.location[i] for i in index.tolist()),
            latlon=self.latlon[index],
            static=self.static[index],
            customers=self.customers[index],
            district=tuple(self.district[i] for i in index.tolist()),
            borders=borders,
            weather=self.weather[:, index],
            outages=None if self.outages is None else self.outages[:, index],
        )

    def of(self, events: Tensor | Sequence[int]) -> Self:
        """Return some of the events, in the order given.

        Args:
            events: Indices of events, int64 and each once, or a boolean mask [E].

        Raises:
            DataError: Nothing is selected, or an index is out of range or repeated.
        """
        index = select_indices(events, self.num_events, "of: events")
        return replace(
            self,
            event=tuple(self.event[e] for e in index.tolist()),
            event_type=tuple(self.event_type[e] for e in index.tolist()),
            weather=self.weather[index],
            outages=None if self.outages is None else self.outages[index],
        )

    def districts(self) -> dict[str, Tensor]:
        """Return the location indices, int64, of each district in order of first appearance."""
        members: dict[str, list[int]] = {}
        for i, district in enumerate(self.district):
            members.setdefault(district, []).append(i)
        return {district: torch.tensor(indices) for district, indices in members.items()}

    def validate(self, name: str = "events") -> Self:
        """Return the events unchanged after checking every rule of the class.

        Args:
            name: What to call them in a message, usually their file.

        Raises:
            DataError: A rule is broken; the message names the field, the event or location, and
                the rule.
        """
        _check_names(self, name)
        _check_tensors(self, name)
        _check_latlon(self, name)
        _check_customers(self, name)
        _check_borders(self, name)
        _check_features(self, name)
        _check_outages(self, name)
        return self


def _check_names(events: OutageEvents, name: str) -> None:
    lengths = {
        "location": events.num_locations,
        "district": events.num_locations,
        "event": events.num_events,
        "event_type": events.num_events,
    }
    for field, length in lengths.items():
        names = getattr(events, field)
        if not names:
            raise DataError(f"{name}: {field} is empty: give at least one location and one event")
        if len(names) != length:
            raise DataError(f"{name}: {field} has {len(names)} entries, must have {length}")
        check_names(names, f"{name}: {field}")
    for field in ("location", "event", "static_names", "weather_names"):
        check_unique(getattr(events, field), f"{name}: {field}")
    for field in ("static_names", "weather_names"):
        for feature in getattr(events, field):
            if not split_unit(feature)[1]:
                raise DataError(
                    f"{name}: {field} holds {feature!r}: name the unit in brackets, such as "
                    f"'gust_max [m/s]' or, for a number without one, 'canopy_share [1]'; a loader "
                    "takes it as units={" + repr(feature) + ": ...}"
                )


def _check_tensors(events: OutageEvents, name: str) -> None:
    N, E = events.num_locations, events.num_events
    Fs, Fw = len(events.static_names), len(events.weather_names)
    if Fw == 0:
        raise DataError(f"{name}: weather_names is empty: give at least one weather feature")
    wanted = {
        "latlon": (torch.float64, "[N, 2]", [N, 2]),
        "static": (torch.float32, "[N, Fs]", [N, Fs]),
        "customers": (torch.float32, "[N]", [N]),
        "borders": (torch.int64, "[2, B]", [2, *events.borders.shape[1:2]]),
        "weather": (torch.float32, "[E, N, Fw]", [E, N, Fw]),
        "outages": (torch.int64, "[E, N]", [E, N]),
    }
    for field, (dtype, letters, shape) in wanted.items():
        value = getattr(events, field)
        if field == "outages" and value is None:
            continue
        if value.dtype != dtype:
            raise DataError(f"{name}: {field} is {value.dtype}, must be {dtype}: convert it")
        if list(value.shape) != shape or value.ndim != letters.count(",") + 1:
            raise DataError(
                f"{name}: {field} has shape {list(value.shape)}, must be {letters} with N = {N} "
                f"locations, E = {E} events, Fs = {Fs} static_names, Fw = {Fw} weather_names"
            )


def _check_latlon(events: OutageEvents, name: str) -> None:
    if not torch.isfinite(events.latlon).all():
        row = int((~torch.isfinite(events.latlon)).any(dim=1).nonzero()[0])
        raise DataError(
            f"{name}: latlon of location {events.location[row]!r} is "
            f"{events.latlon[row].tolist()}: give every location a position"
        )
    lat, lon = events.latlon.abs().unbind(dim=1)
    for what, degrees, limit, column in (("latitude", lat, 90, 0), ("longitude", lon, 180, 1)):
        bad = (degrees > limit).nonzero().flatten()
        if not len(bad):
            continue
        swapped = what == "latitude" and lon.max() <= 90 and lat.max() <= 180
        row = int(bad[0])
        raise DataError(
            f"{name}: {what} of location {events.location[row]!r} is "
            f"{events.latlon[row, column].item()} ({len(bad)} such), must be -{limit} to {limit} "
            + (
                "degrees: the columns look swapped, put degrees north before degrees east"
                if swapped
                else "degrees: south and west are negative"
            )
        )


def _check_customers(events: OutageEvents, name: str) -> None:
    bad = (~torch.isfinite(events.customers) | (events.customers < 0)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{name}: customers of location {events.location[row]!r} is "
            f"{events.customers[row].item()} ({len(bad)} such), must be finite and not negative"
        )


def _check_borders(events: OutageEvents, name: str) -> None:
    borders = events.borders
    N = events.num_locations
    for bad, rule in (
        ((borders < 0) | (borders >= N), f"the locations are 0 to {N - 1}"),
        (borders[:1] >= borders[1:], "u < v, the smaller index first, no location beside itself"),
    ):
        columns = bad.any(dim=0).nonzero().flatten()
        if len(columns):
            column = int(columns[0])
            raise DataError(
                f"{name}: borders[:, {column}] is {borders[:, column].tolist()} "
                f"({len(columns)} such): {rule}"
            )
    pairs, times = borders.unique(dim=1, return_counts=True)
    if borders.shape[1] and int(times.max()) > 1:
        pair = pairs[:, times > 1][:, 0].tolist()
        raise DataError(f"{name}: borders holds {pair} more than once: write each pair once")


def _check_features(events: OutageEvents, name: str) -> None:
    for field in ("static", "weather"):
        values, features = getattr(events, field), getattr(events, f"{field}_names")
        if torch.isinf(values).any():
            *row, column = torch.isinf(values).nonzero()[0].tolist()
            at = _position(events, row)
            raise DataError(
                f"{name}: {field} {features[column]!r} is {values[*row, column].item()} {at}: "
                "write a number, or leave the value missing (NaN)"
            )
        missing = torch.isnan(values).flatten(end_dim=-2).all(dim=0)
        if missing.any():
            raise DataError(
                f"{name}: {field} {features[int(missing.nonzero()[0])]!r} is missing everywhere: "
                "fill it in or leave the feature out"
            )
    missing = torch.isnan(events.weather).all(dim=-1).nonzero()
    if len(missing):
        raise DataError(
            f"{name}: weather is missing entirely {_position(events, missing[0].tolist())} "
            f"({len(missing)} such): give at least one feature"
        )


def _check_outages(events: OutageEvents, name: str) -> None:
    if events.outages is None or not (events.outages < 0).any():
        return
    bad = (events.outages < 0).nonzero()
    row = bad[0].tolist()
    raise DataError(
        f"{name}: outages is {events.outages[*row].item()} {_position(events, row)} "
        f"({len(bad)} such): counts are not negative"
    )


def _position(events: OutageEvents, row: list[int]) -> str:
    """Return the words for an index [location] or [event, location]."""
    *event, location = row
    words = f"at location {events.location[location]!r}"
    return f"in event {events.event[event[0]]!r} {words}" if event else words
