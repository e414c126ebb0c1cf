"""The graph of items that are taken together, and vectors that spread over it."""

import torch
from torch import Tensor

from graphcl.datasets import Interactions
from graphcl.errors import GraphCLError
from graphcl.spectral import SymmetricOperator


def co_occurrence(interactions: Interactions, window: int) -> tuple[Tensor, Tensor]:
    """Return how often and how close to one another users took every two items.

    Two different items that a user took k events apart, k at most ``window``, add 1 / k to their
    edge. Ask the training part of a split: the graph knows whatever it is built from. Graphs of
    several parties, edges put behind one another, are the graph of them all.

    Shapes:
        Returns **edge_index**, int64 ``[2, E]``, every edge once with the smaller item first,
        sorted; and **edge_weight**, float32 ``[E]``.

    Args:
        interactions: What the users took, in order.
        window: Events between two items at most, the later one counted.

    Raises:
        GraphCLError: The window is not positive.

    Source:
        Zhang et al., Enhancing Sequential Recommendation with Graph Contrastive Learning, IJCAI
        2022 (GCL4SR), for the weights.

    Example:
        >>> taken = torch.tensor([1, 2, 3])
        >>> co_occurrence(Interactions("one user", torch.zeros(3).long(), taken, 1, 3), window=2)
        (tensor([[1, 1, 2],
                [2, 3, 3]]), tensor([1.0000, 0.5000, 1.0000]))
    """
    if window < 1:
        raise GraphCLError(f"co_occurrence: window is {window}; use 1 or more events")
    user, item, size = interactions.user, interactions.item, interactions.num_items + 1
    keys, weights = [], []
    for k in range(1, window + 1):
        former, latter = item[:-k], item[k:]
        pair = (user[:-k] == user[k:]) & (former != latter)
        low, high = torch.minimum(former, latter)[pair], torch.maximum(former, latter)[pair]
        keys.append(low * size + high)
        weights.append(torch.full((len(low),), 1 / k, dtype=torch.float64))
    edge, place = torch.cat(keys).unique(return_inverse=True)
    weight = place.bincount(torch.cat(weights), minlength=len(edge))
    return torch.stack([edge // size, edge % size]), weight.float()


def normalized_adjacency(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int
) -> SymmetricOperator:
    """Return ``D^-1/2 A D^-1/2`` of a weighted undirected graph, eigenvalues in [-1, 1].

    A node without an edge has an empty row.

    Shapes:
        edge_index: int64 ``[2, E]``; edge_weight: float ``[E]``. Returns an operator of size
        ``[num_nodes, num_nodes]`` in float32.

    Args:
        edge_index: Every edge in one direction; the weights of one that is there twice add up.
        edge_weight: Above 0.
        num_nodes: Number of nodes; those without an edge count.

    Raises:
        GraphCLError: An end of an edge is no node, an edge joins a node to itself, a weight is not
            a finite number above 0, or the shapes do not fit.

    Source:
        He et al., SIGIR 2020 (LightGCN), for graphs without weights.
    """
    _check_edges(edge_index, edge_weight, num_nodes)
    low, high = edge_index
    key = torch.cat([low * num_nodes + high, high * num_nodes + low])
    entry, place = key.unique(return_inverse=True)
    weight = place.bincount(edge_weight.double().repeat(2), minlength=len(entry))
    row, col = entry // num_nodes, entry % num_nodes
    scale = row.bincount(weight, minlength=num_nodes).rsqrt()  # infinite where no entry reads it
    crow = torch.searchsorted(row, torch.arange(num_nodes + 1, device=row.device))
    return SymmetricOperator(crow, col, (weight * scale[row] * scale[col]).float())


def propagate(operator: SymmetricOperator, x: Tensor, hops: int) -> Tensor:
    """Return the mean of x and of what arrives after 1 to ``hops`` hops.

    Shapes:
        x: ``[num_nodes, D]``, as is what is returned.

    Args:
        operator: See :func:`normalized_adjacency`.
        x: A vector of each node.
        hops: How far vectors spread; with 0, x is returned.

    Source:
        He et al., SIGIR 2020 (LightGCN), eq. 8 with equal weights.
    """
    total = x
    for _ in range(hops):
        x = operator @ x
        total = total + x
    return total / (hops + 1)


def _check_edges(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> None:
    if edge_index.shape != (2, len(edge_weight)) or edge_index.dtype != torch.int64:
        raise GraphCLError(
            f"normalized_adjacency: edge_index is {edge_index.dtype} of shape "
            f"{list(edge_index.shape)} for {len(edge_weight)} weights; pass int64 [2, num_edges]"
        )
    low, high = edge_index
    inside = ((edge_index >= 0) & (edge_index < num_nodes)).all(0)
    weighs = (edge_weight > 0) & edge_weight.isfinite()
    bad = (~inside | (low == high) | ~weighs).nonzero()
    if len(bad):
        edge = int(bad[0])
        raise GraphCLError(
            f"normalized_adjacency: edge {edge} joins {int(low[edge])} and {int(high[edge])} with "
            f"weight {edge_weight[edge].item():g} ({len(bad)} such); join two different of the "
            f"nodes 0 to {num_nodes - 1} with a finite weight above 0"
        )
