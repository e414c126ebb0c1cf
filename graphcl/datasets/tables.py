"""CSV tables, and what a file may call a column or an array otherwise than we do."""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graphcl.errors import DataError

_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)


def own_names(
    names: Mapping[str, str], known: Sequence[str], name: str, argument: str
) -> dict[str, str]:
    """Return what the file calls each known key.

    Args:
        names: What it calls those that it names otherwise.
        known: All keys.
        name: The file, in a message.
        argument: What ``names`` is called where the user gave it.

    Raises:
        DataError: A key is unknown.
    """
    unknown = [key for key in names if key not in known]
    if unknown:
        raise DataError(
            f"{name}: {argument} holds {', '.join(map(repr, unknown))}; what a file may call "
            f"otherwise is {', '.join(known)}"
        )
    return {key: names.get(key, key) for key in known}


def check_there(wanted: Iterable[str], there: Sequence[str], name: str, argument: str) -> None:
    """Refuse a file that lacks something.

    Raises:
        DataError: Naming what is missing, what the file has, and the argument that may rename it.
    """
    missing = [key for key in wanted if key not in there]
    if missing:
        raise DataError(
            f"{name}: missing {', '.join(missing)}; the file has {', '.join(there) or 'nothing'}: "
            f"add what is missing, or say in {argument} what the file calls it"
        )


@contextmanager
def open_table(place: Path) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """Read a table, ``.csv`` or ``.csv.gz``: its header, and its rows with the number of each line.

    Empty lines are passed over.

    Raises:
        DataError: There is no such file, it is no CSV table in UTF-8, or a row has another number
            of cells than the header.
    """
    try:
        with (gzip.open if place.suffix == ".gz" else open)(
            place, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            yield header, _rows(reader, header, place)
    except FileNotFoundError as error:
        raise DataError(f"{place}: no such file") from error
    except _UNREADABLE as error:
        raise DataError(f"{place}: not a readable CSV table in UTF-8 ({error})") from error


def _rows(reader: Any, header: Sequence[str], place: Path) -> Iterator[tuple[int, list[str]]]:
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{place}: line {reader.line_num} has {len(row)} cells, must have the "
                f"{len(header)} of the header"
            )
        yield reader.line_num, row
