"""The map of an outage forecast: one HTML page that opens offline, the day before a storm."""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from graphcl.errors import DataError
from simulations.report.writing import write_page

_TEMPLATE = "outage_map.html.jinja"
_SHOWN_BORDERS = 60_000  # beyond which lines hide the locations and slow the map


@dataclass(frozen=True)
class DistrictTotal:
    """What is expected in a district, or in all of them.

    Attributes:
        name: Of the district.
        expected: Expected count.
        low: Lower bound of its interval.
        high: Upper bound.

    Raises:
        DataError: If a number is negative or not finite, or ``low`` is above ``high``.
    """

    name: str
    expected: float
    low: float
    high: float

    def __post_init__(self) -> None:
        for field in ("expected", "low", "high"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise DataError(
                    f"total of {self.name}: {field} is {value}, must be finite and not negative"
                )
        if self.low > self.high:
            raise DataError(
                f"total of {self.name}: low is {self.low}, above high, {self.high}: swap them"
            )


@dataclass(frozen=True, eq=False)
class MapData:
    """A forecast for one storm.

    Attributes:
        title: The storm.
        unit: What is counted, in the plural: "customers".
        location: Name of every location [N], N at least 1.
        district: Name of its district [N].
        latlon: Its latitude and longitude in degrees [N, 2].
        expected: Its expected count [N].
        low: Lower bound of its interval [N].
        high: Upper bound [N].
        level: Nominal coverage of all intervals, between 0 and 1.
        customers: How many customers it has [N].
        district_totals: One total for every district; its interval is not the sum of those of its
            locations.
        total: That of all districts.
        borders: Pairs of neighbouring locations, int64 [2, B], each in one direction or both.
        observed: What was counted [N], once the storm is over.

    Raises:
        DataError: If a rule is broken; the message names the field, the location and the rule.
    """

    title: str
    unit: str
    location: Sequence[str]
    district: Sequence[str]
    latlon: Tensor
    expected: Tensor
    low: Tensor
    high: Tensor
    level: float
    customers: Tensor
    district_totals: list[DistrictTotal]
    total: DistrictTotal
    borders: Tensor
    observed: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise DataError(f"level is {self.level}, must lie between 0 and 1, as 0.9 does")
        if not len(self.location):
            raise DataError("location is empty: give at least one location")
        self._check_counts()
        self._check_coordinates()
        self._check_districts()
        self._check_borders()

    def _check_counts(self) -> None:
        for field in ("expected", "low", "high", "customers", "observed"):
            values = getattr(self, field)
            if values is not None:
                self._check_shape(field, len(self.location))
                self._refuse(
                    field, ~(torch.isfinite(values) & (values >= 0)), "finite and at least 0"
                )
        self._refuse("low", self.low > self.high, "at most high: swap the bounds")

    def _check_coordinates(self) -> None:
        self._check_shape("latlon", len(self.location), 2)
        most = torch.tensor([90.0, 180.0], dtype=self.latlon.dtype)
        inside = (self.latlon.cpu().abs() <= most).all(dim=1)
        self._refuse("latlon", ~inside, "a latitude and a longitude in degrees")

    def _check_districts(self) -> None:
        if len(self.district) != len(self.location):
            raise DataError(
                f"district has {len(self.district)} entries for {len(self.location)} locations"
            )
        names = [total.name for total in self.district_totals]
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise DataError(f"district_totals: {twice[0]} has several totals: keep one")
        unlike = sorted(set(names) ^ set(self.district))
        if unlike:
            has, lacks = ("total", "location") if unlike[0] in names else ("location", "total")
            raise DataError(
                f"district_totals: district {unlike[0]} has a {has} but no {lacks} "
                f"({len(unlike)} such): give one total for every district of the locations"
            )

    def _check_borders(self) -> None:
        if self.borders.ndim != 2 or self.borders.shape[0] != 2:
            raise DataError(f"borders has shape {list(self.borders.shape)}, must be [2, B]")
        bad = torch.nonzero((self.borders < 0) | (self.borders >= len(self.location)))
        if len(bad):
            row, column = bad[0].tolist()
            raise DataError(
                f"borders[{row}, {column}] is {int(self.borders[row, column])}, but the locations "
                f"are 0 to {len(self.location) - 1}: number them by their rows"
            )

    def _check_shape(self, field: str, *shape: int) -> None:
        found = list(getattr(self, field).shape)
        if found != list(shape):
            raise DataError(f"{field} has shape {found}, must be {list(shape)}: a row per location")

    def _refuse(self, field: str, bad: Tensor, rule: str) -> None:
        rows = torch.nonzero(bad).flatten().tolist()
        if rows:
            row = rows[0]
            raise DataError(
                f"{field}[{row}] is {getattr(self, field)[row].tolist()} at location "
                f"{self.location[row]} ({len(rows)} such): must be {rule}"
            )


def write_outage_map(path: Path, forecast: MapData) -> Path:
    """Write the page of a forecast: totals, districts, and a map of up to 100,000 locations.

    The file needs no other and no network.  Totals and districts are readable without JavaScript;
    the map needs it.

    Args:
        path: The file to write; its folder exists.
        forecast: What to show.

    Returns:
        The path.
    """
    values = _values(forecast)
    return write_page(Path(path), _TEMPLATE, values, count=_count, json=_json, digest=_digest)


def _values(forecast: MapData) -> dict[str, Any]:
    """Return what the template shows."""
    level = f"{100 * forecast.level:.4g}\N{NO-BREAK SPACE}%"
    borders = _pairs(forecast.borders)
    shown = borders if len(borders) <= _SHOWN_BORDERS else []
    districts = sorted(forecast.district_totals, key=lambda total: -total.expected)
    return {
        "forecast": forecast,
        "level": level,
        "districts": districts,
        "longest": max(max(total.expected, total.high) for total in districts) or 1.0,
        "observed": _observed(forecast),
        "has_borders": bool(shown),
        "left_out_borders": len(borders) - len(shown),
        "data": {
            "unit": forecast.unit,
            "level": level,
            **_columns(forecast, [total.name for total in districts]),
            "borders": shown,
        },
    }


def _columns(forecast: MapData, districts: list[str]) -> dict[str, list[Any]]:
    """Return what the page's script reads of every location, and the districts' names."""
    place = {name: index for index, name in enumerate(districts)}
    latitude, longitude = forecast.latlon.double().t().tolist()
    counts = {
        field: [_short(value) for value in getattr(forecast, field).tolist()]
        for field in ("expected", "low", "high", "customers", "observed")
        if getattr(forecast, field) is not None
    }
    return {
        "location": list(forecast.location),
        "district": [place[name] for name in forecast.district],
        "districts": districts,
        "lat": [round(value, 4) for value in latitude],
        "lon": [round(value, 4) for value in longitude],
        **counts,
    }


def _pairs(borders: Tensor) -> list[tuple[int, int]]:
    """Return every pair of neighbours once."""
    pairs = borders.sort(dim=0).values.t().tolist()
    return sorted({(one, other) for one, other in pairs if one != other})


def _observed(forecast: MapData) -> dict[str, float] | None:
    """Return what was counted in every district."""
    if forecast.observed is None:
        return None
    counted = dict.fromkeys(forecast.district, 0.0)
    for name, value in zip(forecast.district, forecast.observed.tolist(), strict=True):
        counted[name] += value
    return counted


def _short(value: float) -> float:
    """Return a count with as many decimals as matter, as an integer where there are none."""
    value = round(value, 2) if value < 100 else round(value)
    return int(value) if value == int(value) else value


def _count(value: float) -> str:
    """Return a count as people read it, with decimals only where it is small."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def _json(value: object) -> Markup:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", r"\u003c"))  # noqa: S704 - no tag can begin without it


def _digest(script: str) -> str:
    """Return what names this script, and no other, in the page's policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
