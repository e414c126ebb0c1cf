"""Outage events as a folder of CSV tables.

They are comma-separated, in UTF-8, each ``.csv`` or ``.csv.gz``:

=============  ====================================  ==============================================
table          columns                               rows
=============  ====================================  ==============================================
``locations``  ``location``, ``latitude``,           one per location; all further columns are
               ``longitude``, ``district``,          static features
               ``customers``
``events``     ``event``, ``type``                   one per event; further columns are ignored
``weather``    ``event``, ``location``               one per event and location in any order; all
                                                     further columns are weather features
``outages``    ``event``, ``location``, ``outages``  one where something broke, in any order; what
                                                     has no row counts 0; no table: a forecast
``borders``    ``location``, ``neighbor``            one per neighbouring pair; no table: none
=============  ====================================  ==============================================

A feature is named with its unit, ``gust_max [m/s]``; a number without one has the unit ``1``.  An
empty cell is a missing value.  A border may be written in both directions.
"""

import csv
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcl.datasets.outage_events import OutageEvents
from graphcl.datasets.tables import check_there, open_table, own_names
from graphcl.errors import DataError

_COLUMNS = (
    *("location", "latitude", "longitude", "district", "customers"),
    *("event", "type", "outages", "neighbor"),
)
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_COUNT = 2.0**53  # up to here every whole number is a double


def read_folder(folder: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the arrays of a folder, under the keys of the archive.

    Args:
        folder: Holds the tables.
        columns: What they call a column that the module names otherwise.

    Raises:
        DataError: A table is missing or breaks a rule.
    """
    own = own_names(columns, _COLUMNS, str(folder), "columns")
    location, event = own["location"], own["event"]
    arrays = _read_locations(folder, own)

    events = read_table(_find(folder, "events"), [event, own["type"]])
    arrays |= {"event": events.text[event], "event_type": events.text[own["type"]]}
    known = [numbered(arrays["event"]), numbered(arrays["location"])]
    events.cells([event], known[:1])
    shape = (len(known[0]), len(known[1]))

    weather = read_table(_find(folder, "weather"), [event, location], others=True)
    row = weather.cells([event, location], known)
    check_every(known, row, f"{weather.place}: no row for event and location")
    values = np.empty((math.prod(shape), len(weather.numbers)), dtype=np.float32)
    values[row] = weather.matrix(weather.numbers)
    arrays["weather"] = values.reshape(*shape, len(weather.numbers))
    arrays["weather_names"] = list(weather.numbers)

    if (place := _find(folder, "outages")).exists():
        outages = read_table(place, [event, location], [own["outages"]])
        arrays["outages"] = np.zeros(shape, dtype=np.int64)
        cells = outages.cells([event, location], known)
        arrays["outages"].flat[cells] = outages.counts(own["outages"])
    if (place := _find(folder, "borders")).exists():
        pair = [location, own["neighbor"]]
        borders = read_table(place, pair)
        arrays["borders"] = np.stack([borders.index(end, known[1]) for end in pair], axis=1)
    return arrays


def write_folder(events: OutageEvents, folder: Path) -> None:
    """Write events as tables into a folder that is new or empty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"{folder}: holds files already: save to a folder that is new or empty")
    location, event = events.location, events.event
    columns = (location, *events.latlon.T.tolist(), events.district)
    features = torch.cat([events.customers[:, None], events.static], dim=1).tolist()
    write_table(
        folder / "locations.csv",
        ["location", "latitude", "longitude", "district", "customers", *events.static_names],
        ([*row[:-1], *map(as_cell, row[-1])] for row in zip(*columns, features, strict=True)),
    )
    kinds = zip(event, events.event_type, strict=True)
    write_table(folder / "events.csv", ["event", "type"], kinds)
    write_table(
        folder / "weather.csv",
        ["event", "location", *events.weather_names],
        (
            [storm, place, *map(as_cell, row)]
            for storm, weather in zip(event, events.weather, strict=True)
            for place, row in zip(location, weather.tolist(), strict=True)
        ),
    )
    if events.outages is not None:
        where = events.outages.nonzero(as_tuple=True)
        counts = zip(*(part.tolist() for part in (*where, events.outages[where])), strict=True)
        write_table(
            folder / "outages.csv",
            ["event", "location", "outages"],
            ((event[e], location[i], count) for e, i, count in counts),
        )
    borders = ((location[u], location[v]) for u, v in events.borders.T.tolist())
    write_table(folder / "borders.csv", ["location", "neighbor"], borders)


