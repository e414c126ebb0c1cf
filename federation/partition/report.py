"""What a partition did to the data: sizes, label skew, homophily and lost edges."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch_geometric.data import Data

from graphcl.errors import PartitionError


@dataclass(frozen=True)
class ClientReport:
    """One client's share of the data.

    Attributes:
        nodes: Number of nodes.
        edges: Number of undirected edges between them.
        class_counts: Nodes of each class, C numbers; none where nodes have no class.
        label_entropy: Entropy of the classes, in nats: 0 for one class, log C for even ones.
        edge_homophily: Share of the edges that join nodes of one class; None without edges or
            classes.
    """

    nodes: int
    edges: int
    class_counts: tuple[int, ...]
    label_entropy: float
    edge_homophily: float | None


@dataclass(frozen=True)
class PartitionReport:
    """All clients, and the edges that no client holds.

    Attributes:
        clients: One report per client, in their order.
        edges: Number of undirected edges of the whole graph.
        cut_edges: Number of them that join two clients and are lost.
        cut_share: ``cut_edges / edges``; 0 without edges.
    """

    clients: tuple[ClientReport, ...]
    edges: int
    cut_edges: int
    cut_share: float


def partition_report(data: Data, parts: Sequence[np.ndarray]) -> PartitionReport:
    """Measure a division of one graph.  Both directions of an edge count as one edge.

    Args:
        data: The whole graph: ``edge_index`` [2, E], and ``y`` [N] or, where nodes have no class,
            ``num_nodes``.
        parts: The nodes of each client, disjoint and covering all N.

    Raises:
        PartitionError: A node belongs to no client or to several.
    """
    num_nodes, num_clients = _num_nodes(data), len(parts)
    owner = _owners(parts, num_nodes)
    low, high = np.sort(np.asarray(data.edge_index.cpu()), axis=0)
    pairs = np.sort(low * num_nodes + high)
    # numpy.unique hashes, which takes ten times as long for millions of edges.
    low, high = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], num_nodes)
    kept = owner[low] == owner[high]
    edges = np.bincount(owner[low[kept]], minlength=num_clients)
    cut = int(np.sum(~kept))

    if data.y is None:
        counts, alike = np.empty((num_clients, 0), dtype=np.int64), None
    else:
        y = np.asarray(data.y.cpu())
        num_classes = int(y.max()) + 1
        counts = np.bincount(owner * num_classes + y, minlength=num_clients * num_classes)
        counts = counts.reshape(num_clients, num_classes)
        alike = np.bincount(owner[low[kept & (y[low] == y[high])]], minlength=num_clients)
    return PartitionReport(
        clients=tuple(
            ClientReport(
                nodes=len(part),
                edges=int(edges[client]),
                class_counts=tuple(counts[client].tolist()),
                label_entropy=label_entropy(counts[client]),
                edge_homophily=None
                if alike is None or not edges[client]
                else float(alike[client] / edges[client]),
            )
            for client, part in enumerate(parts)
        ),
        edges=len(low),
        cut_edges=cut,
        cut_share=cut / len(low) if len(low) else 0.0,
    )


def natural_report(graphs: Sequence[Data]) -> PartitionReport:
    """Measure graphs that come divided, one per client: no edge is cut.

    Args:
        graphs: At least one graph as :func:`partition_report` takes it, all with ``y`` or none.
    """
    ends = np.cumsum([_num_nodes(graph) for graph in graphs])
    starts = [0, *ends[:-1].tolist()]
    whole = Data(
        edge_index=torch.cat(
            [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)], dim=1
        ),
        y=None if graphs[0].y is None else torch.cat([graph.y for graph in graphs]),
        num_nodes=int(ends[-1]),
    )
    return partition_report(whole, np.split(np.arange(ends[-1]), ends[:-1]))


def _num_nodes(data: Data) -> int:
    return int(data.num_nodes) if data.y is None else len(data.y)


def _owners(parts: Sequence[np.ndarray], num_nodes: int) -> np.ndarray:
    times = np.bincount(np.concatenate(list(parts)), minlength=num_nodes)
    wrong = np.flatnonzero(times != 1)
    if len(wrong):
        raise PartitionError(f"node {wrong[0]} belongs to {times[wrong[0]]} clients, must be 1")
    owner = np.empty(num_nodes, dtype=np.int64)
    for client, nodes in enumerate(parts):
        owner[nodes] = client
    return owner


def label_entropy(counts: np.ndarray) -> float:
    """Return the entropy of classes by their counts, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.sum(shares * np.log(1 / shares)))
