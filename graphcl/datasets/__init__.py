"""Node graphs: the npz format, generators, PyTorch Geometric's data sets and splits."""

from graphcl.datasets.digits import digits_graph
from graphcl.datasets.node_graph import load_npz, save_npz
from graphcl.datasets.pyg import PYG_CLASSES, load_pyg
from graphcl.datasets.sbm import contextual_sbm, mixed_sbm
from graphcl.datasets.sources import count_classes, load, load_silos
from graphcl.datasets.splits import split_nodes
from graphcl.datasets.validation import validate

__all__ = [
    "PYG_CLASSES",
    "contextual_sbm",
    "count_classes",
    "digits_graph",
    "load",
    "load_npz",
    "load_pyg",
    "load_silos",
    "mixed_sbm",
    "save_npz",
    "split_nodes",
    "validate",
]
