"""Published evaluation protocols: the splits that tables of results are made with.

Splits are three boolean masks of shape ``[N, S]``: column s is one division of the N nodes.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from graphcl.datasets.arrays import read_arrays
from graphcl.datasets.validation import MASKS, check_every_class
from graphcl.errors import DataError

SPLIT_SEEDS = (
    1941488137,
    4198936517,
    983997847,
    4023022221,
    4019585660,
    2108550661,
    1648766618,
    629014539,
    3212139042,
    2424918363,
)
"""The seeds of the ten random splits, published with BernNet and kept by its successors."""


def random_splits(y: Tensor, num_splits: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Return the 60/20/20 random splits that spectral graph networks are compared on.

    Each class gives ``round(0.6 N / C)`` nodes to train on, or all it has; ``round(0.2 N)`` of the
    others validate and the rest test.  Same labels, same splits, on every machine.

    Shapes:
        y: ``[N]`` integers. Returns three ``[N, num_splits]`` boolean masks.

    Args:
        y: Class ids, 0 to C - 1, each with a node.
        num_splits: How many splits, in the order of :data:`SPLIT_SEEDS`.

    Returns:
        ``train_mask``, ``val_mask``, ``test_mask``; every node is in exactly one of a split.

    Raises:
        DataError: The labels are no class ids, or too few nodes are left to validate and test; or
            there are fewer seeds than splits.

    Source:
        Chen et al., PolyGCL: Graph Contrastive Learning via Learnable Spectral Polynomial Filters,
        ICLR 2024, after He et al., BernNet, NeurIPS 2021.
    """
    if not 1 <= num_splits <= len(SPLIT_SEEDS):
        raise DataError(f"num_splits is {num_splits}, but the protocol has {len(SPLIT_SEEDS)}")
    if y.ndim != 1 or len(y) == 0 or y.is_floating_point() or y.dtype == torch.bool:
        raise DataError(
            f"y has shape {list(y.shape)} and type {y.dtype}, must be [N] integers, N at least 1"
        )
    labels = y.cpu().numpy()
    if labels.min() < 0:
        raise DataError(f"y holds {labels.min()}: class ids start at 0")
    check_every_class([y], "y")
    num_nodes, num_classes = len(labels), int(labels.max()) + 1
    per_class = round(0.6 * num_nodes / num_classes)
    num_val = round(0.2 * num_nodes)
    num_train = int(np.minimum(np.bincount(labels), per_class).sum())
    if min(num_train, num_val, num_nodes - num_train - num_val) < 1:
        raise DataError(
            f"y: {num_nodes} nodes of {num_classes} classes are too few: {num_train} train and "
            f"{num_val} validate, but each part, the test nodes too, needs one"
        )
    masks = np.zeros((3, num_nodes, num_splits), dtype=bool)
    for split, seed in enumerate(SPLIT_SEEDS[:num_splits]):
        # The splits are published as the draws of this generator in this order; another would do
        # as well, but would not give the same nodes.
        rng = np.random.RandomState(seed)
        train, val, test = masks[..., split]
        for label in range(num_classes):
            nodes = np.flatnonzero(labels == label)
            if len(nodes) >= per_class:
                nodes = rng.choice(nodes, per_class, replace=False)
            train[nodes] = True
        val[rng.choice(np.flatnonzero(~train), num_val, replace=False)] = True
        test[:] = ~(train | val)
    train_mask, val_mask, test_mask = torch.from_numpy(masks)
    return train_mask, val_mask, test_mask


def stored_splits(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """Return the splits that a graph came with.

    Shapes:
        Returns three ``[N, S]`` boolean masks; S is 1 where the graph has ``[N]`` masks.

    Args:
        data: A graph with ``train_mask``, ``val_mask`` and ``test_mask``, ``[N]`` or ``[N, S]``. A
            single mask beside several, as a fixed test set, belongs to every split.

    Raises:
        DataError: A mask is missing or no mask, or two of a split overlap.
    """
    missing = [field for field in MASKS if getattr(data, field, None) is None]
    if missing:
        raise DataError(
            f"the graph has no {', '.join(missing)}: use random_splits, or load_splits for masks "
            "stored under other names"
        )
    return as_splits(data.train_mask, data.val_mask, data.test_mask)


def load_splits(path: str | Path, prefix: str = "geom_") -> tuple[Tensor, Tensor, Tensor]:
    """Read splits that an npz file holds under names of their own.

    Shapes:
        The file's ``<prefix>train_mask``, ``<prefix>val_mask`` and ``<prefix>test_mask`` are
        ``(S, N)`` or ``(N,)`` booleans. Returns three ``[N, S]`` boolean masks.

    Args:
        path: The file.
        prefix: What the names start with; ``"geom_"`` for the ten 48/32/20 splits of Geom-GCN next
            to a graph's own masks, ``""`` for the latter.

    Raises:
        DataError: The file cannot be read, lacks a key, or holds no masks under it, or two masks
            of a split overlap; pickled objects are never loaded.
    """
    keys = [prefix + field for field in MASKS]
    arrays, files = read_arrays(path, keys)
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(
            f"{path}: missing keys: {', '.join(missing)}; the file has "
            f"{', '.join(sorted(files)) or 'no keys'}"
        )
    masks = []
    for key in keys:
        if arrays[key].dtype != np.bool_:
            raise DataError(f"{path}: {key} is {arrays[key].dtype}, must be bool: convert it")
        masks.append(torch.from_numpy(np.ascontiguousarray(arrays[key].T)))
    return as_splits(*masks, name=f"{path}: {prefix}")


def as_splits(
    train_mask: Tensor, val_mask: Tensor, test_mask: Tensor, *, name: str = ""
) -> tuple[Tensor, Tensor, Tensor]:
    """Return three masks as splits after checking that they fit together.

    Shapes:
        All masks: ``[N]`` or ``[N, S]`` booleans. Returns them as ``[N, S]``.

    Args:
        train_mask: The nodes to train on.
        val_mask: The nodes to validate on.
        test_mask: The nodes to test on.
        name: What to put before a mask's name in a message, such as its file.

    Raises:
        DataError: One is no mask, the sizes differ, or two masks share a node in a split.
    """
    masks = {}
    for field, mask in zip(MASKS, (train_mask, val_mask, test_mask), strict=True):
        if mask.dtype != torch.bool or mask.ndim not in (1, 2) or mask.numel() == 0:
            raise DataError(
                f"{name}{field} has shape {list(mask.shape)} and type {mask.dtype}, must be [N] or "
                "[N, S] booleans"
            )
        masks[field] = mask.reshape(len(mask), -1)
    num_nodes = len(train_mask)
    num_splits = max(mask.shape[1] for mask in masks.values())
    for field, mask in masks.items():
        if len(mask) != num_nodes or mask.shape[1] not in (1, num_splits):
            raise DataError(
                f"{name}{field} has shape {list(mask.shape)}, but the masks have {num_nodes} nodes "
                f"and up to {num_splits} splits: give all masks the same"
            )
        masks[field] = mask.expand(num_nodes, num_splits)
    for first, second in combinations(MASKS, 2):
        both = torch.nonzero(masks[first] & masks[second])
        if len(both):
            node, split = both[0].tolist()
            raise DataError(
                f"{name}{first} and {name}{second} overlap at node {node} of split {split} "
                f"({len(both)} such): a node belongs to one part at most"
            )
    return masks["train_mask"], masks["val_mask"], masks["test_mask"]
