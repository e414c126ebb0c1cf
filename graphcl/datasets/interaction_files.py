"""Files of interactions: a CSV table, with one of the items if there is any, or one npz archive.

The tables, ``.csv`` or ``.csv.gz``, are comma-separated and in UTF-8; further columns are ignored:

================  ================================================================================
table             columns
================  ================================================================================
of interactions   ``user``, ``item``, ``time`` and, optionally, ``session``; a row per interaction,
                  in any order
of items          ``item`` and, optionally, ``category`` and ``title``; a row per item of the
                  catalogue, taken or not
================  ================================================================================

Users, items, sessions and categories go by name, text or numbers.  Items are numbered in the order
of their table, without one in the order in which they first appear, as users and categories are.  A
session's name needs to be unique for its user only.

The archive holds:

=====================  ===================  ========================================================
key                    shape                content
=====================  ===================  ========================================================
``user``               (n,)                 users, from 0
``item``               (n,)                 items, from 1; 0 is padding
``items``              (n,)                 instead of ``item``, with ``indptr`` for ``user``: the
                                            items of each user in order, one user after the other
``indptr``             (num_users + 1,)     user u has entries ``indptr[u]`` and on, before
                                            ``indptr[u + 1]``
``time``               (n,)                 optional
``session``            (n,)                 optional: integers, unique over all users
``num_users``          ()                   optional, as all that follow: largest number if absent
``num_items``          ()
``user_name``          (num_users,)         text or integers
``item_name``          (num_items + 1,)     text or integers
``category``           (num_items + 1,)     integers, 0 for none
``category_name``      (num_categories+1,)  needed with ``category``
``text``               (num_items + 1, D)   embeddings of the items' texts
``title``              (num_items + 1,)
``attribute``          (m,)                 integers from 0, those of one item after another's
``attribute_indptr``   (num_items + 2,)     item i has entries ``attribute_indptr[i]`` and on,
                                            before ``attribute_indptr[i + 1]``; item 0 has none
``name``               ()                   what to call the interactions; the file's stem if absent
=====================  ===================  ========================================================

The first of num_items + 1 entries is padding's and is not read.  Other keys are ignored.

Times are whole seconds since 1970 in UTC.  Rows may be in any order: they are sorted by user and
time, and at one time the order of the file stands.  An archive without times is in order by its
rows; a table needs times.  Times that fall within the sequence of ``indptr`` contradict it and are
refused.  A user with one event is legal: it can train a model but not test it, see
:meth:`Interactions.leave_one_out`.  Repeats of an item at another time are legal too; those of
user, item and time are refused unless :func:`load_interactions` is told what to do with them.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from graphcl.datasets.arrays import as_floats, as_integers, as_names, read_arrays, write_arrays
from graphcl.datasets.interactions import Interactions
from graphcl.datasets.sources import locate
from graphcl.datasets.tables import check_there, open_table, own_names
from graphcl.errors import DataError

Duplicates = Literal["refuse", "drop", "keep"]

_KEYS = (
    *("user", "item", "items", "indptr", "time", "session", "num_users", "num_items"),
    *("user_name", "item_name", "category", "category_name", "text", "title", "name"),
    *("attribute", "attribute_indptr"),
)
_PER_ITEM = ("item_name", "category", "text", "title")
_LARGEST_PER_ROW = 10
_SCALARS = ("num_users", "num_items", "name")


def load_interactions(
    path: str | Path,
    *,
    items: str | Path | None = None,
    names: Mapping[str, str] | None = None,
    category_separator: str | None = None,
    duplicates: Duplicates = "refuse",
    root: str | Path | None = None,
) -> Interactions:
    """Read interactions from a CSV table or an npz archive (columns, keys, order: see the module).

    Args:
        path: The file.  A relative path is looked up in the working directory first and then under
            ``root``.
        items: The table of items that goes with a table of interactions, looked up alike.
        names: What the files call a column or key that the module names otherwise:
            ``{"user": "user_id", "time": "timestamp"}``.
        category_separator: What stands between the categories of an item that has several in one
            cell; the first one counts.
        duplicates: What to do with a row whose user, item and time an earlier row has too.
        root: The folder of data sets; without it, the folder that the environment variable
            ``GRAPHCL_DATA`` names.

    Example:
        .. code-block:: python

            load_interactions(
                "ml100k_inter.csv.gz",
                items="ml100k_item.csv.gz",
                names={
                    "user": "user_id",
                    "item": "item_id",
                    "time": "timestamp",
                    "title": "movie_title",
                    "category": "class",
                },
                category_separator=" ",
            )

    Raises:
        DataError: A file is missing or breaks a rule; the message names its line, or the row of an
            array.  Pickled objects are never loaded.
    """
    place = locate(path, root)
    if duplicates not in ("refuse", "drop", "keep"):
        raise DataError(f"duplicates is {duplicates!r}, must be 'refuse', 'drop' or 'keep'")
    if place.name.endswith((".csv", ".csv.gz")):
        catalogue = None if items is None else locate(items, root)
        interactions, where = _load_tables(place, catalogue, names or {}, category_separator)
    elif items is None and category_separator is None:
        interactions, where = _load_archive(place, names or {})
    else:
        raise DataError(
            f"{place}: items and category_separator go with a table of interactions, .csv or "
            ".csv.gz: leave them out, for an archive holds category and title itself"
        )
    if duplicates != "keep":
        interactions = _without_duplicates(interactions, duplicates, where)
    return interactions.sort(str(place))


def save_interactions(interactions: Interactions, path: str | Path) -> None:
    """Write interactions as an npz archive that loads as they were, with ``duplicates="keep"``.

    Raises:
        DataError: The interactions break a rule.
    """
    interactions.validate()
    arrays: dict[str, Any] = {}
    for field in fields(interactions):
        value = getattr(interactions, field.name)
        if isinstance(value, torch.Tensor):
            arrays[field.name] = value.numpy()
        elif value is not None:
            arrays[field.name] = np.array(value, dtype=None if isinstance(value, int) else np.str_)
    write_arrays(path, arrays)


def _without_duplicates(
    interactions: Interactions, duplicates: Duplicates, where: Callable[[int], str]
) -> Interactions:
    """Refuse or drop a row whose user, item and time an earlier row of the file has too."""
    if interactions.time is None:
        return interactions
    keys = [getattr(interactions, key).numpy() for key in ("user", "item", "time")]
    if len({len(key) for key in keys}) > 1:
        return interactions  # for the rules of the class to name
    order = np.lexsort(keys)  # stable: of several alike, the first of the file comes first
    again = np.all([key[order[1:]] == key[order[:-1]] for key in keys], axis=0)
    rows = np.sort(order[1:][again])
    if not len(rows):
        return interactions
    if duplicates == "refuse":
        raise DataError(
            f"{where(int(rows[0]))}: user, item and time are there already ({len(rows)} such): "
            "keep one row of each, or pass duplicates='drop' or 'keep'"
        )
    kept = torch.ones(len(interactions), dtype=torch.bool)
    kept[rows] = False
    return interactions.select(kept)


# The tables.


@dataclass(frozen=True)
class _Table:
    """The wanted columns of one CSV table, by our names, and the line that each row ends on."""

    place: Path
    own: Mapping[str, str]
    lines: Sequence[int]
    columns: Mapping[str, list[str]]

    def where(self, row: int, key: str | None = None) -> str:
        column = "" if key is None else f", column {self.own[key]!r}"
        return f"{self.place}: line {self.lines[row]}{column}"

    def numbered(self, key: str) -> dict[str, int]:
        """Number the names of a column in the order in which they first appear, from 0."""
        names = self.columns[key]
        known = {name: number for number, name in enumerate(dict.fromkeys(names))}
        for name in known:
            # What pandas writes for a missing value is no name.
            if not name or name != name.strip() or name.casefold() == "nan":
                raise DataError(
                    f"{self.where(names.index(name), key)}: {name!r} is no name: write one, "
                    "without space around it, or leave out the row"
                )
        return known

    def index(self, key: str, known: Mapping[str, int]) -> np.ndarray:
        """Return the number of the name in each row, int64."""
        names = self.columns[key]
        try:
            return np.array([known[name] for name in names], dtype=np.int64)
        except KeyError as error:
            name = error.args[0]
            raise DataError(
                f"{self.where(names.index(name), key)}: {name!r} is none of the {len(known)} known "
                "names: add it to the table of items, or leave out its rows"
            ) from None

    def seconds(self) -> np.ndarray:
        """Return the column of times, int64."""
        values = array("q")
        for row, cell in enumerate(self.columns["time"]):
            try:
                values.append(int(cell))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{self.where(row, 'time')}: {cell!r} is no whole number of seconds since 1970"
                    ": convert it"
                ) from error
        return np.array(values)


def _load_tables(
    place: Path, catalogue: Path | None, names: Mapping[str, str], separator: str | None
) -> tuple[Interactions, Callable[[int], str]]:
    """Return the interactions in the order of their table, and where in it a row is."""
    features = ("category", "title")
    own = own_names(names, ("user", "item", "time", "session", *features), str(place), "names")
    if catalogue is None and (separator is not None or not names.keys().isdisjoint(features)):
        raise DataError(f"{place}: category and title are columns of the table of items: give it")
    table = _read_table(place, own, ("user", "item", "time"), ("session",), names)
    users = table.numbered("user")
    described: dict[str, Any] = {}
    if catalogue is None:
        known = table.numbered("item")
    else:
        listed = _read_table(catalogue, own, ("item",), features, names)
        known = listed.numbered("item")
        described = _describe(listed, known, separator)
    user = table.index("user", users)
    session = None
    if "session" in table.columns:
        numbers = table.index("session", table.numbered("session"))
        pairs = np.stack([user, numbers], axis=1)
        session = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return Interactions(
        name=place.name.removesuffix(".gz").removesuffix(".csv"),
        user=torch.from_numpy(user),
        item=torch.from_numpy(table.index("item", known) + 1),
        num_users=len(users),
        num_items=len(known),
        time=torch.from_numpy(table.seconds()),
        session=None if session is None else torch.from_numpy(session),
        user_name=tuple(users),
        item_name=("", *known),
        **described,
    ), table.where


def _describe(table: _Table, known: Mapping[str, int], separator: str | None) -> dict[str, Any]:
    """Return the fields that a table of items fills."""
    if len(known) < len(table.lines):
        numbers = table.index("item", known)
        row = int(np.flatnonzero(numbers != np.arange(len(numbers)))[0])
        name = table.columns["item"][row]
        raise DataError(f"{table.where(row, 'item')}: {name!r} again: keep one row")
    found: dict[str, Any] = {}
    if "title" in table.columns:
        found["title"] = ("", *table.columns["title"])
    if "category" in table.columns:
        cells = table.columns["category"]
        first = cells if separator is None else [cell.split(separator)[0] for cell in cells]
        categories = ["", *(cell.strip() for cell in first)]
        numbers_of = {name: number for number, name in enumerate(dict.fromkeys(categories))}
        found["category"] = torch.tensor([numbers_of[name] for name in categories])
        found["category_name"] = tuple(numbers_of)
    return found


def _read_table(
    place: Path,
    own: Mapping[str, str],
    required: Sequence[str],
    optional: Sequence[str],
    names: Mapping[str, str],
) -> _Table:
    """Read some columns as text, by our names; an optional one that names holds must be there."""
    with open_table(place) as (header, rows):
        wanted = [*required, *(key for key in optional if key in names)]
        check_there([own[key] for key in wanted], header, str(place), "names")
        keys = [key for key in (*required, *optional) if own[key] in header]
        return _read_rows(rows, header, place, {key: own[key] for key in keys})


def _read_rows(
    rows: Iterable[tuple[int, list[str]]],
    header: Sequence[str],
    place: Path,
    columns: Mapping[str, str],
) -> _Table:
    repeated = [name for name in columns.values() if header.count(name) > 1]
    if repeated:
        raise DataError(f"{place}: line 1: the column {repeated[0]!r} is there twice")
    lines = array("q")
    cells: dict[str, list[str]] = {key: [] for key in columns}
    places = [(header.index(columns[key]), column) for key, column in cells.items()]
    for line, row in rows:
        lines.append(line)
        for i, column in places:
            column.append(sys.intern(row[i]))  # the same few names, once per interaction
    if not lines:
        raise DataError(f"{place}: has no row under its header: give at least one")
    return _Table(place, columns, lines, cells)


# The archive.


def _load_archive(
    place: Path, names: Mapping[str, str]
) -> tuple[Interactions, Callable[[int], str]]:
    """Return the interactions in the order of the archive, and what to call a row of it."""
    arrays = _read_archive(place, names)
    rows: dict[str, Any] = {
        key: torch.from_numpy(as_integers(arrays[key], f"{place}: {key}"))
        for key in ("user", "item", "items", "time", "session")
        if key in arrays
    }
    if sequences := "indptr" in arrays:
        rows["item"] = rows.pop("items")
        rows["user"] = _users(arrays["indptr"], len(rows["item"]), f"{place}: indptr")
    interactions = Interactions(
        name=str(arrays.get("name", place.stem)),
        **rows,
        **_counts(arrays, rows, str(place)),
        **_features(arrays, str(place)),
    )
    if sequences and interactions.time is not None:
        interactions.validate(str(place))  # or sorting would hide that indptr and time disagree
    return interactions, lambda row: f"{place}: row {row}"


def _read_archive(place: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return what the archive holds, by our keys, of as many axes as documented."""
    own = own_names(names, _KEYS, str(place), "names")
    found, files = read_arrays(place, own.values())
    arrays = {key: found[name] for key, name in own.items() if name in found}
    sequences = "items" in arrays or "indptr" in arrays
    wanted = ("items", "indptr") if sequences else ("user", "item")
    check_there([own[key] for key in dict.fromkeys((*wanted, *names))], files, str(place), "names")
    both = [own[key] for key in ("user", "item") if sequences and key in arrays]
    if both:
        raise DataError(
            f"{place}: holds {own['items']} and {own['indptr']}, and {', '.join(both)} too: give "
            "one of the two forms"
        )
    for key, values in arrays.items():
        ndim = 0 if key in _SCALARS else 2 if key == "text" else 1
        if values.ndim != ndim:
            raise DataError(f"{place}: {own[key]} has shape {values.shape}, must have {ndim} axes")
    return arrays


