"""Files of outage events: a folder of CSV tables, or the same in one npz archive.

The folder holds comma-separated tables in UTF-8, each ``.csv`` or ``.csv.gz``:

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

The archive holds:

=================  ============  ==================================================================
key                shape         content
=================  ============  ==================================================================
``location``       (N,)          names, text or integers
``latlon``         (N, 2)        degrees north, degrees east
``district``       (N,)          names of what the locations belong to
``customers``      (N,)          customers served
``static``         (N, Fs)       static features; Fs may be 0
``static_names``   (Fs,)         their names
``event``          (E,)          names
``event_type``     (E,)          names; all ``storm`` if absent
``weather``        (E, N, Fw)    weather features
``weather_names``  (Fw,)         their names
``outages``        (E, N)        integer counts; no counts if absent
``borders``        (B, 2)        indices of neighbouring locations; none if absent
=================  ============  ==================================================================

A feature is named with its unit, ``gust_max [m/s]``; a number without one has the unit ``1``.  An
empty cell or a NaN is a missing value.  A border may be written in both directions: repeats are
merged.  Other keys of the archive are ignored.
"""

import csv
import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcl.datasets.arrays import as_floats, as_integers, as_names, read_arrays, write_arrays
from graphcl.datasets.outage_events import OutageEvents
from graphcl.datasets.sources import locate
from graphcl.datasets.tables import check_there, open_table, own_names
from graphcl.datasets.validation import split_unit
from graphcl.errors import DataError

_REQUIRED = (
    *("location", "latlon", "district", "static", "static_names"),
    *("event", "weather", "weather_names"),
)
_OPTIONAL = ("customers", "event_type", "outages", "borders")
_COLUMNS = (
    *("location", "latitude", "longitude", "district", "customers"),
    *("event", "type", "outages", "neighbor"),
)
_STATIC = "static:"
_LARGEST = float(np.finfo(np.float32).max)


def load_outage_events(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    root: str | Path | None = None,
) -> OutageEvents:
    """Read outage events from a folder of CSV tables or an npz archive (see the module).

    Args:
        path: The folder or file.  A relative path is looked up in the working directory first and
            then under ``root``.
        columns: What the file calls a key or column that the module names otherwise:
            ``{"event": "storm", "borders": "edges"}``.  ``{"customers": "static:meters"}`` takes
            the customers from the static feature ``meters``, which stays a feature too.
        units: Units of features whose name has none: ``{"precp_total": "mm"}`` makes it
            ``precp_total [mm]``.
        root: The folder of data sets; without it, the folder that the environment variable
            ``GRAPHCL_DATA`` names.

    Raises:
        DataError: The path is not found or breaks a rule; pickled objects are never loaded.
    """
    place = locate(path, root)
    own = dict(columns or {})
    source = own.pop("customers") if own.get("customers", "").startswith(_STATIC) else None
    arrays = _read_folder(place, own) if place.is_dir() else _read_archive(place, own)
    if source is not None:
        arrays["customers"] = _feature(arrays, source.removeprefix(_STATIC), str(place))
    elif "customers" not in arrays:
        raise DataError(
            f"{place}: no customers: add them, or take them from a static feature with "
            f"columns={{'customers': '{_STATIC}NAME'}}"
        )
    return _events(arrays, units or {}, str(place))


def save_outage_events(events: OutageEvents, path: str | Path) -> None:
    """Write outage events so that they load as they were.

    Args:
        events: Events that :meth:`~OutageEvents.validate` accepts.
        path: An archive if it ends in ``.npz``; otherwise a folder, made if need be.

    Raises:
        DataError: The events break a rule, or the folder already holds something.
    """
    events.validate(f"events to save as {path}")
    if str(path).endswith(".npz"):
        _write_archive(events, path)
    else:
        _write_folder(events, Path(path))


def load_storm(
    path: str | Path,
    like: OutageEvents,
    *,
    columns: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    root: str | Path | None = None,
) -> OutageEvents:
    """Read the forecast of one storm: what is known the day before, in a single CSV table.

    The table, ``.csv`` or ``.csv.gz``, has the column ``location`` and exactly the weather features
    of ``like``, in the same units; the order of rows and columns is free.

    Args:
        path: The file, looked up as :func:`load_outage_events` does; its stem names the event.
        like: The events that a model was trained on.
        columns: ``{"location": "cell"}`` if that is what the table calls the column.
        units: See :func:`load_outage_events`.
        root: See :func:`load_outage_events`.

    Returns:
        One event of type ``storm`` without outages; all but event and weather is that of ``like``.

    Raises:
        DataError: The table breaks a rule, or its locations, features or units are not those of
            ``like``; the message names the file and what differs.
    """
    place = locate(path, root)
    key = own_names(columns or {}, ("location",), str(place), "columns")["location"]
    table = _read_table(place, [key], others=True)
    found = _with_units(list(table.numbers), units or {}, str(place))
    order = _match_features(found, like.weather_names, str(place))
    known = [_numbered(like.location)]
    row = table.cells([key], known)
    _check_every(known, row, f"{place}: no row for location")
    weather = np.empty((1, like.num_locations, len(order)), dtype=np.float32)
    weather[0, row] = table.matrix(table.numbers)[:, order]
    return replace(
        like,
        event=(place.name.removesuffix(".gz").removesuffix(".csv"),),
        event_type=("storm",),
        weather=torch.from_numpy(weather),
        outages=None,
    ).validate(str(place))


