"""PyTorch Geometric's own node-classification data sets, from files the user already has."""

import difflib
import inspect
from pathlib import Path
from typing import NoReturn

import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from graphcl.datasets.validation import MASKS, validate
from graphcl.errors import DataError

#: Classes of torch_geometric.datasets that hold one graph with features and one label per node.
PYG_CLASSES = (
    "Actor",
    "Airports",
    "Amazon",
    "CitationFull",
    "Coauthor",
    "CoraFull",
    "DeezerEurope",
    "FacebookPagePage",
    "Flickr",
    "GitHub",
    "HeterophilousGraphDataset",
    "LastFMAsia",
    "Planetoid",
    "Reddit",
    "Reddit2",
    "Twitch",
    "WebKB",
    "WikiCS",
    "WikipediaNetwork",
)


def load_pyg(name: str, root: str | Path) -> Data:
    """Load one of PyTorch Geometric's node-classification data sets without downloading it.

    PyTorch Geometric reads some of its raw files with pickle: load only files you trust.

    Args:
        name: The class and, where it has several data sets, the data set: ``"Planetoid/Cora"``,
            ``"WebKB/Texas"``, ``"Amazon/Photo"``, ``"Actor"``.
        root: The folder that was given to the PyTorch Geometric class as its ``root``.

    Returns:
        ``x`` float32 [N, F]; ``edge_index`` int64 [2, E], both directions of every edge; ``y``
        int64 [N]; the masks of the data set, bool [N] or [N, S].

    Raises:
        DataError: The class is unknown (the message has the nearest names), the files are not
            under ``root`` (the message has the command that downloads them), or they break a rule.
    """
    class_name, _, item = name.partition("/")
    if class_name not in PYG_CLASSES:
        near = difflib.get_close_matches(class_name, PYG_CLASSES, n=3) or PYG_CLASSES
        raise DataError(f"{name}: {class_name!r} is unknown; nearest: {', '.join(near)}")
    # Imported here: its many modules would slow the start of those who do not use them.
    from torch_geometric import datasets

    base = getattr(datasets, class_name)
    takes_name = "name" in inspect.signature(base).parameters
    if takes_name != bool(item):
        wanted = f"{class_name}/NAME" if takes_name else class_name
        raise DataError(f"{name}: write it as {wanted}")
    # PyG makes its folders before it looks for files: a mistyped root must not come into being.
    if not Path(root).is_dir():
        raise DataError(f"{name}: the folder {root} does not exist: {_recipe(name, root)}")

    def download(self: object) -> NoReturn:
        raise DataError(f"{name}: its files are not all under {root}: {_recipe(name, root)}")

    offline = type(class_name, (base,), {"download": download})
    try:
        raw = offline(str(root), **({"name": item} if item else {}))[0]
    except AssertionError as error:  # how PyG refuses the name of a data set
        raise DataError(f"{name}: {class_name} has no data set {item!r}") from error
    return validate(_node_graph(raw), f"{name} under {root}")


def _recipe(name: str, root: str | Path) -> str:
    class_name, _, item = name.partition("/")
    arguments = f"{str(root)!r}" + (f", name={item!r}" if item else "")
    return (
        f"nothing is downloaded here; where the network is allowed run "
        f"`from torch_geometric.datasets import {class_name}; {class_name}({arguments})`"
    )


def _node_graph(raw: Data) -> Data:
    """Return the fields of a node graph, in the types and shapes that ``validate`` asks for."""
    x = raw.x.to_dense() if raw.x.is_sparse else raw.x
    data = Data(
        x=x.float(),
        edge_index=to_undirected(raw.edge_index, num_nodes=raw.num_nodes),
        y=raw.y.long().flatten(),
    )
    masks = {field: raw[field].bool() for field in MASKS if field in raw}
    splits = max((mask.shape[1] for mask in masks.values() if mask.ndim == 2), default=0)
    for field, mask in masks.items():
        # WikiCS has twenty training masks and one test mask for all of them.
        shared = splits and mask.ndim == 1
        data[field] = torch.stack([mask] * splits, dim=1) if shared else mask
    return data
