"""Weights on disk: exact, without code, and one message for what is no such file."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
    save_weights(tmp_path / "model.safetensors", weights, header)
    found, head = load_weights(str(tmp_path / "model.safetensors"))
    assert head == header
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype


def test_the_name_is_kept_as_given(tmp_path):
    save_weights(tmp_path / "model", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_may_share_memory(tmp_path):
    tied = torch.randn(4, 2)
    save_weights(tmp_path / "model", {"embedding": tied, "head": tied, "turned": tied.T}, {})
    found, _ = load_weights(tmp_path / "model")
    assert torch.equal(found["head"], tied)
    assert torch.equal(found["turned"], tied.T)


def test_what_was_loaded_outlives_its_file(tmp_path):
    save_weights(tmp_path / "model", {"weight": torch.ones(1000)}, {})
    found, _ = load_weights(tmp_path / "model")
    save_weights(tmp_path / "model", {"weight": torch.zeros(1)}, {})
    assert torch.equal(found["weight"], torch.ones(1000))


def bare(path):
    save_file({"weight": torch.ones(3)}, path)


def headed(header):
    return lambda path: save_file({"weight": torch.ones(3)}, path, metadata={"header": header})


def pickled(path):
    torch.save({"weight": torch.ones(3)}, path)


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
        lambda path: np.savez(path.open("wb"), weight=np.ones(3)),
        bare,
        headed("no json"),
        headed("[1]"),
        pickled,
        truncated,
    ],
    ids=[
        *("missing", "folder", "text", "empty", "npz", "no header", "no json", "a list"),
        *("pickled", "truncated"),
    ],
)
def test_what_is_no_model_is_one_message_with_its_path(write, tmp_path):
    write(tmp_path / "model.safetensors")
    with pytest.raises(GraphCLError, match=r"model\.safetensors: no saved model: \S"):
        load_weights(tmp_path / "model.safetensors")
