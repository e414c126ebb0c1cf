"""The npz node-graph format: one file, one graph; or several, each under a prefix of its own.

======================  ==================  =====================================================
key                     shape               content
======================  ==================  =====================================================
``x``                   (N, F)              features, any real, integer or boolean dtype
``x_indices``,          (nnz,), (N + 1,),   instead of ``x``: the same in compressed sparse rows
``x_indptr``,           (2,)
``x_shape``
``x_data``              (nnz,)              values of the sparse rows; all ones if absent
``edges``               (E, 2)              undirected edges, each pair once
``edge_index``          (2, E)              instead of ``edges``: directed edges, kept as they are
``y``                   (N,)                integer class ids from 0
``train_mask``,         (N,) or (S, N)      optional, boolean: one split or S alternative splits
``val_mask``,
``test_mask``
======================  ==================  =====================================================

Other keys are ignored.  Repeated edges are merged; self-loops stay as the file has them.

A file of several graphs, one per client, holds the same keys as ``<name>_x``, ``<name>_edges``,
``<name>_y`` and so on; every key that ends in ``_y`` names a graph.  Its sparse features may do
without ``<name>_x_shape`` if ``num_features`` ``()`` holds the F that all graphs share.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, to_undirected

from graphcl.datasets.arrays import as_floats, as_integers, read_arrays, write_arrays
from graphcl.datasets.validation import MASKS, check_node_indices, validate
from graphcl.errors import DataError

__all__ = ["load_npz", "load_npz_graphs", "save_npz", "validate"]

_SPARSE = ("x_indices", "x_indptr", "x_shape")
_KEYS = ("x", *_SPARSE, "x_data", "edges", "edge_index", "y", *MASKS)


def load_npz(path: str | Path, *, every_class: bool = True) -> Data:
    """Read one graph in the npz node-graph format (keys and shapes: see the module).

    Args:
        path: The file.
        every_class: See :func:`validate`.

    Returns:
        ``x`` float32 [N, F], ``edge_index`` int64 [2, E] sorted and without repeats, ``y`` int64
        [N], and the masks the file has, bool [N] or [N, S].

    Raises:
        DataError: The file is missing or breaks a rule; pickled objects are never loaded.
    """
    arrays, files = read_arrays(path, _KEYS)
    return _graph(arrays, files, str(path), every_class)


def load_npz_graphs(path: str | Path) -> dict[str, Data]:
    """Read all graphs of a file that holds several under prefixes (see the module).

    A graph may lack a class that another one holds.

    Returns:
        The graphs by name, sorted; each as :func:`load_npz` returns it.

    Raises:
        DataError: The file is missing, holds no prefixed graph, or a graph breaks a rule.
    """
    _, files = read_arrays(path, ())
    names = sorted(
        file.removesuffix("_y") for file in files if file.endswith("_y") and file != "_y"
    )
    if not names:
        raise DataError(
            f"{path}: no graph under a prefix, such as A_x, A_edges, A_y and B_x, B_edges, B_y; "
            f"the file has {', '.join(sorted(files)) or 'no keys'}"
        )
    shared, _ = read_arrays(path, ["num_features"])
    graphs = {}
    for name in names:
        prefix = f"{name}_"
        found, _ = read_arrays(path, [prefix + key for key in _KEYS])
        arrays = {key.removeprefix(prefix): array for key, array in found.items()}
        if "x_indptr" in arrays and "x_shape" not in arrays and shared:
            arrays["x_shape"] = _shape(arrays["x_indptr"], shared["num_features"], str(path))
        own = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        graphs[name] = _graph(arrays, own, f"{path}: graph {name}", every_class=False)
    return graphs


def _shape(indptr: np.ndarray, num_features: np.ndarray, name: str) -> np.ndarray:
    if num_features.shape != () or num_features.dtype.kind not in "iu":
        raise DataError(
            f"{name}: num_features has shape {num_features.shape} and type {num_features.dtype}, "
            "must be one integer"
        )
    return np.array([len(indptr) - 1, int(num_features)])


def _graph(
    arrays: Mapping[str, np.ndarray], files: list[str], name: str, every_class: bool
) -> Data:
    _check_keys(arrays, files, name)
    x = _features(arrays, name)
    data = Data(
        x=torch.from_numpy(x),
        edge_index=_edge_index(arrays, len(x), name),
        y=_integers(arrays, "y", 1, name),
    )
    for field in MASKS:
        if field in arrays:
            data[field] = _mask(arrays[field], len(x), f"{name}: {field}")
    return validate(data, name, every_class=every_class)


def save_npz(data: Data, path: str | Path) -> None:
    """Write one graph in the npz node-graph format, compressed, so that it loads as it was.

    Args:
        data: A graph that :func:`validate` accepts; it may lack classes, as a client's graph does.
        path: The file, written exactly where it says.

    Raises:
        DataError: The graph breaks a rule.
    """
    validate(data, f"graph to save as {path}", every_class=False)
    arrays = {"x": data.x.cpu().numpy(), "y": data.y.cpu().numpy()}
    edge_index = coalesce(data.edge_index.cpu(), num_nodes=data.num_nodes)
    source, target = edge_index.numpy()
    if torch.equal(edge_index, coalesce(edge_index.flip(0), num_nodes=data.num_nodes)):
        arrays["edges"] = np.stack([source, target], axis=1)[source <= target]
    else:
        arrays["edge_index"] = edge_index.numpy()
    for field in MASKS:
        if field in data:
            arrays[field] = data[field].cpu().numpy().T
    write_arrays(path, arrays)


def _check_keys(arrays: Mapping[str, np.ndarray], files: list[str], name: str) -> None:
    there = f"the file has {', '.join(sorted(files)) or 'no keys'}"
    sparse = [key for key in _SPARSE if key in arrays]
    missing = [key for key in _SPARSE if key not in arrays] if sparse else []
    if "x" not in arrays and not sparse:
        missing.append("x (or x_indices, x_indptr and x_shape)")
    if "edges" not in arrays and "edge_index" not in arrays:
        missing.append("edges (or edge_index)")
    if "y" not in arrays:
        missing.append("y")
    if missing:
        raise DataError(f"{name}: missing keys: {', '.join(missing)}; {there}")
    for one, other in (("x", "x_indices"), ("edges", "edge_index")):
        if one in arrays and other in arrays:
            raise DataError(f"{name}: holds both {one} and {other}: keep the one that is meant")


def _features(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if "x" not in arrays:
        return _sparse_features(arrays, name)
    x = as_floats(arrays["x"], f"{name}: x")
    if x.ndim != 2:
        raise DataError(f"{name}: x has shape {x.shape}, must be (N, F), one row per node")
    return x


def _sparse_features(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    shape = _integers(arrays, "x_shape", 1, name).tolist()
    if len(shape) != 2 or min(shape) < 0:
        raise DataError(f"{name}: x_shape is {shape}, must hold the two sizes N and F")
    num_nodes, num_features = shape
    indices = _integers(arrays, "x_indices", 1, name).numpy()
    indptr = _integers(arrays, "x_indptr", 1, name).numpy()
    if len(indptr) != num_nodes + 1:
        raise DataError(
            f"{name}: x_indptr has {len(indptr)} entries, must have N + 1 = {num_nodes + 1}"
        )
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if len(falls):
        raise DataError(f"{name}: x_indptr falls after row {falls[0]}, must never decrease")
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise DataError(
            f"{name}: x_indptr runs from {indptr[0]} to {indptr[-1]}, must run from 0 to the "
            f"{len(indices)} entries of x_indices"
        )
    bad = np.flatnonzero((indices < 0) | (indices >= num_features))
    if len(bad):
        row = np.searchsorted(indptr, bad[0], side="right") - 1
        raise DataError(
            f"{name}: x_indices[{bad[0]}] is {indices[bad[0]]} (row {row} of x), but the columns "
            f"are 0 to {num_features - 1}"
        )
    values = as_floats(arrays.get("x_data", np.ones(len(indices))), f"{name}: x_data")
    if values.shape != indices.shape:
        raise DataError(
            f"{name}: x_data has shape {values.shape}, must have one value for each of the "
            f"{len(indices)} x_indices"
        )
    return csr_matrix((values, indices, indptr), shape=(num_nodes, num_features)).toarray()


def _edge_index(arrays: Mapping[str, np.ndarray], num_nodes: int, name: str) -> torch.Tensor:
    if "edges" in arrays:
        edges = _integers(arrays, "edges", 2, name)
        if edges.shape[1] != 2:
            raise DataError(f"{name}: edges has shape {tuple(edges.shape)}, must be (E, 2)")
        check_node_indices(edges.numpy(), num_nodes, f"{name}: edges")
        return to_undirected(edges.t().contiguous(), num_nodes=num_nodes)
    edge_index = _integers(arrays, "edge_index", 2, name)
    if edge_index.shape[0] != 2:
        raise DataError(f"{name}: edge_index has shape {tuple(edge_index.shape)}, must be (2, E)")
    check_node_indices(edge_index.numpy(), num_nodes, f"{name}: edge_index")
    return coalesce(edge_index, num_nodes=num_nodes)


def _mask(mask: np.ndarray, num_nodes: int, field: str) -> torch.Tensor:
    if mask.dtype != np.bool_:
        raise DataError(f"{field} is {mask.dtype}, must be bool: convert it")
    if mask.ndim not in (1, 2) or mask.shape[-1] != num_nodes:
        raise DataError(
            f"{field} has shape {mask.shape}, must be ({num_nodes},) or (S, {num_nodes}) for the "
            f"{num_nodes} nodes"
        )
    return torch.from_numpy(np.ascontiguousarray(mask.T))


def _integers(arrays: Mapping[str, np.ndarray], key: str, ndim: int, name: str) -> torch.Tensor:
    array = as_integers(arrays[key], f"{name}: {key}")
    if array.ndim != ndim:
        raise DataError(f"{name}: {key} has shape {array.shape}, must have {ndim} axes")
    return torch.from_numpy(array)
