"""A graph as the methods on nodes read it, prepared once, and cut into parts of it."""

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.sparse import issparse
from torch import Tensor
from torch_geometric.data import Data

from graphcl.datasets.validation import check_finite
from graphcl.errors import DataError
from graphcl.nodes.features import Features, RowNorm, sparse_if_worth, unit_rows
from graphcl.spectral import EdgePattern, SymmetricOperator
from graphcl.spectral.sparse import building_csr


@dataclass(frozen=True, eq=False)
class PreparedGraph:
    """Features and edges as the methods read them.

    Attributes:
        x: ``[num_nodes, in_channels]``, rows scaled by :func:`unit_rows`.
        pattern: Undirected, no self loops, no duplicates.
    """

    x: Features
    pattern: EdgePattern

    @cached_property
    def operator(self) -> SymmetricOperator:
        """The shifted Laplacian of the whole pattern, built when it is first read."""
        return self.pattern.shifted_laplacian()

    def subgraph(self, nodes: Tensor) -> "PreparedGraph":
        """Return the subgraph that nodes induce.

        Args:
            nodes: ``[n]`` integers, ascending.
        """
        return PreparedGraph(self.x[nodes], self.pattern.subgraph(nodes))


def prepare(data: Data, norm: RowNorm = "l1") -> PreparedGraph:
    """Prepare a graph: rows of ``x`` scaled, edges undirected.

    Isolated nodes and all-zero rows are fine; directed edges count in both directions, self loops
    and duplicates not at all. ``x`` may be one of torch's sparse tensors.

    Args:
        data: ``x [N, F]`` and ``edge_index [2, E]``.
        norm: What every row of ``x`` is divided by: its sum of magnitudes, or its length.

    Raises:
        DataError: If features or edges are missing, there is no node, or a feature is not finite.
    """
    for field, remedy in (
        ("x", "give every node features [N, F], e.g. by T.Constant() or T.OneHotDegree()"),
        ("edge_index", "give edges [2, E], not adj_t; torch.empty(2, 0, dtype=torch.long) is none"),
    ):
        if getattr(data, field, None) is None:
            raise DataError(f"the graph has no {field}: {remedy}")
    if issparse(data.x):
        raise DataError("x is a matrix of SciPy: pass torch.from_numpy(x.toarray())")
    x = torch.as_tensor(data.x, dtype=torch.float32)
    if x.dim() != 2 or 0 in x.shape:
        raise DataError(
            f"x has shape {list(x.shape)}, must be [N, F] with at least one node and one feature"
        )
    if x.layout != torch.strided:
        with building_csr():
            x = x.to_sparse_csr()
    check_finite(x, "data")
    return PreparedGraph(unit_rows(sparse_if_worth(x), norm), EdgePattern(data.edge_index, len(x)))
