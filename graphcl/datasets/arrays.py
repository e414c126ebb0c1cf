"""The arrays of an npz file, read and written without pickles, and checked conversions of them."""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graphcl.errors import DataError

_UNREADABLE = (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error)


def read_arrays(path: str | Path, keys: Iterable[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Read those of an npz file's arrays that are there, never a pickle.

    Args:
        path: The file.
        keys: Names of the arrays that are wanted.

    Returns:
        The arrays found, by name, and all names in the file.

    Raises:
        DataError: The file is missing or no npz archive, or an array is no plain one.
    """
    try:
        archive: Any = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable npz archive ({error})") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: holds one bare array: write the keys with numpy.savez")
    arrays = {}
    with archive:
        for key in keys:
            if key not in archive.files:
                continue
            try:
                arrays[key] = archive[key]
            except _UNREADABLE as error:
                raise DataError(
                    f"{path}: {key} cannot be read ({error}): save it as a plain array of numbers"
                ) from error
        return arrays, archive.files


def write_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as a compressed npz file, exactly where ``path`` says."""
    with open(path, "wb") as file:  # given a name, numpy would append a missing ".npz"
        np.savez_compressed(file, **arrays)


def as_names(values: Any, field: str) -> tuple[str, ...]:
    """Return an array or a sequence of text or integers as text.

    Args:
        values: Names of one axis.
        field: The name of the array in a message, with its file.

    Raises:
        DataError: The type or the number of axes is another.
    """
    names = np.asarray(values)
    if names.ndim != 1 or (names.dtype.kind not in "Uiu" and names.size):
        raise DataError(
            f"{field} is {names.dtype} of shape {names.shape}, must be text of one axis"
        )
    return tuple(map(str, names.tolist()))


def as_floats(values: np.ndarray, field: str, dtype: type = np.float32) -> np.ndarray:
    """Return real, integer or boolean numbers of any shape as C-ordered floats.

    What overflows becomes infinite, for a rule of the container to name by its place.  An array
    that is of the dtype and in C order already is returned itself, not copied.

    Args:
        values: Numbers.
        field: The name of the array in a message, with its file.
        dtype: float32 or float64.

    Raises:
        DataError: The type is another.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{field} is {values.dtype}, must be real, integer or boolean: convert it")
    with np.errstate(over="ignore"):
        return np.asarray(values, dtype=dtype, order="C")


def as_integers(values: np.ndarray, field: str) -> np.ndarray:
    """Return integers of any shape as int64 in C order, without a copy where they are so.

    Args:
        values: Integers.
        field: The name of the array in a message, with its file.

    Raises:
        DataError: The type is another.
    """
    if values.dtype.kind not in "iu":
        raise DataError(f"{field} is {values.dtype}, must be an integer dtype: convert it")
    return np.asarray(values, dtype=np.int64, order="C")
