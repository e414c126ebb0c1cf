"""Files of outage events: a folder of CSV tables, or the same in one npz archive.

The folder's tables are those of :mod:`graphcl.datasets.outage_folders`. The archive holds:

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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcl.datasets.arrays import as_floats, as_integers, as_names, read_arrays, write_arrays
from graphcl.datasets.outage_events import OutageEvents
from graphcl.datasets.outage_folders import (
    as_cell,
    check_every,
    numbered,
    read_folder,
    read_table,
    write_folder,
    write_table,
)
from graphcl.datasets.sources import locate
from graphcl.datasets.tables import check_there, own_names
from graphcl.datasets.validation import split_unit
from graphcl.errors import DataError

_REQUIRED = (
    *("location", "latlon", "district", "static", "static_names"),
    *("event", "weather", "weather_names"),
)
_OPTIONAL = ("customers", "event_type", "outages", "borders")
_STATIC = "static:"


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
    arrays = read_folder(place, own) if place.is_dir() else _read_archive(place, own)
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
        write_folder(events, Path(path))


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
    table = read_table(place, [key], others=True)
    found = _with_units(list(table.numbers), units or {}, str(place))
    order = _match_features(found, like.weather_names, str(place))
    known = [numbered(like.location)]
    row = table.cells([key], known)
    check_every(known, row, f"{place}: no row for location")
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
    write_table(
        Path(path),
        ["location", *storm.weather_names],
        ([location, *map(as_cell, values)] for location, values in rows),
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
