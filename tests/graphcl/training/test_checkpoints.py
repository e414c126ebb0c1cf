"""Weights on disk: exact, without pickles, and one message for what is no such file."""

import numpy as np
import pytest
import torch

from graphcl.errors import GraphCLError
from graphcl.training import load_weights, save_weights


def test_weights_and_header_come_back_to_the_bit(tmp_path):
    weights = {
        "layer.weight": torch.randn(3, 4, requires_grad=True),
        "scale": torch.tensor(0.1, dtype=torch.float64),
        "index": torch.tensor([[1, 2]]),
        "empty": torch.empty(0),
        "inner/name": torch.tensor([True]),
    }
    header = {"names": ["a [m/s]", "ü"], "config": {"rate": 0.1, "on": True}}
    save_weights(tmp_path / "model.npz", weights, header)
    found, head = load_weights(str(tmp_path / "model.npz"))
    assert head == header
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_the_name_is_kept_as_given(tmp_path):
    save_weights(tmp_path / "model", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def pickled(path):
    with path.open("wb") as file:
        np.savez(file, header=np.array("{}"), weight=np.array([{}], dtype=object))


def truncated(path):
    save_weights(path, {"weight": torch.ones(1000)}, {})
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_text("hello"),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, weight=np.ones(3)),
        lambda path: np.savez(path, header=np.array("no json")),
        lambda path: np.savez(path, header=np.array("[1]")),
        lambda path: np.savez(path, header=np.array("{}"), weight=np.array(["text"])),
        array,
        pickled,
        truncated,
    ],
    ids=[
        *("missing", "folder", "text", "empty", "no header", "no json", "a list", "words"),
        *("array", "pickled", "truncated"),
    ],
)
def test_what_is_no_model_is_one_message_with_its_path(write, tmp_path):
    write(tmp_path / "model.npz")
    with pytest.raises(GraphCLError, match=r"model\.npz: no saved model: \S"):
        load_weights(tmp_path / "model.npz")
