"""PyTorch Geometric's data sets load from files on disk and are never downloaded."""

import numpy as np
import pytest
import torch
import torch_geometric.datasets

from graphcl.datasets import PYG_CLASSES, load, load_pyg
from graphcl.errors import DataError


@pytest.fixture
def texas(tmp_path):
    """Write the raw files of WebKB/Texas with four nodes and one directed cycle."""
    raw = tmp_path / "texas" / "raw"
    raw.mkdir(parents=True)
    rows = [f"{node}\t{node % 2},1\t{node % 2}" for node in range(4)]
    (raw / "out1_node_feature_label.txt").write_text("\n".join(["id\tx\ty", *rows, ""]))
    edges = ["0\t1", "1\t2", "2\t0"]
    (raw / "out1_graph_edges.txt").write_text("\n".join(["a\tb", *edges, ""]))
    part = np.eye(4)
    for split in range(10):
        np.savez(
            raw / f"texas_split_0.6_0.2_{split}.npz",
            train_mask=part[0] + part[1],
            val_mask=part[2],
            test_mask=part[3],
        )
    return tmp_path


@pytest.mark.parametrize("entry", [load_pyg, lambda name, root: load(f"pyg:{name}", root=root)])
def test_files_on_disk_load_as_a_node_graph(texas, entry):
    data = entry("WebKB/Texas", texas)
    assert data.x.tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert data.y.tolist() == [0, 1, 0, 1]
    assert data.edge_index.tolist() == [[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]
    assert data.train_mask.shape == (4, 10)
    assert data.test_mask[:, 9].tolist() == [False, False, False, True]


def test_one_test_mask_serves_all_training_masks(tmp_path, monkeypatch):
    class WikiCS:
        def __init__(self, root):
            self.masks = torch.zeros(3, 2, dtype=torch.bool)

        def __getitem__(self, index):
            return torch_geometric.data.Data(
                x=torch.ones(3, 1),
                edge_index=torch.tensor([[0], [1]]),
                y=torch.tensor([[0], [1], [0]]),
                train_mask=self.masks,
                test_mask=torch.tensor([True, False, False]),
            )

    monkeypatch.setattr(torch_geometric.datasets, "WikiCS", WikiCS)
    data = load_pyg("WikiCS", tmp_path)
    assert data.test_mask.tolist() == [[True, True], [False, False], [False, False]]
    assert data.y.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", ["Planetoid/Cora", "WebKB/Texas", "Amazon/Photo", "Actor"])
def test_missing_files_tell_how_to_download_them(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        pytest.fail("tried to use the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    class_name = name.split("/")[0]
    command = rf"from torch_geometric.datasets import {class_name}; {class_name}\("
    with pytest.raises(DataError, match=command):
        load_pyg(name, tmp_path)


def test_mistyped_root_is_not_created(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_pyg("Planetoid/Cora", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Planetoyd/Cora", "'Planetoyd' is unknown; nearest: Planetoid"),
        ("zzz", "nearest: Actor, Airports"),
        ("os/system", "is unknown"),
        ("Planetoid", "write it as Planetoid/NAME"),
        ("Actor/one", "write it as Actor$"),
        ("WebKB/Oxford", "WebKB has no data set 'Oxford'"),
    ],
)
def test_wrong_names(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        load_pyg(name, tmp_path)


def test_listed_classes_exist():
    assert [name for name in PYG_CLASSES if not hasattr(torch_geometric.datasets, name)] == []
