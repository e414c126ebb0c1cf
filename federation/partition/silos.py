"""From a division of the nodes to the graph of each client."""

from collections.abc import Sequence

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
