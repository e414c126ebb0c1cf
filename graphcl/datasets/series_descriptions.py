"""Descriptions of series files: a TOML file that says how to read an npz archive of others.

=================  ===============================================================================
key                content
=================  ===============================================================================
``file``           path of the archive
``name``           what to call the series
``channel_names``  list of names with units, ``["speed [mph]"]``
``start``          time of the first step, ISO 8601 text in UTC or with its offset
``interval``       seconds from step to step, an integer
``missing``        the value that the archive writes where there is none
``names``          table of what the archive calls a key otherwise, ``values = "speed"``
=================  ===============================================================================

All but ``file`` are optional and mean what they mean to
:func:`~graphcl.datasets.load_series`, which reads a path that ends in ``.toml`` as a description.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from graphcl.errors import DataError


@dataclass(frozen=True)
class SeriesDescription:
    """What there is to say of an archive beside what it holds; None says nothing.

    Attributes:
        name: What to call the series.
        names: What the archive calls a key otherwise.
        channel_names: The channels' names.
        start: The time of the first step.
        interval: Seconds from step to step.
        missing: The value that the archive writes where there is none.
    """

    name: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    channel_names: Sequence[str] | None = None
    start: str | None = None
    interval: int | None = None
    missing: float | None = None

    def over(self, other: Self) -> Self:
        """Return the other description, but what this one says in place of what that one does."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        said = {key: value for key, value in said.items() if value is not None}
        return replace(other, **said | {"names": {**other.names, **self.names}})


def read_description(path: Path) -> tuple[str, SeriesDescription]:
    """Return the path of the archive that a file describes, and what the file says of it.

    Raises:
        DataError: The file is no TOML, lacks ``file``, or has a key that is unknown or of a wrong
            type; the message names file and key.
    """
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable TOML file ({error})") from error
    for key, value in keys.items():
        if key not in _RULES:
            raise DataError(f"{path}: {key}: unknown key; the keys are {', '.join(_RULES)}")
        allowed, rule = _RULES[key]
        if not allowed(value):
            raise DataError(f"{path}: {key} is {value!r}, must be {rule}")
    if "file" not in keys:
        raise DataError(f"{path}: no key file: add the path of the npz archive that it describes")
    return keys.pop("file"), SeriesDescription(**keys)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_table_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_integer(value: Any) -> bool:
    return type(value) is int  # true and false are integers to isinstance


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "file": (_is_text, "text, the path of an npz archive"),
    "name": (_is_text, "text"),
    "channel_names": (_are_texts, "a list of text, such as ['speed [mph]']"),
    "start": (_is_text, "text, such as '2012-03-01T08:00'"),
    "interval": (_is_integer, "a whole number of seconds"),
    "missing": (_is_number, "a number"),
    "names": (_is_table_of_texts, "a table of text, such as values = 'speed'"),
}
