"""The only place that packs and unpacks Flower records: tensors in, bytes out, and their size."""

from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from torch import Tensor

from graphcl.errors import ReplyError


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Pack named tensors, on any device."""
    return ArrayRecord({name: Array(t.detach().cpu().numpy()) for name, t in tensors.items()})


def to_tensors(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Unpack named tensors onto the CPU."""
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}


def to_bytes(content: RecordDict) -> bytes:
    """Serialise a content without pickle."""
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> RecordDict:
    """Inverse of :func:`to_bytes`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


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


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise if a received tensor holds NaN or infinity.

    Raises:
        ReplyError: Naming the array and the first offending position.
    """
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        where = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ReplyError(f"array '{name}' is not finite at {list(where)}")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raise if a received tensor has another shape than promised.

    Raises:
        ReplyError: Naming the array and both shapes.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ReplyError(f"array '{name}' has shape {list(tensor.shape)}, not {list(expected)}")
