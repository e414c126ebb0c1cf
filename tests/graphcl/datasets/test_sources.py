"""Sources are found where the documentation says, and folders hold one graph per client."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from graphcl.datasets import count_classes, load, load_silos, save_npz
from graphcl.errors import DataError


def write(path, *, y=(0, 1), num_features=2, value=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_npz(
        Data(
            x=torch.full((len(y), num_features), value),
            edge_index=torch.tensor([[0, 1], [1, 0]]),
            y=torch.tensor(y),
        ),
        path,
    )


@pytest.fixture
def places(tmp_path, monkeypatch):
    here, data, other = (tmp_path / name for name in ("here", "data", "other"))
    for folder in (here, data, other):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("GRAPHCL_DATA", str(data))
    return here, data, other


def test_working_directory_comes_before_the_data_folder(places):
    here, data, other = places
    write(data / "g.npz", value=2.0)
    assert load("g.npz").x[0, 0] == 2
    write(here / "g.npz", value=1.0)
    assert load("g.npz").x[0, 0] == 1
    assert load(data / "g.npz").x[0, 0] == 2
    write(other / "sub" / "h.npz", value=3.0)
    assert load("sub/h.npz", root=other).x[0, 0] == 3


def test_not_found_names_both_places(places, monkeypatch):
    here, data, _ = places
    with pytest.raises(DataError, match="not found") as caught:
        load("absent.npz")
    assert str(here / "absent.npz") in str(caught.value)
    assert str(data / "absent.npz") in str(caught.value)
    monkeypatch.delenv("GRAPHCL_DATA")
    with pytest.raises(DataError, match="GRAPHCL_DATA is not set"):
        load("absent.npz")
    with pytest.raises(DataError, match="give root or set GRAPHCL_DATA"):
        load("pyg:Planetoid/Cora")


def test_digits_and_unknown_sources():
    assert load("digits").x.shape == (1797, 64)
    with pytest.raises(DataError, match=r"'cora' is no source: use 'digits'"):
        load("cora")


def test_folder_is_one_graph_per_client_sorted_by_name(places):
    _, data, _ = places
    write(data / "silos" / "b.npz", y=(0, 2, 2), value=2.0)
    write(data / "silos" / "a.npz", y=(1, 1), value=1.0)
    graphs = load_silos("silos")
    assert [graph.x[0, 0].item() for graph in graphs] == [1, 2]
    assert count_classes(graphs) == 3


def test_folder_must_agree(places):
    here, _, _ = places
    with pytest.raises(DataError, match=r"no \.npz file"):
        load_silos(here)
    write(here / "a.npz", y=(0, 3))
    write(here / "b.npz", y=(1, 1))
    with pytest.raises(DataError, match="no node has class 2:"):
        load_silos(here)
    write(here / "b.npz", y=(1, 2), num_features=5)
    with pytest.raises(DataError, match=r"x of b\.npz has 5 columns but that of a\.npz has 2"):
        load_silos(here)
    with pytest.raises(DataError, match="not found"):
        load_silos("absent")


def several(path, **changed):
    """Write two graphs into one file: A of three nodes, sparse, and B of two, sparse."""
    arrays = {
        "A_edges": np.array([[0, 1], [1, 2]]),
        "A_y": np.array([0, 1, 2]),
        "A_x_indices": np.array([3, 0, 1]),
        "A_x_indptr": np.array([0, 1, 3, 3]),
        "B_b_edges": np.array([[0, 1]]),
        "B_b_y": np.array([1, 1]),
        "B_b_x_indices": np.array([4]),
        "B_b_x_indptr": np.array([0, 0, 1]),
        "num_features": np.array(5),
    } | changed
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_one_file_may_hold_several_graphs_under_prefixes(tmp_path):
    first, second = load_silos(several(tmp_path / "s.npz"))
    assert first.x.tolist() == [[0, 0, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert first.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert first.y.tolist() == [0, 1, 2]
    assert second.x.shape == (2, 5)
    assert second.y.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"A_edges": None}, r"s\.npz: graph A: missing keys: edges .*the file has x_indices"),
        ({"num_features": None}, r"graph A: missing keys: x_shape"),
        ({"num_features": np.array([5])}, r"num_features has shape \(1,\)"),
        ({"num_features": np.array(4)}, r"graph B_b: x_indices\[0\] is 4"),
        ({"num_features": np.array(2.0)}, "must be one integer"),
        ({"A_edges": np.array([[0, 7]])}, r"graph A: edges\[0, 1\] is 7"),
        ({"A_y": np.array([0, 1])}, "graph A: y has 2 entries for the 3 rows"),
        ({"A_y": np.array([0, 1, 4])}, r"s\.npz: unlabelled classes: .* no node has class 2, 3"),
        ({"B_b_x_shape": np.array([2, 9])}, "x of B_b has 9 columns but that of A has 5"),
        ({"B_b_x_indptr": np.array([0, 1])}, "graph B_b"),
    ],
)
def test_a_wrong_graph_among_several_is_named(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        load_silos(several(tmp_path / "s.npz", **changed))


def test_a_file_of_one_graph_is_no_file_of_several(places):
    here, _, _ = places
    write(here / "one.npz")
    with pytest.raises(DataError, match=r"one\.npz: no graph under a prefix.*has edges, x"):
        load_silos("one.npz")
