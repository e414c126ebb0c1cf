"""The rules of a node graph, on PyTorch Geometric's ``Data``, and those that containers share."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, islice

import numpy as np
import torch
from torch_geometric.data import Data

from graphcl.errors import DataError

MASKS = ("train_mask", "val_mask", "test_mask")
_FEATURE = re.compile(r"(?P<quantity>\S|\S.*\S) \[(?P<unit>[^\[\]]+)\]")


def validate(data: Data, name: str = "data", *, every_class: bool = True) -> Data:
    """Return the graph unchanged after checking every rule of a node graph.

    Args:
        data: ``x`` float32 [N, F], ``edge_index`` int64 [2, E], ``y`` int64 [N] with class ids from
            0, and optionally ``train_mask``, ``val_mask``, ``test_mask``, bool [N] or [N, S] for S
            alternative splits.  N and F are at least 1; E may be 0.
        name: What to call the graph in a message, usually its file.
        every_class: Whether each class id from 0 to the largest needs a node.  One client of a
            federation may lack a class that the others hold.

    Raises:
        DataError: A rule is broken; the message names the field, the row and the rule.
    """
    x = _tensor(data, "x", torch.float32, 2, name)
    num_nodes, num_features = x.shape
    if num_nodes == 0:
        raise DataError(f"{name}: the graph is empty (x has 0 rows): give it at least one node")
    if num_features == 0:
        raise DataError(f"{name}: x has 0 columns: give each node at least one feature")
    check_finite(x, name)
    edge_index = _tensor(data, "edge_index", torch.int64, 2, name)
    if edge_index.shape[0] != 2:
        raise DataError(f"{name}: edge_index has shape {list(edge_index.shape)}, must be [2, E]")
    check_node_indices(edge_index.cpu().numpy(), num_nodes, f"{name}: edge_index")
    y = _tensor(data, "y", torch.int64, 1, name)
    if len(y) != num_nodes:
        raise DataError(f"{name}: y has {len(y)} entries for the {num_nodes} rows of x")
    _check_labels(y, name)
    if every_class:
        check_every_class([y], name)
    _check_masks(data, num_nodes, name)
    return data


def check_node_indices(index: np.ndarray, num_nodes: int, field: str) -> None:
    """Check that an integer array of any layout holds node indices only.

    Args:
        index: Node indices.
        num_nodes: N; indices run from 0 to N - 1.
        field: The name of the array in a message, with its file.

    Raises:
        DataError: Names the position and the value of the first index that is no node.
    """
    bad = np.argwhere((index < 0) | (index >= num_nodes))
    if len(bad):
        position = ", ".join(map(str, bad[0]))
        raise DataError(
            f"{field}[{position}] is {index[tuple(bad[0])]}, but the nodes are 0 to "
            f"{num_nodes - 1} ({len(bad)} such): number the nodes by their rows in x, from 0"
        )


def check_every_class(labels: list[torch.Tensor], name: str) -> None:
    """Check that the classes are 0 to C - 1 and that each has a node in one of the graphs.

    Args:
        labels: ``y`` of each graph, int64 [N_i], none negative.
        name: What to call the graphs in a message.

    Raises:
        DataError: Names the unlabelled classes.
    """
    held = set(torch.cat([y.cpu() for y in labels]).unique().tolist())
    num_classes = max(held) + 1
    num_missing = num_classes - len(held)
    if num_missing:
        # A single wild id, such as a user's number, leaves billions of gaps: name the first ones.
        missing = islice((label for label in range(num_classes) if label not in held), 10)
        shown = ", ".join(map(str, missing)) + (", ..." if num_missing > 10 else "")
        raise DataError(
            f"{name}: unlabelled classes: y goes up to {num_classes - 1} but no node has class "
            f"{shown}: renumber the classes 0 to {len(held) - 1} without a gap"
        )


def select_indices(selection: torch.Tensor | Sequence[int], count: int, field: str) -> torch.Tensor:
    """Return what is selected of ``count`` things as indices, int64, in the order given.

    Args:
        selection: Indices, int64 and each once, or a boolean mask [count].
        count: How many there are to select from.
        field: The name of the selection in a message.

    Raises:
        DataError: Nothing is selected, or an index is out of range or repeated.
    """
    index = torch.as_tensor(selection)
    if index.dtype == torch.bool and index.shape == (count,):
        index = index.nonzero().flatten()
    if index.numel() == 0:
        raise DataError(f"{field} selects nothing: select at least one of {count}")
    if index.dtype != torch.int64 or index.ndim != 1:
        raise DataError(
            f"{field} is {index.dtype} of shape {list(index.shape)}, must be int64 indices of one "
            f"axis or a boolean mask [{count}]"
        )
    bad = index[(index < 0) | (index >= count)]
    if len(bad):
        raise DataError(f"{field} holds {int(bad[0])}, must be 0 to {count - 1}")
    values, times = index.unique(return_counts=True)
    if len(values) < len(index):
        raise DataError(f"{field} holds {int(values[times > 1][0])} twice: select each once")
    return index


def check_names(names: Sequence[str], field: str) -> None:
    """Check that no name is empty or has space around it.

    Args:
        names: Names.
        field: What they are called in a message, with their file.

    Raises:
        DataError: Names the position of the first that is or has.
    """
    for row, text in enumerate(names):
        if not text or text != text.strip():
            raise DataError(f"{field}[{row}] is {text!r}: write a name, without space around it")


def check_unique(names: Sequence[str], field: str) -> None:
    """Check that no name is there twice.

    Args:
        names: Names; there may be none.
        field: What they are called in a message, with their file.

    Raises:
        DataError: Names the most frequent one.
    """
    text, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise DataError(f"{field} holds {text!r} {times} times: names must be unique")


def split_unit(feature: str) -> tuple[str, str]:
    """Split ``gust_max [m/s]`` into ``gust_max`` and ``m/s``; the unit is empty if there is none.

    >>> split_unit("gust_max [m/s]")
    ('gust_max', 'm/s')
    """
    match = _FEATURE.fullmatch(feature)
    return (match["quantity"], match["unit"]) if match else (feature, "")


def _tensor(data: Data, field: str, dtype: torch.dtype, ndim: int, name: str) -> torch.Tensor:
    value = getattr(data, field, None)
    if not isinstance(value, torch.Tensor):
        raise DataError(f"{name}: {field} is {type(value).__name__}, must be a {dtype} tensor")
    if value.dtype != dtype:
        raise DataError(f"{name}: {field} is {value.dtype}, must be {dtype}: convert it")
    if value.ndim != ndim:
        raise DataError(f"{name}: {field} has shape {list(value.shape)}, must have {ndim} axes")
    return value


def check_finite(x: torch.Tensor, name: str) -> None:
    """Check that every feature is finite, without a copy where it is so.

    Args:
        x: Features [N, F], dense or CSR.
        name: What to call the graph in a message.

    Raises:
        DataError: Names row, column and value of the first feature that is not finite.
    """
    values = x if x.layout == torch.strided else x.values()
    if values.numel() == 0 or bool(torch.isfinite(torch.stack(values.aminmax())).all()):
        return
    x = x.to_dense()
    bad = torch.nonzero(~torch.isfinite(x))
    row, column = bad[0].tolist()
    raise DataError(
        f"{name}: x[{row}, {column}] is {x[row, column].item()} ({len(bad)} such): features "
        f"must be finite in float32: impute or rescale them"
    )


def _check_labels(y: torch.Tensor, name: str) -> None:
    bad = torch.nonzero(y < 0).flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{name}: y[{row}] is {int(y[row])} ({len(bad)} such): class ids start at 0; leave a "
            f"node without a label out of the masks instead"
        )


def _check_masks(data: Data, num_nodes: int, name: str) -> None:
    masks: dict[str, torch.Tensor] = {}
    for field in MASKS:
        if getattr(data, field, None) is None:
            continue
        mask = getattr(data, field)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            raise DataError(f"{name}: {field} must be a boolean tensor")
        if mask.ndim not in (1, 2) or mask.shape[0] != num_nodes or mask.numel() == 0:
            raise DataError(
                f"{name}: {field} has shape {list(mask.shape)}, must be [{num_nodes}] or "
                f"[{num_nodes}, S] for the {num_nodes} rows of x"
            )
        masks[field] = mask
    for first, second in combinations(masks, 2):
        one, other = masks[first], masks[second]
        if one.shape != other.shape:
            raise DataError(
                f"{name}: {first} has shape {list(one.shape)} and {second} {list(other.shape)}: "
                f"give all masks the same splits"
            )
        both = torch.nonzero(one & other)
        if len(both):
            node = both[0].tolist()
            split = f" of split {node[1]}" if len(node) == 2 else ""
            raise DataError(
                f"{name}: {first} and {second}{split} overlap at row {node[0]} ({len(both)} such): "
                f"a node belongs to one part at most"
            )
