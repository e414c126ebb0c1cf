"""Communities: clients that hold densely joined parts of the graph."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np
import torch

from federation.partition.checks import check_clients
from graphcl.training import derive_seed

if TYPE_CHECKING:
    import networkx as nx


def louvain(
    edge_index: torch.Tensor | np.ndarray, num_nodes: int, num_clients: int, *, seed: int
) -> list[np.ndarray]:
    """Divide the nodes by Louvain communities, which are put together into clients of even size.

    Communities go, the largest first, to the client that is the smallest so far; none is dropped.
    If there are fewer communities than clients, the largest are halved until there are enough.  A
    node without edges is a community of its own.

    Args:
        edge_index: Edges, integer [2, E], in one or both directions.
        num_nodes: N.
        num_clients: K.
        seed: Same seed, same parts.

    Returns:
        K sorted int64 arrays of nodes, none empty, disjoint and covering all.

    Raises:
        PartitionError: There are more clients than nodes.

    Source:
        Blondel, Guillaume, Lambiotte and Lefebvre, "Fast unfolding of communities in large
        networks", 2008.
    """
    check_clients(num_nodes, num_clients)
    import networkx as nx  # a quarter of a second that only this scheme should cost

    graph = nx.Graph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(np.asarray(edge_index).T.tolist())
    found = nx.community.louvain_communities(graph, seed=derive_seed(seed, "louvain"))
    communities = [sorted(community) for community in found]
    while len(communities) < num_clients:
        largest = min(communities, key=_largest_first)
        communities.remove(largest)
        communities += _halves(graph, largest)

    clients: list[tuple[int, int, list[int]]] = [(0, client, []) for client in range(num_clients)]
    for community in sorted(communities, key=_largest_first):
        size, client, nodes = heapq.heappop(clients)
        heapq.heappush(clients, (size + len(community), client, nodes + community))
    clients.sort(key=lambda entry: entry[1])
    return [np.sort(np.array(nodes, dtype=np.int64)) for _, _, nodes in clients]


def _largest_first(community: list[int]) -> tuple[int, int]:
    return -len(community), community[0]  # no two communities have the same first node


def _halves(graph: nx.Graph, community: list[int]) -> list[list[int]]:
    """Cut a community in two, in breadth-first order so that neighbours tend to stay together."""
    import networkx as nx

    inside = graph.subgraph(community)
    order: dict[int, None] = {}
    for start in community:
        if start not in order:
            order[start] = None
            order.update((node, None) for _, node in nx.bfs_edges(inside, start))
    nodes = list(order)
    middle = len(nodes) // 2
    return [sorted(nodes[:middle]), sorted(nodes[middle:])]
