"""Files of spatio-temporal series: one npz archive, one graph and what its nodes reported.

=================  ====================  ==========================================================
key                shape                 content
=================  ====================  ==========================================================
``values``         (T, N, C) or (T, N)   one row per step; NaN is a missing value
``channel_names``  (C,)                  names with units, ``speed [mph]``; without a unit ``x [1]``
``node``           (N,)                  names, text or integers; ``0`` to ``N - 1`` if absent
``edges``          (E, 2)                directed: index of the source, index of the target
``edge_weight``    (E,)                  positive weights of ``edges``; all ones if absent
``edge_ptr``       (T + 1,)              if each step has a graph: step t has the rows
                                         ``edge_ptr[t]`` to ``edge_ptr[t + 1] - 1`` of ``edges``
``adj``            (N, N)                instead of ``edges``: ``adj[u, v]`` is the weight of the
                                         edge from u to v, 0 where there is none
``start``          ()                    time of the first step
``interval``       ()                    seconds from step to step, an integer
``time``           (T,)                  instead of ``start``: time of each row; then ``interval``
                                         is the most common step if it is absent
``name``           ()                    what to call the series; the file's stem if absent
=================  ====================  ==========================================================

A time is ISO 8601 text or ``datetime64``, in UTC unless the text names another offset:
``2012-03-01T08:00``, ``2012-03-01T00:00-08:00``.  Rows are in order of time, no two at one time.  A
step without a row becomes one whose values are all missing, as long as at least half of the steps
have a row.  Local time is refused where its clock is seen to change: it lacks an hour in spring and
has one twice in autumn.  Other keys are ignored.

An archive of others is read without a copy: by the arguments of :func:`load_series`, or by a file
that describes it, see :mod:`graphcl.datasets.series_descriptions`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcl.datasets.arrays import as_floats, as_integers, as_names, read_arrays, write_arrays
from graphcl.datasets.series import DAY, SpatioTemporalSeries
from graphcl.datasets.series_descriptions import SeriesDescription, read_description
from graphcl.datasets.sources import locate
from graphcl.datasets.tables import own_names
from graphcl.errors import DataError

_KEYS = (
    *("values", "channel_names", "node", "edges", "edge_weight", "edge_ptr", "adj"),
    *("start", "interval", "time", "name"),
)
_HOUR = 3600
_SUNDAY = 6
_NIGHT = (0, _HOUR, 2 * _HOUR, 3 * _HOUR)  # seconds of the day at which clocks are set
_USE_UTC = "write UTC, or the offset with each time, 2012-03-11T01:55-08:00"


def load_series(
    path: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    channel_names: Sequence[str] | None = None,
    start: str | None = None,
    interval: int | None = None,
    missing: float | None = None,
    root: str | Path | None = None,
) -> SpatioTemporalSeries:
    """Read one series from an npz archive (keys and shapes: see the module).

    Args:
        path: The file, or one that describes it and ends in ``.toml``: what the arguments say goes
            before what that says.  A relative path, its ``file`` too, is looked up in the working
            directory first and then under ``root``.
        names: What the file calls a key that the module names otherwise: ``{"values": "speed"}``.
        channel_names: The channels' names, for a file without them.
        start: The time of the first step, for a file without it.
        interval: Seconds from step to step, for a file without it.
        missing: The value that the file writes where there is none; 0 in many files of speeds.
        root: The folder of data sets; without it, the folder that the environment variable
            ``GRAPHCL_DATA`` names.

    Example:
        .. code-block:: python

            load_series(
                "metr_la.npz",
                names={"values": "speed", "node": "sensor_id"},
                channel_names=["speed [mph]"],
                start="2012-03-01T00:00-08:00",
                interval=300,
            )

    Raises:
        DataError: The file is missing or breaks a rule; pickled objects are never loaded.
    """
    place = locate(path, root)
    said = SeriesDescription(
        names=names or {},
        channel_names=channel_names,
        start=start,
        interval=interval,
        missing=missing,
    )
    if place.suffix != ".toml":
        return _load(place, said)
    file, described = read_description(place)
    try:
        return _load(locate(file, root), said.over(described))
    except DataError as error:
        raise DataError(f"{place}: file {error}") from error


def _load(place: Path, said: SeriesDescription) -> SpatioTemporalSeries:
    arrays = _read(place, said)
    values = _values(arrays["values"], said.missing, f"{place}: values")
    num_rows, num_nodes, _ = values.shape
    edges, weight = _edges(arrays, num_nodes, str(place))
    ptr = arrays.get("edge_ptr")
    first, seconds, step = _times(arrays, num_rows, str(place))
    if step[-1] >= num_rows:
        if ptr is not None:
            raise DataError(
                f"{place}: edge_ptr has no graph for the {step[-1] + 1 - num_rows} steps that time "
                "leaves out: write those steps too, with values of NaN"
            )
        rows, values = values, np.full((step[-1] + 1, *values.shape[1:]), np.nan, np.float32)
        values[step] = rows
    return SpatioTemporalSeries(
        name=str(_scalar(arrays["name"], "U", f"{place}: name"))
        if "name" in arrays
        else place.stem,
        values=torch.from_numpy(values),
        channel_names=as_names(arrays["channel_names"], f"{place}: channel_names"),
        node=as_names(arrays.get("node", np.arange(num_nodes)), f"{place}: node"),
        edge_index=torch.from_numpy(np.ascontiguousarray(edges.T)),
        edge_weight=torch.from_numpy(weight),
        start=first,
        interval=seconds,
        edge_ptr=None if ptr is None else torch.from_numpy(as_integers(ptr, f"{place}: edge_ptr")),
    ).validate(str(place))


def save_series(series: SpatioTemporalSeries, path: str | Path) -> None:
    """Write a series as an npz archive that loads as it was.

    Raises:
        DataError: The series breaks a rule.
    """
    series.validate()
    arrays: dict[str, Any] = {
        "values": series.values.numpy(),
        "channel_names": np.array(series.channel_names, dtype=np.str_),
        "node": np.array(series.node, dtype=np.str_),
        "edges": series.edge_index.T.numpy(),
        "edge_weight": series.edge_weight.numpy(),
        "start": np.array(f"{series.start}Z"),
        "interval": np.array(series.interval),
        "name": np.array(series.name, dtype=np.str_),
    }
    if series.edge_ptr is not None:
        arrays["edge_ptr"] = series.edge_ptr.numpy()
    write_arrays(path, arrays)


def _read(place: Path, said: SeriesDescription) -> dict[str, np.ndarray]:
    """Return what the file holds and what was said in its place, by the module's keys."""
    names = said.names
    own = own_names(names, _KEYS, str(place), "names")
    found, files = read_arrays(place, own.values())
    arrays = {key: found[name] for key, name in own.items() if name in found}
    for key in ("name", "channel_names", "start", "interval"):
        value = getattr(said, key)
        if value is None:
            continue
        if key in arrays:
            raise DataError(f"{place}: holds {key} itself: leave the argument out")
        arrays[key] = np.asarray(value)
    # A key that names holds is one that the user knows to be there.
    lacking = [own[key] for key in ("values", *names) if own[key] not in files]
    if "channel_names" not in arrays and "channel_names" not in names:
        lacking.append("channel_names (or the argument)")
    if lacking:
        raise DataError(
            f"{place}: missing {', '.join(dict.fromkeys(lacking))}; the file has "
            f"{', '.join(files) or 'nothing'}: add what is missing, or say in names what the file "
            "calls it"
        )
    for one, other in (("edges", "adj"), ("start", "time")):
        if (one in arrays) == (other in arrays):
            fault = f"has both {one} and {other}" if one in arrays else f"has no {one} or {other}"
            raise DataError(f"{place}: {fault}: give one of the two")
    return arrays


