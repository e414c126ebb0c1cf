"""The only place that packs and unpacks Flower records: tensors in, bytes out, and their size."""

import io
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.constant import SType
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import Tensor

from graphcl.errors import ReplyError

_VERSION = b"\x93NUMPY\x01\x00"  # of NumPy's format: a 16-bit length and a header follow


class _PackedArray(Array):
    """Flower's array, bytes and all, read without parsing the same header again and again."""

    # Flower writes this name on the wire; a SuperLink refuses one that it does not know.
    __qualname__ = Array.__qualname__

    @classmethod
    def of(cls, array: np.ndarray) -> "_PackedArray":
        """Pack numbers, as Flower's constructor does in ten times the time."""
        dtype, shape = _name(array.dtype), array.shape
        return _packed(dtype, shape, _header(dtype, shape) + array.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes a class under another's name would travel whole, again and again.
        return _packed, (self.dtype, self.shape, self.data)

    def numpy(self) -> np.ndarray:
        """Return the array, the caller's own."""
        return _numbers(self).copy()


def _packed(dtype: str, shape: tuple[int, ...], data: bytes) -> _PackedArray:
    array = _PackedArray.__new__(_PackedArray)
    array.__dict__.update(dtype=dtype, shape=shape, stype=SType.NUMPY, data=data)
    return array


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors, on any device."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        # Put in one by one, since Flower's constructor copies to its own class.
        record[name] = _PackedArray.of(tensor.detach().cpu().numpy())
    return record


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Unpack named tensors onto the CPU."""
    return {name: torch.from_numpy(_numbers(array).copy()) for name, array in arrays.items()}


def pack(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors as one array for each type of number, which is named by what is in it.

    For what is always read as a whole and by ourselves, such as the state of a node: a record of
    dozens of arrays takes ten times as long to write and thirty times as long to read.
    """
    alike: dict[Any, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        alike.setdefault((tensor.dtype, tensor.device), {})[name] = tensor.detach()
    record = ArrayRecord()
    for group in alike.values():
        layout = _layout(tuple((name, tuple(tensor.shape)) for name, tensor in group.items()))
        numbers = torch.cat([tensor.reshape(-1) for tensor in group.values()])
        record[layout] = _PackedArray.of(numbers.cpu().numpy())
    return record


def unpack(record: ArrayRecord) -> dict[str, Tensor]:
    """Inverse of :func:`pack`: the tensors on the CPU, in no particular order."""
    tensors: dict[str, Tensor] = {}
    for layout, array in record.items():
        names, shapes, sizes = _laid_out(layout)
        parts = torch.from_numpy(_numbers(array).copy()).split(sizes)
        for name, shape, part in zip(names, shapes, parts, strict=True):
            tensors[name] = part.view(shape)
    return tensors


@lru_cache(maxsize=1024)
def _layout(arrays: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    return json.dumps(arrays)


@lru_cache(maxsize=1024)
def _laid_out(layout: str) -> tuple[list[str], list[tuple[int, ...]], list[int]]:
    arrays = [(name, tuple(shape)) for name, shape in json.loads(layout)]
    return (
        [name for name, _ in arrays],
        [shape for _, shape in arrays],
        [math.prod(shape) for _, shape in arrays],
    )


def _numbers(array: Array) -> np.ndarray:
    """Return a packed array, a view of its bytes where they are laid out as we lay them out.

    Raises:
        ValueError: If the bytes are no array, or too few for its shape.
    """
    data = array.data
    if array.stype != SType.NUMPY or not data.startswith(_VERSION):
        return Array.numpy(array)
    start = 10 + int.from_bytes(data[8:10], "little")
    dtype, shape, in_columns = _parsed(data[:start])
    if in_columns or dtype.hasobject or 0 in shape:
        return Array.numpy(array)
    return np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)


@lru_cache
def _name(dtype: np.dtype) -> str:
    """Return the name of a type, which NumPy puts together anew each time."""
    return str(dtype)


@lru_cache(maxsize=1024)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return what :func:`numpy.save` writes before the numbers of an array in C order."""
    file = io.BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(dtype))
    layout = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, layout)
    return file.getvalue()


@lru_cache(maxsize=1024)
def _parsed(header: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Return type and shape that a header tells, and whether columns come first."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, shape, in_columns


def to_bytes(content: RecordDict) -> bytes:
    """Serialise a content without pickle."""
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> RecordDict:
    """Inverse of :func:`to_bytes`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def round_of(content: RecordDict) -> int:
    """Return the round that what a server sent is about."""
    return int(content.config_records["config"]["server-round"])  # type: ignore[arg-type]


def num_bytes(content: RecordDict) -> int:
    """Return the size of a content on the wire, in bytes."""
    return int(recorddict_to_proto(content).ByteSize())


def check_dtype(name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Raise if a received tensor has another type of number than promised.

    Raises:
        ReplyError: Naming the array and both types.
    """
    if tensor.dtype != expected:
        raise ReplyError(f"array '{name}' holds {tensor.dtype}, not {expected}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise if a tensor holds NaN or infinity.

    Raises:
        ReplyError: Naming the first such array and its first offending position.
    """
    floats = [t for t in tensors.values() if t.is_floating_point() and t.numel()]
    # One pass over all of them, since a model has dozens, and hardly ever one that is amiss.
    if torch.isfinite(torch.nn.utils.get_total_norm(floats, math.inf)):
        return
    for name, tensor in tensors.items():
        for place in (~torch.isfinite(tensor)).nonzero().tolist():
            raise ReplyError(f"array '{name}' is not finite at {place}")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise if a received tensor has another shape than promised.

    Raises:
        ReplyError: Naming the array and both shapes.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ReplyError(f"array '{name}' has shape {list(tensor.shape)}, not {list(expected)}")
