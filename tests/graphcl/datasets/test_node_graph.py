"""The npz node-graph format: what loads, what is refused and what the message says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, to_undirected

from graphcl.datasets import load, load_npz, save_npz, validate
from graphcl.errors import DataError


def arrays(**changes):
    """Return a legal file of five nodes; a change to None leaves a key out."""
    keys = {
        "x": np.arange(10, dtype=np.uint8).reshape(5, 2),
        "edges": np.array([[3, 0], [1, 2], [2, 3]], dtype=np.int32),
        "y": np.array([0, 1, 2, 1, 0], dtype=np.int16),
    }
    keys.update(changes)
    return {key: value for key, value in keys.items() if value is not None}


@pytest.fixture
def write(tmp_path):
    def write_file(**changes):
        path = tmp_path / "graph.npz"
        np.savez(path, **arrays(**changes))
        return path

    return write_file


def graph(**changes):
    fields = {
        "x": torch.ones(4, 3),
        "edge_index": to_undirected(torch.tensor([[0, 1], [1, 2]])),
        "y": torch.tensor([0, 1, 0, 1]),
    }
    fields.update(changes)
    return Data(**fields)


def test_edges_get_their_reverse_and_the_documented_types(write):
    data = load_npz(write())
    assert data.edge_index.tolist() == [[0, 1, 2, 2, 3, 3], [3, 2, 1, 3, 0, 2]]
    assert data.x.tolist() == arrays()["x"].tolist()
    assert data.y.tolist() == [0, 1, 2, 1, 0]
    assert (data.x.dtype, data.edge_index.dtype, data.y.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert "train_mask" not in data


def test_repeated_edges_are_merged_and_self_loops_kept(write):
    data = load_npz(write(edges=np.array([[0, 1], [1, 0], [0, 1], [2, 2]])))
    assert data.edge_index.tolist() == [[0, 1, 2], [1, 0, 2]]


def test_directed_edges_stay_directed(write):
    data = load_npz(write(edges=None, edge_index=np.array([[3, 1], [0, 2]])))
    assert data.edge_index.tolist() == [[1, 3], [2, 0]]


def test_zero_edges_are_legal(write):
    data = load_npz(write(edges=np.empty((0, 2), dtype=np.int64)))
    assert data.edge_index.shape == (2, 0)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.float16, np.float64])
def test_features_of_any_number_type(write, dtype):
    x = np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 0]], dtype=dtype)
    data = load_npz(write(x=x))
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == x.astype(float).tolist()


@pytest.mark.parametrize("with_data", [True, False])
def test_sparse_features_equal_dense_ones(write, with_data):
    dense = np.array([[0, 2, 0], [1, 0, 3], [0, 0, 0], [0, 0, 4], [5, 0, 0]], dtype=np.float32)
    rows = csr_matrix(dense)
    sparse = {"x_indices": rows.indices, "x_indptr": rows.indptr, "x_shape": np.array([5, 3])}
    if with_data:
        sparse["x_data"] = rows.data
    data = load_npz(write(x=None, **sparse))
    assert data.x.tolist() == (dense if with_data else dense != 0).astype(float).tolist()


def test_masks_of_several_splits_are_transposed(write):
    train = np.array([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0]], dtype=bool)
    data = load_npz(write(train_mask=train, val_mask=~train))
    assert data.train_mask.shape == (5, 2)
    assert data.train_mask[:, 1].tolist() == [False, True, True, False, False]
    assert data.val_mask.tolist() == (~train.T).tolist()


def test_other_keys_are_ignored(write):
    data = load_npz(write(geom_train_mask=np.zeros(3), note=np.array({"any": "object"})))
    assert sorted(data.keys()) == ["edge_index", "x", "y"]


FILE_RULES = {
    "no x": ({"x": None}, r"missing keys: x \(or x_indices.*the file has edges, y"),
    "no edges": ({"edges": None}, r"missing keys: edges \(or edge_index\)"),
    "no y": ({"y": None}, "missing keys: y; the file has edges, x"),
    "part of csr": ({"x": None, "x_indices": np.arange(2)}, "missing keys: x_indptr, x_shape"),
    "both edges": ({"edge_index": np.zeros((2, 1), int)}, "both edges and edge_index"),
    "float edges": ({"edges": np.zeros((1, 2))}, "edges is float64, must be an integer"),
    "float y": ({"y": np.zeros(5)}, "y is float64, must be an integer"),
    "text x": ({"x": np.full((5, 2), "a")}, "x is <U1, must be real"),
    "complex x": ({"x": np.ones((5, 2), complex)}, "x is complex128"),
    "object x": ({"x": np.array([[None, 1]] * 5)}, "x cannot be read"),
    "flat x": ({"x": np.ones(5)}, r"x has shape \(5,\)"),
    "no columns": ({"x": np.ones((5, 0))}, "x has 0 columns"),
    "wide edges": ({"edges": np.zeros((2, 3), int)}, r"edges has shape \(2, 3\), must be \(E, 2\)"),
    "edge_index rows": (
        {"edges": None, "edge_index": np.zeros((3, 2), int)},
        r"edge_index has shape \(3, 2\), must be \(2, E\)",
    ),
    "y matrix": ({"y": np.zeros((5, 1), int)}, r"y has shape \(5, 1\)"),
    "short y": ({"y": np.array([0, 1])}, "y has 2 entries for the 5 rows of x"),
    "far node": (
        {"edges": np.array([[0, 1], [2, 5]])},
        r"edges\[1, 1\] is 5, but the nodes are 0 to 4 \(1 such\)",
    ),
    "negative node": ({"edges": np.array([[0, 1], [-1, 2]])}, r"edges\[1, 0\] is -1"),
    "far node, directed": (
        {"edges": None, "edge_index": np.array([[0, 9], [1, 1]])},
        r"edge_index\[0, 1\] is 9",
    ),
    "nan": ({"x": np.array([[0.0, 1.0]] * 4 + [[1.0, np.nan]])}, r"x\[4, 1\] is nan"),
    "inf": ({"x": np.array([[np.inf, 1.0]] * 5)}, r"x\[0, 0\] is inf \(5 such\)"),
    "float32 overflow": ({"x": np.array([[0.0, 1e300]] * 5)}, r"x\[0, 1\] is inf.*float32"),
    "negative y": ({"y": np.array([0, 1, -1, 0, 0])}, r"y\[2\] is -1"),
    "class gap": ({"y": np.array([0, 3, 5, 0, 0])}, "unlabelled classes: .* class 1, 2, 4: "),
    "wild class": ({"y": np.array([0, 1, 2, 3, 10**15])}, "no node has class 4, 5, .*, 13, ..."),
    "no nodes": (
        {"x": np.ones((0, 2)), "edges": np.empty((0, 2), int), "y": np.empty(0, int)},
        "the graph is empty",
    ),
    "int mask": ({"test_mask": np.ones(5, int)}, "test_mask is int64, must be bool"),
    "short mask": ({"val_mask": np.ones(4, bool)}, r"val_mask has shape \(4,\), must be \(5,\)"),
    "turned mask": ({"val_mask": np.ones((5, 2), bool)}, r"must be \(5,\) or \(S, 5\)"),
    "overlap": (
        {"train_mask": np.eye(5, dtype=bool)[1], "test_mask": np.ones(5, bool)},
        "train_mask and test_mask overlap at row 1",
    ),
    "overlap in a split": (
        {"train_mask": np.eye(5, dtype=bool)[:2], "val_mask": np.eye(5, dtype=bool)[[3, 1]]},
        "train_mask and val_mask of split 1 overlap at row 1",
    ),
    "unlike splits": (
        {"train_mask": np.zeros((2, 5), bool), "val_mask": np.zeros(5, bool)},
        "give all masks the same splits",
    ),
}


@pytest.mark.parametrize(("changes", "message"), FILE_RULES.values(), ids=FILE_RULES)
def test_broken_rule_is_named_with_file_and_field(write, changes, message):
    path = write(**changes)
    with pytest.raises(DataError, match=message) as caught:
        load_npz(path)
    assert str(caught.value).startswith(f"{path}: ")


CSR_RULES = {
    "short indptr": ({"x_indptr": np.array([0, 1, 2])}, r"N \+ 1 = 6"),
    "falling indptr": ({"x_indptr": np.array([0, 2, 1, 2, 3, 4])}, "falls after row 1"),
    "late indptr": ({"x_indptr": np.array([1, 1, 1, 2, 3, 4])}, "runs from 1 to 4"),
    "early indptr end": ({"x_indptr": np.array([0, 1, 1, 2, 3, 3])}, "to the 4 entries"),
    "far column": ({"x_indices": np.array([0, 1, 3, 0])}, r"x_indices\[2\] is 3 \(row 3 of x\)"),
    "negative column": ({"x_indices": np.array([-1, 1, 2, 0])}, r"\(row 0 of x\)"),
    "float indices": ({"x_indices": np.zeros(4)}, "x_indices is float64"),
    "short data": ({"x_data": np.ones(3)}, "one value for each of the 4"),
    "bad shape": ({"x_shape": np.array([5])}, r"x_shape is \[5\]"),
}


@pytest.mark.parametrize(("changes", "message"), CSR_RULES.values(), ids=CSR_RULES)
def test_inconsistent_sparse_rows_are_named(write, changes, message):
    sparse = {
        "x_indices": np.array([0, 1, 2, 0]),
        "x_indptr": np.array([0, 1, 2, 2, 3, 4]),
        "x_shape": np.array([5, 3]),
    }
    load_npz(write(x=None, **sparse))
    with pytest.raises(DataError, match=message):
        load_npz(write(x=None, **(sparse | changes)))


def test_what_is_no_archive_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_npz(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="not a readable npz archive"):
        load_npz(tmp_path / "text.npz")
    np.save(tmp_path / "bare.npy", np.ones(3))
    with pytest.raises(DataError, match="one bare array"):
        load_npz(tmp_path / "bare.npy")


GRAPH_RULES = {
    "no x": ({"x": None}, "x is NoneType"),
    "double x": ({"x": torch.ones(4, 3, dtype=torch.float64)}, "x is torch.float64"),
    "int edges": ({"edge_index": torch.zeros(2, 1, dtype=torch.int32)}, "edge_index is torch.int3"),
    "turned edges": ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"must be \[2, E\]"),
    "far edge": ({"edge_index": torch.tensor([[0], [4]])}, r"edge_index\[1, 0\] is 4"),
    "float y": ({"y": torch.zeros(4)}, "y is torch.float32"),
    "mask type": ({"train_mask": torch.ones(4)}, "train_mask must be a boolean tensor"),
    "mask shape": ({"val_mask": torch.ones(2, 4, dtype=torch.bool)}, r"must be \[4\] or \[4, S\]"),
    "no splits": ({"val_mask": torch.ones(4, 0, dtype=torch.bool)}, r"shape \[4, 0\]"),
}


@pytest.mark.parametrize(("changes", "message"), GRAPH_RULES.values(), ids=GRAPH_RULES)
def test_validate_names_the_graph_and_the_rule(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        validate(graph(**changes), "my graph")
    assert str(caught.value).startswith("my graph: ")


def test_validate_returns_a_legal_graph_and_can_allow_missing_classes():
    data = graph()
    assert validate(data) is data
    client = graph(y=torch.tensor([0, 2, 2, 0]))
    assert validate(client, every_class=False) is client
    with pytest.raises(DataError, match="class 1:"):
        validate(client)


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20),
    undirected=st.booleans(),
    splits=st.sampled_from([(), (3,)]),
)
def test_saved_graph_loads_as_it_was(tmp_path_factory, pairs, undirected, splits):
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    edge_index = (to_undirected if undirected else coalesce)(edge_index, num_nodes=6)
    train = torch.arange(6) < 2
    data = Data(
        x=torch.linspace(-1, 1, 12).reshape(6, 2),
        edge_index=edge_index,
        y=torch.tensor([0, 2, 1, 0, 1, 2]),
        train_mask=train.reshape(-1, *[1 for _ in splits]).expand(6, *splits).clone(),
    )
    path = tmp_path_factory.mktemp("saved") / "graph.data"
    save_npz(data, path)
    loaded = load_npz(path)
    assert sorted(loaded.keys()) == sorted(data.keys())
    for key in data.keys():  # noqa: SIM118 (Data iterates over pairs)
        assert torch.equal(loaded[key], data[key]), key


def test_save_refuses_a_broken_graph_and_takes_a_client_without_a_class(tmp_path):
    with pytest.raises(DataError, match=r"broken\.npz: x has shape"):
        save_npz(graph(x=torch.ones(4)), tmp_path / "broken.npz")
    assert not (tmp_path / "broken.npz").exists()
    save_npz(graph(y=torch.tensor([1, 1, 1, 1])), tmp_path / "client.npz")
    assert load_npz(tmp_path / "client.npz", every_class=False).y.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "nodes", "features", "edges", "classes", "splits"),
    [
        ("cora", 2708, 1433, 5278, 7, ()),
        ("texas", 183, 1703, 279, 5, (10,)),
        ("amazon_photo", 7650, 745, 119081, 8, None),
    ],
)
def test_published_graphs_load_unchanged(data_root, name, nodes, features, edges, classes, splits):
    if not (data_root / "graphs" / f"{name}.npz").exists():
        pytest.skip(f"graphs/{name}.npz is not under GRAPHCL_DATA")
    data = load(f"graphs/{name}.npz")
    assert data.x.shape == (nodes, features)
    assert data.num_edges == 2 * edges
    assert data.is_undirected()
    assert data.is_coalesced()
    assert int(data.y.max()) + 1 == classes
    if splits is not None:
        assert data.train_mask.shape == (nodes, *splits)