def save_storm(storm: OutageEvents, path: str | Path) -> None:
    """Write the weather of one event as the table that :func:`load_storm` reads.

    Raises:
        DataError: There are several events.
    """
    if storm.num_events != 1:
        raise DataError(f"{path}: a table holds one storm, not {storm.num_events}: use of([i])")
    rows = zip(storm.location, storm.weather[0].tolist(), strict=True)
    _write_table(
        Path(path),
        ["location", *storm.weather_names],
        ([location, *map(_cell, values)] for location, values in rows),
    )


def _match_features(found: Sequence[str], wanted: Sequence[str], name: str) -> list[int]:
    """Return where each wanted feature is among those found, which must be the same ones."""
    missing = [feature for feature in wanted if feature not in found]
    extra = [feature for feature in found if feature not in wanted]
    for have in extra:
        for want in missing:
            if split_unit(have)[0] == split_unit(want)[0]:
                raise DataError(
                    f"{name}: the column {have!r} is {want!r} where the model was trained: convert "
                    "its values and name that unit"
                )
    if missing or extra:
        raise DataError(
            f"{name}: the weather columns are not those the model was trained on: missing "
            f"{', '.join(missing) or 'none'}; unknown {', '.join(extra) or 'none'}"
        )
    return [found.index(feature) for feature in wanted]


# Both forms: arrays, under the archive's keys, become events.


def _events(arrays: Mapping[str, Any], units: Mapping[str, str], name: str) -> OutageEvents:
    static_names = as_names(arrays["static_names"], f"{name}: static_names")
    weather_names = as_names(arrays["weather_names"], f"{name}: weather_names")
    named = _with_units([*static_names, *weather_names], units, name)
    event = as_names(arrays["event"], f"{name}: event")
    types = arrays.get("event_type", ["storm"] * len(event))
    outages = arrays.get("outages")
    return OutageEvents(
        location=as_names(arrays["location"], f"{name}: location"),
        latlon=torch.from_numpy(as_floats(arrays["latlon"], f"{name}: latlon", np.float64)),
        static=torch.from_numpy(as_floats(arrays["static"], f"{name}: static")),
        static_names=tuple(named[: len(static_names)]),
        customers=torch.from_numpy(as_floats(arrays["customers"], f"{name}: customers")),
        district=as_names(arrays["district"], f"{name}: district"),
        borders=_borders(arrays.get("borders", np.empty((0, 2), np.int64)), f"{name}: borders"),
        event=event,
        event_type=as_names(types, f"{name}: event_type"),
        weather=torch.from_numpy(as_floats(arrays["weather"], f"{name}: weather")),
        weather_names=tuple(named[len(static_names) :]),
        outages=None
        if outages is None
        else torch.from_numpy(as_integers(outages, f"{name}: outages")),
    ).validate(name)


def _feature(arrays: Mapping[str, Any], feature: str, name: str) -> np.ndarray:
    """Return one column of the static features, by the name that the file gives it."""
    names, static = as_names(arrays["static_names"], f"{name}: static_names"), arrays["static"]
    if feature not in names:
        raise DataError(
            f"{name}: columns takes the customers from {feature!r}, but the static features are "
            f"{', '.join(names) or 'none'}"
        )
    if static.ndim != 2 or static.shape[1] != len(names):
        raise DataError(
            f"{name}: static has shape {static.shape}, must be (N, {len(names)}), a column for "
            "each of static_names"
        )
    return static[:, names.index(feature)].copy()  # or customers would share memory with static


def _with_units(features: list[str], units: Mapping[str, str], name: str) -> list[str]:
    for feature in units:
        if feature not in features or split_unit(feature)[1]:
            raise DataError(
                f"{name}: units holds {feature!r}, which is no feature without a unit; the "
                f"features are {', '.join(features)}"
            )
    return [
        f"{feature} [{units[feature]}]" if feature in units else feature for feature in features
    ]


