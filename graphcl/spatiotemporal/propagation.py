"""Diffusion over a directed, weighted graph: dense where that is faster, sparse beyond."""

from typing import Any, Literal

import torch
from torch import Tensor

from graphcl.datasets import SpatioTemporalSeries
from graphcl.errors import GraphCLError
from graphcl.spectral.sparse import building_csr, product

DENSE_BELOW = 50  # nodes, where an epoch costs the same: bench_forecast_scale.py
Storage = Literal["auto", "dense", "sparse"]


class Diffusion:
    """Random walks along a graph and against it: each node takes the weighted mean of others.

    ``along`` lets a node read the sources of its edges and ``against`` their targets.  A node
    without such an edge reads 0.

    Args:
        edge_index: Source above target, int64 ``[2, E]``.
        edge_weight: Positive, float32 ``[E]``.
        num_nodes: N.
        storage: ``"dense"`` matrices, ``"sparse"`` ones, or by the number of nodes.

    Raises:
        GraphCLError: An edge names no node, or a weight is not positive and finite.

    Shapes:
        ``hops(x, k)`` maps ``[B, N, D]`` to ``2 k`` tensors of that shape: ``P x``, ``P² x``, ...
        along the edges, then the same against them.

    Source:
        Li et al., DCRNN, ICLR 2018, eq. 2, without the filter's coefficients.

    Example:
        >>> chain = Diffusion(torch.tensor([[0, 1], [1, 2]]), torch.ones(2), 3)
        >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> [h.flatten().tolist() for h in chain.hops(x, 1)]
        [[0.0, 1.0, 2.0], [2.0, 3.0, 0.0]]
    """

    def __init__(
        self,
        edge_index: Tensor,
        edge_weight: Tensor,
        num_nodes: int,
        storage: Storage = "auto",
    ):
        if storage == "auto":
            storage = "dense" if num_nodes < DENSE_BELOW else "sparse"
        self.storage = storage
        self.num_nodes = num_nodes
        _check_edges(edge_index, edge_weight, num_nodes)
        source, target = edge_index
        walks = [
            _row_means(target, source, edge_weight, num_nodes),
            _row_means(source, target, edge_weight, num_nodes),
        ]
        if storage == "dense":
            self._walks = [(walk.to_dense(), walk.t().to_dense()) for walk in walks]
        else:
            self._walks = [(_csr(walk), _csr(walk.t())) for walk in walks]

    @classmethod
    def of(cls, series: SpatioTemporalSeries, storage: Storage = "auto") -> "Diffusion":
        """Return the diffusion on the graph of a series, or on the mean of its steps' graphs."""
        index, weight = series.edge_index, series.edge_weight
        if series.edge_ptr is not None:
            N = series.num_nodes
            total = torch.sparse_coo_tensor(index, weight / series.num_steps, (N, N)).coalesce()
            index, weight = total.indices(), total.values()
        return cls(index, weight, series.num_nodes, storage)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Diffusion":
        return self  # never changed, and torch copies no CSR matrix

    def hops(self, x: Tensor, num_hops: int) -> list[Tensor]:
        """Return what 1 to ``num_hops`` steps away is, along the edges and against them.

        Raises:
            GraphCLError: ``x`` has another number of nodes.
        """
        if x.dim() != 3 or x.size(1) != self.num_nodes:
            raise GraphCLError(
                f"Diffusion: x has shape {list(x.shape)}, must be [B, N, D] with N = "
                f"{self.num_nodes} nodes"
            )
        # One product for the whole batch: [N, B D].
        flat = x.transpose(0, 1).flatten(1)
        states = []
        for walk in self._walks:
            state = flat
            for _ in range(num_hops):
                state = _Walk.apply(*walk, state)
                states.append(state)
        shape = (self.num_nodes, x.size(0), x.size(2))
        return [state.view(shape).transpose(0, 1) for state in states]


def _check_edges(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> None:
    if edge_weight.dim() != 1 or edge_index.shape != (2, len(edge_weight)):
        raise GraphCLError(
            f"Diffusion: edge_index has shape {list(edge_index.shape)} and edge_weight "
            f"{list(edge_weight.shape)}, must be [2, E] and [E]"
        )
    bad = ((edge_index < 0) | (edge_index >= num_nodes)).any(0).nonzero()
    if len(bad):
        edge = int(bad[0])
        raise GraphCLError(
            f"Diffusion: edge_index[:, {edge}] is {edge_index[:, edge].tolist()} ({len(bad)} "
            f"such), must be 0 to {num_nodes - 1}"
        )
    bad = (~edge_weight.isfinite() | (edge_weight <= 0)).nonzero()
    if len(bad):
        edge = int(bad[0])
        raise GraphCLError(
            f"Diffusion: edge_weight[{edge}] is {edge_weight[edge].item()} ({len(bad)} such), must "
            "be positive and finite: leave the edge out if it weighs nothing"
        )


def _row_means(row: Tensor, column: Tensor, weight: Tensor, num_nodes: int) -> Tensor:
    total = torch.zeros(num_nodes, dtype=torch.float64).index_add_(0, row, weight.double())
    share = (weight.double() / total[row]).float()
    with building_csr():
        return torch.sparse_coo_tensor(
            torch.stack([row, column]), share, (num_nodes, num_nodes)
        ).coalesce()


def _csr(matrix: Tensor) -> Tensor:
    with building_csr():
        return matrix.coalesce().to_sparse_csr()


class _Walk(torch.autograd.Function):
    """A sparse product whose transpose is known, where torch would transpose on the way back."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.both = matrix, transposed
        return product(matrix, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        # Through the function again: the invariance penalty differentiates a gradient.
        matrix, transposed = ctx.both
        return None, None, _Walk.apply(transposed, matrix, grads[0])
