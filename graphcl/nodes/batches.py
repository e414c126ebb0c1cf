"""Mini-batches of nodes, for graphs of which not every node fits into a step.

As in Cluster-GCN (Chiang et al., 2019) the graph is cut once into blocks that keep most edges
inside, and several random blocks with the edges among them make a batch. The paper cuts with
METIS; the order of the nodes by label propagation (Raghavan et al., 2007) that is cut here is ours.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee

from graphcl.errors import GraphCLError
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import EdgePattern
from graphcl.training import numpy_rng

# More blocks make batches that differ more between epochs, and cut more edges.
BLOCKS_PER_BATCH = 10
LABEL_ROUNDS = 10
# A share of the nodes keeps its label in a round: neighbours would swap theirs for ever.
MOVING_SHARE = 0.7


class NodeBatches:
    """Induced subgraphs of about equal size, every node in one of them in each pass.

    Args:
        graph: The whole graph.
        batch_nodes: About so many nodes in a batch; 0, or as many as there are, gives the graph.
        seed: Decides the blocks and what joins them; every pass joins others.

    Raises:
        GraphCLError: If ``batch_nodes`` is negative or 1: a node alone has nothing to contrast.
    """

    def __init__(self, graph: PreparedGraph, batch_nodes: int, seed: int):
        if batch_nodes < 0 or batch_nodes == 1:
            raise GraphCLError(
                f"batch_nodes is {batch_nodes}; pass 2 or more, or 0 for the whole graph"
            )
        self._graph = graph
        num_nodes = graph.pattern.num_nodes
        self._num_batches = -(-num_nodes // batch_nodes) if batch_nodes else 1
        if self._num_batches > 1:
            self._rng = numpy_rng(seed, "batches")
            order = locality_order(graph.pattern, self._rng)
            num_blocks = min(num_nodes, BLOCKS_PER_BATCH * self._num_batches)
            self._blocks = np.array_split(order, num_blocks)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[PreparedGraph]:
        if self._num_batches == 1:
            yield self._graph
            return
        shuffled = self._rng.permutation(len(self._blocks))
        for joined in np.array_split(shuffled, self._num_batches):
            nodes = np.sort(np.concatenate([self._blocks[block] for block in joined]))
            yield self._graph.subgraph(torch.from_numpy(nodes))


def locality_order(pattern: EdgePattern, rng: np.random.Generator) -> np.ndarray:
    """Return an order of the nodes, ``[N]``, in which neighbours tend to be close.

    Communities follow each other as the reverse Cuthill-McKee order of their nodes does, and so do
    the nodes within each. That order alone keeps grids together, but not graphs of communities.
    """
    num_nodes, matrix = pattern.num_nodes, pattern.shifted_laplacian().matrix
    col, crow = matrix.col_indices().numpy(), matrix.crow_indices().numpy()
    adjacency = csr_matrix((np.ones(len(col), np.float32), col, crow), (num_nodes, num_nodes))
    rank = np.empty(num_nodes)
    rank[reverse_cuthill_mckee(adjacency, symmetric_mode=True)] = np.arange(num_nodes)
    label = _communities(adjacency, rng)
    middle = np.bincount(label, rank, num_nodes) / np.bincount(label, minlength=num_nodes).clip(1)
    return np.lexsort((rank, label, middle[label]))


def _communities(adjacency: csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Return a label per node, ``[N]``, after some rounds in which most take their neighbours'."""
    num_nodes = adjacency.shape[0]
    label, linked = np.arange(num_nodes), np.diff(adjacency.indptr) > 0
    if not linked.any():
        return label
    each, ends = np.ones(num_nodes, np.float32), np.arange(num_nodes + 1)
    for _ in range(LABEL_ROUNDS):
        votes = adjacency @ csr_matrix((each, label, ends), adjacency.shape)
        count = votes.data + rng.random(len(votes.data), dtype=np.float32) / 2  # ties fall by lot
        length = np.diff(votes.indptr)[linked]
        most = np.maximum.reduceat(count, votes.indptr[:-1][linked])
        won = count == most.repeat(length)
        choice = label.copy()
        choice[np.flatnonzero(linked).repeat(length)[won]] = votes.indices[won]
        label = np.where(rng.random(num_nodes) < MOVING_SHARE, choice, label)
    return label