def _borders(values: np.ndarray, field: str) -> torch.Tensor:
    pairs = as_integers(values, field)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise DataError(f"{field} has shape {pairs.shape}, must be (B, 2)")
    pairs = np.sort(pairs, axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    return torch.from_numpy(np.ascontiguousarray(pairs[np.sort(first)].T))


# The archive.


def _read_archive(place: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    own = own_names(columns, (*_REQUIRED, *_OPTIONAL), str(place), "columns")
    found, files = read_arrays(place, own.values())
    # An optional key that columns names is one that the user knows to be there.
    wanted = [name for key, name in own.items() if key in _REQUIRED or key in columns]
    check_there(wanted, files, str(place), "columns")
    return {key: found[name] for key, name in own.items() if name in found}


def _write_archive(events: OutageEvents, path: str | Path) -> None:
    arrays: dict[str, Any] = {}
    for key in (*_REQUIRED, *_OPTIONAL):
        value = getattr(events, key)
        if isinstance(value, torch.Tensor):
            arrays[key] = value.numpy()
        elif value is not None:
            arrays[key] = np.array(value, dtype=np.str_)
    arrays["borders"] = arrays["borders"].T
    write_arrays(path, arrays)


# The folder.


@dataclass(frozen=True)
class _Table:
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
        return values.astype(np.int64)

    def matrix(self, columns: Iterable[str]) -> np.ndarray:
        """Return columns of numbers side by side, float32."""
        values = [self.numbers[column].astype(np.float32) for column in columns]
        return np.stack(values, axis=1) if values else np.empty((len(self.lines), 0), np.float32)


def _read_folder(folder: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    own = own_names(columns, _COLUMNS, str(folder), "columns")
    location, event = own["location"], own["event"]
    arrays = _read_locations(folder, own)

    events = _read_table(_find(folder, "events"), [event, own["type"]])
    arrays |= {"event": events.text[event], "event_type": events.text[own["type"]]}
    known = [_numbered(arrays["event"]), _numbered(arrays["location"])]
    events.cells([event], known[:1])
    shape = (len(known[0]), len(known[1]))

    weather = _read_table(_find(folder, "weather"), [event, location], others=True)
    row = weather.cells([event, location], known)
    _check_every(known, row, f"{weather.place}: no row for event and location")
    values = np.empty((math.prod(shape), len(weather.numbers)), dtype=np.float32)
    values[row] = weather.matrix(weather.numbers)
    arrays["weather"] = values.reshape(*shape, len(weather.numbers))
    arrays["weather_names"] = list(weather.numbers)

    if (place := _find(folder, "outages")).exists():
        outages = _read_table(place, [event, location], [own["outages"]])
        arrays["outages"] = np.zeros(shape, dtype=np.int64)
        cells = outages.cells([event, location], known)
        arrays["outages"].flat[cells] = outages.counts(own["outages"])
    if (place := _find(folder, "borders")).exists():
        pair = [location, own["neighbor"]]
        borders = _read_table(place, pair)
        arrays["borders"] = np.stack([borders.index(end, known[1]) for end in pair], axis=1)
    return arrays


def _read_locations(folder: Path, own: Mapping[str, str]) -> dict[str, Any]:
    names, position = [own["location"], own["district"]], [own["latitude"], own["longitude"]]
    table = _read_table(_find(folder, "locations"), names, position, others=True)
    location, district = (table.text[name] for name in names)
    table.cells(names[:1], [_numbered(location)])
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


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _check_every(known: Sequence[Mapping[str, int]], cells: np.ndarray, words: str) -> None:
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


def _read_table(
    place: Path, text: Sequence[str], numbers: Sequence[str] = (), *, others: bool = False
) -> _Table:
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
) -> _Table:
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
    return _Table(place, lines, words, {name: np.array(v) for name, v in values.items()})


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


def _write_folder(events: OutageEvents, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DataError(f"{folder}: holds files already: save to a folder that is new or empty")
    location, event = events.location, events.event
    columns = (location, *events.latlon.T.tolist(), events.district)
    features = torch.cat([events.customers[:, None], events.static], dim=1).tolist()
    _write_table(
        folder / "locations.csv",
        ["location", "latitude", "longitude", "district", "customers", *events.static_names],
        ([*row[:-1], *map(_cell, row[-1])] for row in zip(*columns, features, strict=True)),
    )
    kinds = zip(event, events.event_type, strict=True)
    _write_table(folder / "events.csv", ["event", "type"], kinds)
    _write_table(
        folder / "weather.csv",
        ["event", "location", *events.weather_names],
        (
            [storm, place, *map(_cell, row)]
            for storm, weather in zip(event, events.weather, strict=True)
            for place, row in zip(location, weather.tolist(), strict=True)
        ),
    )
    if events.outages is not None:
        where = events.outages.nonzero(as_tuple=True)
        counts = zip(*(part.tolist() for part in (*where, events.outages[where])), strict=True)
        _write_table(
            folder / "outages.csv",
            ["event", "location", "outages"],
            ((event[e], location[i], count) for e, i, count in counts),
        )
    borders = ((location[u], location[v]) for u, v in events.borders.T.tolist())
    _write_table(folder / "borders.csv", ["location", "neighbor"], borders)


def _write_table(place: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _cell(value: float) -> str:
    """Return a float32 in the nine digits that tell it from every other one."""
    return "" if math.isnan(value) else f"{value:.9g}"