@dataclass(frozen=True)
class Table:
    """The wanted columns of one CSV table, text or numbers, and the line that each row ends on."""

    place: Path
    lines: Sequence[int]
    text: dict[str, list[str]]
    numbers: dict[str, np.ndarray]

    def where(self, row: int, *columns: str) -> str:
        return f"{self.place}: line {self.lines[row]}, column {', '.join(map(repr, columns))}"

    def index(self, column: str, known: Mapping[str, int]) -> np.ndarray:
        """Return the index of the name in each row."""
        try:
            return np.array([known[name] for name in self.text[column]], dtype=np.int64)
        except KeyError as error:
            name = error.args[0]
            raise DataError(
                f"{self.where(self.text[column].index(name), column)}: {name!r} is none of the "
                f"{len(known)} known names"
            ) from None

    def cells(self, columns: Sequence[str], known: Sequence[Mapping[str, int]]) -> np.ndarray:
        """Return each row's flat index into the product of the known names, no two the same."""
        flat = np.zeros(len(self.lines), dtype=np.int64)
        for column, names in zip(columns, known, strict=True):
            flat = flat * len(names) + self.index(column, names)
        _, first = np.unique(flat, return_index=True)
        if len(first) < len(flat):
            row = int(np.setdiff1d(np.arange(len(flat)), first)[0])
            names_there = ", ".join(repr(self.text[column][row]) for column in columns)
            raise DataError(f"{self.where(row, *columns)}: {names_there} again: keep one row")
        return flat

    def counts(self, column: str) -> np.ndarray:
        """Return a column of whole numbers."""
        values = self.numbers[column]
        bad = np.flatnonzero(values != np.floor(values))  # true of NaN, an empty cell, too
        if len(bad):
            row = int(bad[0])
            raise DataError(
                f"{self.where(row, column)}: {values[row]} is no count: write a whole number, or "
                "leave out the row if there was nothing"
            )
        large = np.flatnonzero(np.abs(values) >= _LARGEST_COUNT)
        if len(large):
            row = int(large[0])
            raise DataError(f"{self.where(row, column)}: {values[row]:g} is too large for a count")
        return values.astype(np.int64)

    def matrix(self, columns: Iterable[str]) -> np.ndarray:
        """Return columns of numbers side by side, float32."""
        values = [self.numbers[column].astype(np.float32) for column in columns]
        return np.stack(values, axis=1) if values else np.empty((len(self.lines), 0), np.float32)


def _read_locations(folder: Path, own: Mapping[str, str]) -> dict[str, Any]:
    names, position = [own["location"], own["district"]], [own["latitude"], own["longitude"]]
    table = read_table(_find(folder, "locations"), names, position, others=True)
    location, district = (table.text[name] for name in names)
    table.cells(names[:1], [numbered(location)])
    features = [name for name in table.numbers if name not in (*position, own["customers"])]
    arrays = {
        "location": location,
        "district": district,
        "latlon": np.stack([table.numbers[column] for column in position], axis=1),
        "static": table.matrix(features),
        "static_names": features,
    }
    if own["customers"] in table.numbers:
        arrays["customers"] = table.numbers[own["customers"]]
    return arrays


def numbered(names: Iterable[str]) -> dict[str, int]:
    """Number the distinct names in their order."""
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def check_every(known: Sequence[Mapping[str, int]], cells: np.ndarray, words: str) -> None:
    """Check that the flat indices cover the product of the known names."""
    sizes = [len(names) for names in known]
    there = np.zeros(math.prod(sizes), dtype=bool)
    there[cells] = True
    missing = np.flatnonzero(~there)
    if len(missing):
        place = np.unravel_index(missing[0], sizes)
        first = ", ".join(repr(list(names)[i]) for names, i in zip(known, place, strict=True))
        raise DataError(f"{words} {first} ({len(missing)} such): give each one a row")


def _find(folder: Path, table: str) -> Path:
    plain, packed = folder / f"{table}.csv", folder / f"{table}.csv.gz"
    if plain.exists() and packed.exists():
        raise DataError(f"{folder}: holds both {plain.name} and {packed.name}: keep one")
    return packed if packed.exists() else plain


def read_table(
    place: Path, text: Sequence[str], numbers: Sequence[str] = (), *, others: bool = False
) -> Table:
    """Read columns of text and of numbers; with ``others``, the other columns as numbers too."""
    with open_table(place) as (header, rows):
        return _parse_table(header, rows, place, text, numbers, others)


def _parse_table(
    header: list[str],
    rows: Iterable[tuple[int, list[str]]],
    place: Path,
    text: Sequence[str],
    numbers: Sequence[str],
    others: bool,
) -> Table:
    check_there([*text, *numbers], header, str(place), "columns")
    repeated = [name for i, name in enumerate(header) if name in header[:i]]
    if repeated:
        raise DataError(f"{place}: line 1: the column {repeated[0]!r} is there twice")
    lines = array("q")
    words: dict[str, list[str]] = {name: [] for name in text}
    wanted = [name for name in header if name in numbers or (others and name not in text)]
    values = {name: array("d") for name in wanted}
    text_cells = [(header.index(name), column) for name, column in words.items()]
    value_cells = [(header.index(name), column) for name, column in values.items()]
    for line, row in rows:
        lines.append(line)
        for i, column in text_cells:
            column.append(sys.intern(row[i]))  # the same few names, once per event or location
        for i, floats in value_cells:
            floats.append(_number(row[i], place, line, header[i]))
    return Table(place, lines, words, {name: np.array(v) for name, v in values.items()})


def _number(cell: str, place: Path, line: int, column: str) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        value = math.inf
    if abs(value) > _LARGEST:
        raise DataError(
            f"{place}: line {line}, column {column!r}: {cell!r} is no finite number in float32: "
            "write one, with a point for decimals, or leave the cell empty if it is missing"
        )
    return value


def write_table(place: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write one CSV table."""
    with open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def as_cell(value: float) -> str:
    """Return a float32 in the nine digits that tell it from every other one."""
    return "" if math.isnan(value) else f"{value:.9g}"