def _values(array: np.ndarray, missing: float | None, field: str) -> np.ndarray:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(
            f"{field} has shape {array.shape}, must be (T, N, C) or, for one channel, (T, N), each "
            "at least 1"
        )
    values = as_floats(array.reshape(*array.shape[:2], -1), field)
    if missing is not None:
        values[array.reshape(values.shape) == missing] = np.nan
    return values


def _edges(
    arrays: Mapping[str, np.ndarray], num_nodes: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return source and target, int64 (E, 2), and weight, float32 (E,), of each edge."""
    if "edges" in arrays:
        edges = as_integers(arrays["edges"], f"{name}: edges")
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise DataError(f"{name}: edges has shape {edges.shape}, must be (E, 2)")
        weight = arrays.get("edge_weight", np.ones(len(edges)))
        return edges, as_floats(weight, f"{name}: edge_weight")
    for key in ("edge_weight", "edge_ptr"):
        if key in arrays:
            raise DataError(f"{name}: {key} belongs to edges, but the graph is adj: leave it out")
    adj = as_floats(arrays["adj"], f"{name}: adj")
    if adj.shape != (num_nodes, num_nodes):
        raise DataError(
            f"{name}: adj has shape {adj.shape}, must be ({num_nodes}, {num_nodes}) for the "
            f"{num_nodes} nodes of values"
        )
    bad = np.argwhere(~(np.isfinite(adj) & (adj >= 0)))
    if len(bad):
        u, v = bad[0]
        raise DataError(
            f"{name}: adj[{u}, {v}] is {adj[u, v]} ({len(bad)} such), must be finite and not "
            "negative: write 0 where there is no edge"
        )
    edges = np.argwhere(adj)
    return edges, adj[tuple(edges.T)]


def _times(
    arrays: Mapping[str, np.ndarray], num_rows: int, name: str
) -> tuple[np.datetime64, int, np.ndarray]:
    """Return the time of the first step, the interval, and the step of each row, int64 (T,)."""
    interval = None
    if "interval" in arrays:
        interval = int(_scalar(arrays["interval"], "iu", f"{name}: interval"))
        if interval < 1:
            raise DataError(f"{name}: interval is {interval}, must be at least 1 second")
    if "start" in arrays:
        if interval is None:
            raise DataError(f"{name}: start needs an interval, seconds from step to step: add it")
        field = f"{name}: start"
        start, _ = _stamps(np.atleast_1d(_scalar(arrays["start"], "UM", field)), field)
        return start[0], interval, np.arange(num_rows)
    if arrays["time"].shape != (num_rows,):
        raise DataError(
            f"{name}: time has shape {arrays['time'].shape}, must be ({num_rows},), one for each "
            "row of values"
        )
    time, zoned = _stamps(arrays["time"], f"{name}: time")
    return _grid(time, zoned, interval, f"{name}: time")


def _grid(
    time: np.ndarray, zoned: bool, interval: int | None, field: str
) -> tuple[np.datetime64, int, np.ndarray]:
    """Place rows on steps of one interval; ``zoned`` times cannot be those of a local clock."""
    jumps: np.ndarray = np.diff(time.astype(np.int64))
    if interval is None:
        steps, times = np.unique(jumps[jumps > 0], return_counts=True)
        if not len(jumps):
            raise DataError(f"{field} of a single row tells no interval: add it")
        interval = int(steps[times.argmax()]) if len(steps) else 0
    if not zoned:
        _check_clock(time, jumps, interval, field)
    _check_order(time, jumps, field)
    off = np.flatnonzero(jumps % interval)
    if len(off):
        row = int(off[0]) + 1
        raise DataError(
            f"{field}[{row}] is {time[row]}, {jumps[row - 1]} s after the row before "
            f"({len(off)} such), must be a multiple of the interval of {interval} s: resample, or "
            "give the interval that holds throughout"
        )
    step = np.concatenate([[0], jumps.cumsum() // interval])
    made_up = int(step[-1]) + 1 - len(time)
    if made_up > len(time):
        raise DataError(
            f"{field}: {made_up} of the {step[-1] + 1} steps of {interval} s from {time[0]} to "
            f"{time[-1]} have no row, must be half at most: check the interval, or cut the series "
            "at its longest gap"
        )
    return time[0], interval, step


def _check_clock(time: np.ndarray, jumps: np.ndarray, interval: int, field: str) -> None:
    """Refuse times of a clock that was set back, or forward, by an hour."""
    back = np.flatnonzero((jumps == interval - _HOUR) & (jumps <= 0))
    if len(back):
        row = int(back[0]) + 1
        raise DataError(
            f"{field}[{row}] is {time[row]} after {time[row - 1]}, an hour that was there already, "
            f"as where clocks are set back in autumn: {_USE_UTC}; if rows are repeated, keep one "
            "of each"
        )
    # An hour may be missing for other reasons, but rarely just one of a Sunday night.
    day, second = np.divmod(time[:-1].astype(np.int64) + interval, DAY)
    night = np.isin(second, _NIGHT) & ((day + 3) % 7 == _SUNDAY)
    forward = np.flatnonzero((jumps == interval + _HOUR) & night)
    if len(forward):
        row = int(forward[0]) + 1
        raise DataError(
            f"{field}[{row}] is {time[row]} after {time[row - 1]}, an hour of a Sunday night is "
            f"missing, as where clocks are set forward in spring: {_USE_UTC}; if it is UTC and the "
            "hour is missing, write its rows with values of NaN"
        )


def _check_order(time: np.ndarray, jumps: np.ndarray, field: str) -> None:
    bad = np.flatnonzero(jumps <= 0)
    if not len(bad):
        return
    row = int(bad[0]) + 1
    if jumps[row - 1]:
        raise DataError(
            f"{field}[{row}] is {time[row]} after {time[row - 1]} ({int((jumps < 0).sum())} such): "
            "sort the rows by time"
        )
    raise DataError(
        f"{field}[{row}] is {time[row]} again ({int((jumps == 0).sum())} such): keep one row"
    )


def _stamps(values: np.ndarray, field: str) -> tuple[np.ndarray, bool]:
    """Return times as datetime64[s] in UTC, and whether each of them named its offset."""
    if values.dtype.kind not in "UM":
        raise DataError(f"{field} is {values.dtype}, must be ISO 8601 text or datetime64")
    if values.dtype.kind == "M":
        exact, zoned = values, False
    else:
        exact, zoned = _parsed(values, field)
    time = exact.astype("M8[s]")
    bad = np.flatnonzero(time != exact)  # true of NaT, no time, too
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{field}[{row}] is {values[row]} ({len(bad)} such), must be a time in whole seconds"
        )
    return time, zoned


def _parsed(texts: np.ndarray, field: str) -> tuple[np.ndarray, bool]:
    times, offsets = [], []
    for row, text in enumerate(texts.tolist()):
        try:
            time = datetime.fromisoformat(text)
            offsets.append(time.tzinfo is not None)
            times.append((time.astimezone(UTC) if offsets[-1] else time).replace(tzinfo=None))
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{field}[{row}] is {text!r}, no time in ISO 8601: write 2012-03-01T08:00"
            ) from error
    if any(offsets) and not all(offsets):
        raise DataError(
            f"{field}[{offsets.index(not offsets[0])}] differs from the first in naming an offset: "
            "write it with every time or with none"
        )
    return np.array(times, dtype="M8[us]"), all(offsets)


def _scalar(value: np.ndarray, kinds: str, field: str) -> Any:
    if value.shape != () or value.dtype.kind not in kinds:
        wanted = {"U": "text", "M": "datetime64", "i": "an integer"}
        raise DataError(
            f"{field} is {value.dtype} of shape {value.shape}, must be "
            f"{' or '.join(wanted[kind] for kind in kinds if kind in wanted)} of shape ()"
        )
    return value[()]