def _counts(
    arrays: Mapping[str, np.ndarray], rows: Mapping[str, torch.Tensor], name: str
) -> dict[str, Any]:
    """Return num_users and num_items: as given, or from what has an entry for each, or the rows."""
    users = [len(arrays["indptr"]) - 1] if "indptr" in arrays else []
    users += [len(arrays["user_name"])] if "user_name" in arrays else []
    items = [len(arrays[key]) - 1 for key in _PER_ITEM if key in arrays]
    items += [len(arrays["attribute_indptr"]) - 2] if "attribute_indptr" in arrays else []
    counts = {}
    for key, known, numbers, first in (
        ("num_users", users, rows["user"], 0),
        ("num_items", items, rows["item"], 1),
    ):
        if key in arrays:
            counts[key] = int(as_integers(arrays[key], f"{name}: {key}"))
        else:
            counts[key] = known[0] if known else _count(numbers, first, key, name)
    return counts


def _count(numbers: torch.Tensor, first: int, key: str, name: str) -> int:
    """Return how many there are if the largest number is the last one's."""
    if not len(numbers):
        return 1  # for the rules of the class to name
    largest = int(numbers.max())
    if largest > _LARGEST_PER_ROW * len(numbers):
        # Memory grows with the largest number, and what a shop calls an item can be any.
        raise DataError(
            f"{name}: {key} is absent and a number of {largest} is too large for "
            f"{len(numbers)} rows: number from {first} without gaps, or give {key}"
        )
    return max(largest + 1 - first, 1)


