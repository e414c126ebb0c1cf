"""Tensors cross the wire bit by bit, without pickle, and their size is the size of the bytes."""

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    validate_object_content,
)
from ray import cloudpickle

from federation.records import (
    check_finite,
    check_shape,
    from_bytes,
    num_bytes,
    pack,
    to_arrays,
    to_bytes,
    to_tensors,
    unpack,
)
from graphcl.errors import ReplyError

TENSORS = {
    "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "int": torch.tensor([2**62, -1]),
    "bool": torch.tensor([[True], [False]]),
    "empty": torch.empty(0, 5),
    "no classes": torch.empty(0, dtype=torch.long),
    "scalar": torch.tensor(3.0),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    "needs gradient": torch.ones(2, requires_grad=True),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.shape == other.shape
        and one.dtype == other.dtype
        and one.detach().contiguous().numpy().tobytes()
        == other.detach().contiguous().numpy().tobytes()
    )


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_return_bit_by_bit(name):
    back = to_tensors(to_arrays({name: TENSORS[name]}))
    assert list(back) == [name]
    assert same(back[name], TENSORS[name])


def test_unpacked_tensors_are_ones_own():
    """Training writes into them; the record must not change with them."""
    arrays = to_arrays({"w": torch.zeros(3)})
    to_tensors(arrays)["w"] += 1
    assert to_tensors(arrays)["w"].tolist() == [0, 0, 0]


def test_packed_tensors_return_bit_by_bit_and_are_ones_own():
    state = RecordDict({"state": pack(TENSORS), "nothing": pack({})})
    assert len(state["state"]) == len({tensor.dtype for tensor in TENSORS.values()})
    again = from_bytes(to_bytes(state))
    back = unpack(again["state"])
    assert back.keys() == TENSORS.keys()
    assert all(same(back[name], tensor) for name, tensor in TENSORS.items())
    assert unpack(again["nothing"]) == {}
    back["float"] += 1
    assert same(unpack(again["state"])["float"], TENSORS["float"])


def content() -> RecordDict:
    return RecordDict(
        {
            "arrays": to_arrays(TENSORS),
            "nothing": ArrayRecord(),
            "metrics": MetricRecord({"loss": 0.25, "num-examples": 3}),
            "config": ConfigRecord({"server-round": 4, "text": "ü", "blob": b"\0", "yes": True}),
        }
    )


def test_a_superlink_takes_every_object_of_a_content():
    content = RecordDict({"arrays": to_arrays({name: TENSORS[name] for name in sorted(TENSORS)})})
    objects = get_all_nested_objects(content)
    for stored in objects.values():
        validate_object_content(stored.deflate())
    kinds = [type(stored).__qualname__ for stored in objects.values()]
    assert kinds.count("Array") > 1
    pieces = {key: stored.deflate() for key, stored in objects.items()}
    again = inflate_object_from_contents(content.object_id, pieces)
    assert to_bytes(again) == to_bytes(content)


def test_bytes_return_the_whole_content():
    back = from_bytes(to_bytes(content()))
    assert set(back) == set(content())
    tensors = to_tensors(back.array_records["arrays"])
    assert all(same(tensors[name], TENSORS[name]) for name in TENSORS)
    assert list(tensors) == list(TENSORS)  # the order of the arrays is the order of the sums
    assert len(back.array_records["nothing"]) == 0
    assert dict(back.metric_records["metrics"]) == {"loss": 0.25, "num-examples": 3}
    assert dict(back.config_records["config"]) == dict(content().config_records["config"])


def test_equal_contents_give_equal_bytes():
    assert to_bytes(content()) == to_bytes(content())


@pytest.mark.parametrize("make", [RecordDict, content], ids=["empty", "full"])
def test_size_is_the_length_of_the_bytes(make):
    assert num_bytes(make()) == len(to_bytes(make()))


def test_arrays_hold_no_pickle():
    data = to_bytes(content())
    assert b"\x80\x04\x95" not in data
    assert b"\x80\x05\x95" not in data
    objects = np.array([object()], dtype=object)
    with pytest.raises((ValueError, TypeError)):
        to_tensors(ArrayRecord({"o": Array(objects)}))


def test_arrays_travel_between_processes_without_their_class():
    # As Ray and Flower's own engine send them: the class under Flower's name is told by reference.
    record = to_arrays(TENSORS)
    data = cloudpickle.dumps(record)
    assert b"federation.records" in data
    assert b"_header" not in data
    assert to_bytes(RecordDict({"a": pickle.loads(data)})) == to_bytes(RecordDict({"a": record}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_first_value_that_is_not_finite_is_named_with_its_place(bad):
    tensor = torch.zeros(3, 2)
    tensor[1, 1] = tensor[2, 0] = bad
    with pytest.raises(ReplyError, match=r"array 'values' is not finite at \[1, 1\]"):
        check_finite({"counts": torch.ones(2, dtype=torch.int64), "values": tensor})


@pytest.mark.parametrize("name", ["float", "int", "bool", "empty", "no classes", "scalar"])
def test_finite_arrays_pass(name):
    check_finite({name: TENSORS[name]})


def test_wrong_shape_names_both():
    with pytest.raises(ReplyError, match=r"array 'w' has shape \[2, 3\], not \[3, 2\]"):
        check_shape("w", torch.zeros(2, 3), (3, 2))
    check_shape("w", torch.zeros(2, 3), (2, 3))
    check_shape("scalar", torch.tensor(1.0), ())
