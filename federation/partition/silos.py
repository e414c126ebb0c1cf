"""From a division of the nodes to the graph of each client."""

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from torch_geometric.data import Data

from graphcl.errors import PartitionError


def subgraph(data: Data, nodes: np.ndarray) -> Data:
    """Return the graph that a client holds: its nodes and the edges between them.

    Args:
        data: The whole graph, N nodes.
        nodes: The client's nodes, integer [n], none twice.

    Returns:
        A graph of n nodes in which node ``i`` is ``nodes[i]``, with the rows of ``x``, ``y`` and
        the masks that belong to them.  Edges that leave the client are lost.

    Raises:
        PartitionError: A node is not in the graph, or is listed twice.
    """
    index = torch.as_tensor(nodes, dtype=torch.int64)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < data.num_nodes:
        raise PartitionError(
            f"nodes go from {int(index.min())} to {int(index.max())}, but the graph's nodes are 0 "
            f"to {data.num_nodes - 1}"
        )
    if len(index.unique()) != len(index):
        raise PartitionError(f"nodes lists {len(index) - len(index.unique())} nodes twice")
    return data.subgraph(index).coalesce()


class Silos(Sequence[Data]):
    """The graph of every client, as :func:`subgraph` returns it, cut out anew at every look.

    Preparing takes time and room by nodes and edges, not by clients: the edges that stay inside
    clients are put in the clients' order once.

    Args:
        data: The whole graph: ``edge_index`` and fields with a row per node.
        parts: The nodes of each client, ascending, disjoint and covering all.
    """

    def __init__(self, data: Data, parts: Sequence[np.ndarray]):
        self._fields = {key: value for key, value in data if key != "edge_index"}
        self._nodes = [torch.from_numpy(part) for part in parts]
        owner, place = np.empty((2, int(data.num_nodes)), dtype=np.int64)
        for client, part in enumerate(parts):
            owner[part], place[part] = client, np.arange(len(part))
        source, target = np.asarray(data.edge_index)
        inside = owner[source] == owner[target]
        source, target = source[inside], target[inside]
        # As coalescing orders them: by client, then by source, then by target, each once.
        order = np.lexsort((place[target], place[source], owner[source]))
        edges = np.stack([owner[source], place[source], place[target]])[:, order]
        first = np.append(True, (edges[:, 1:] != edges[:, :-1]).any(axis=0))[: edges.shape[1]]
        edges = edges[:, first]
        self._edges = torch.from_numpy(edges[1:].copy())
        self._ends = np.searchsorted(edges[0], np.arange(len(parts) + 1))

    def __len__(self) -> int:
        return len(self._nodes)

    @overload
    def __getitem__(self, client: int) -> Data: ...
    @overload
    def __getitem__(self, client: slice) -> list[Data]: ...
    def __getitem__(self, client: int | slice) -> Data | list[Data]:
        if isinstance(client, slice):
            return [self[one] for one in range(*client.indices(len(self)))]
        nodes = self._nodes[client]
        client %= len(self)
        edges = self._edges[:, self._ends[client] : self._ends[client + 1]]
        fields = {key: value[nodes] for key, value in self._fields.items()}
        return Data(edge_index=edges.contiguous(), **fields)


def natural(graphs: Sequence[Data], num_clients: int) -> list[Data]:
    """Return one graph per client, for data that come divided.

    Args:
        graphs: The graph of each client.
        num_clients: Clients the experiment asks for.

    Raises:
        PartitionError: The numbers differ.
    """
    if len(graphs) != num_clients:
        raise PartitionError(
            f"num_clients is {num_clients}, but the data come as {len(graphs)} graphs, one per "
            f"client: set num_clients to {len(graphs)}"
        )
    return list(graphs)