def _users(bounds: np.ndarray, num_rows: int, field: str) -> torch.Tensor:
    """Return the user of each row, int64 (n,), from the bounds of each user's rows."""
    indptr = as_integers(bounds, field)
    if indptr.ndim != 1 or len(indptr) < 2:
        raise DataError(f"{field} has shape {indptr.shape}, must be (num_users + 1,)")
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if len(falls):
        raise DataError(f"{field} falls after user {falls[0]}, must never decrease")
    if indptr[0] != 0 or indptr[-1] != num_rows:
        raise DataError(
            f"{field} runs from {indptr[0]} to {indptr[-1]}, must run from 0 to the {num_rows} "
            "entries of items"
        )
    return torch.from_numpy(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))


def _features(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """Return the fields that describe users and items, the entry of padding as it must be."""
    found: dict[str, Any] = {}
    for key in ("user_name", "item_name", "category_name", "title"):
        if key in arrays:
            names = as_names(arrays[key], f"{name}: {key}")
            found[key] = names if key == "user_name" else ("", *names[1:])
    for key in ("category", "attribute", "attribute_indptr"):
        if key in arrays:
            found[key] = torch.from_numpy(as_integers(arrays[key], f"{name}: {key}"))
    if "text" in arrays:
        found["text"] = torch.from_numpy(as_floats(arrays["text"], f"{name}: text"))
    for key in found.keys() & {"category", "text"}:
        found[key][:1] = 0
    return found
