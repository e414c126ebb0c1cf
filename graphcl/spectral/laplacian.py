"""Normalised Laplacians of undirected graphs, with a pattern that lasts through edge dropping.

    L = I - D^-1/2 A D^-1/2          Lt = L - I = -D^-1/2 A D^-1/2

The eigenvalues of ``L`` lie in [0, 2], those of ``Lt`` in [-1, 1], where the Chebyshev
polynomials live.
"""

import torch
from torch import Tensor

from graphcl.errors import GraphCLError
from graphcl.spectral.operators import SymmetricOperator
from graphcl.spectral.sparse import row_entries


class EdgePattern:
    """The undirected edges of a graph, sorted once, from which Laplacians of subgraphs come fast.

    Each undirected edge ``{i, j}`` has one position; masks refer to it. The same edge given twice
    or in both directions is one edge, and self loops go.

    Args:
        edge_index: Edges as PyTorch Geometric gives them.
        num_nodes: Number of nodes; those without an edge count.

    Shapes:
        edge_index: ``[2, E]``, integers.

    Attributes:
        edge_index: ``[2, num_edges]``, the smaller end first, sorted.
        num_nodes: As given.

    Raises:
        GraphCLError: ``edge_index`` has the wrong shape or type or an index out of range, or there
            is no node.

    Example:
        >>> pattern = EdgePattern(torch.tensor([[0, 1, 1], [1, 0, 1]]), num_nodes=3)
        >>> pattern.edge_index.tolist()
        [[0], [1]]
        >>> pattern.shifted_laplacian().to_dense()[0]
        tensor([ 0., -1.,  0.])
    """

    def __init__(self, edge_index: Tensor, num_nodes: int):
        _check_edges(edge_index, num_nodes)
        low, high = edge_index.long().aminmax(dim=0) if edge_index.numel() else edge_index.long()
        keys = torch.unique((low * num_nodes + high)[low != high])
        low, high = keys // num_nodes, keys % num_nodes
        self.num_nodes = num_nodes
        self.edge_index = torch.stack([low, high])
        # Both directions in the order of a CSR matrix; entry e belongs to edge self._edge[e].
        row, col = torch.cat([low, high]), torch.cat([high, low])
        order = torch.argsort(row * num_nodes + col)
        self._row, self._col = row[order], col[order]
        self._edge = order % max(1, len(keys))

    @property
    def num_edges(self) -> int:
        """Number of undirected edges."""
        return self.edge_index.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the pattern is."""
        return self.edge_index.device

    def to(self, device: torch.device | str) -> "EdgePattern":
        """Return the pattern on another device."""
        return EdgePattern(self.edge_index.to(device), self.num_nodes)

    def drop_edges(self, p: float, generator: torch.Generator | None = None) -> Tensor:
        """Return a mask that keeps each undirected edge with probability ``1 - p``.

        Shapes:
            Returns ``[num_edges]``, bool.

        Args:
            p: Probability of dropping an edge.
            generator: Source of randomness; with one on the CPU, all devices get the same mask.

        Raises:
            GraphCLError: ``p`` is outside [0, 1].
        """
        if not 0 <= p <= 1:
            raise GraphCLError(f"drop_edges: p is {p}; pass a probability from 0 to 1")
        device = self.device if generator is None else generator.device
        return (torch.rand(self.num_edges, generator=generator, device=device) >= p).to(self.device)

    def subgraph(self, nodes: Tensor) -> "EdgePattern":
        """Return the pattern of the edges among some nodes, which are numbered anew from 0.

        It costs the edges of these nodes, not those of the graph.

        Shapes:
            nodes: ``[n]``, integers.

        Args:
            nodes: At least one node, ascending, each once.

        Raises:
            GraphCLError: ``nodes`` is something else.
        """
        self._check_nodes(nodes)
        start = torch.searchsorted(self._row, nodes)
        row, entry = row_entries(start, torch.searchsorted(self._row, nodes, right=True))
        place = torch.full((self.num_nodes,), -1, device=self.device)
        place[nodes] = torch.arange(len(nodes), device=self.device)
        col = place[self._col[entry]]
        inside = col >= 0
        row, col, edge = row[inside], col[inside], self._edge[entry[inside]]
        upper = row < col
        # The new numbers ascend with the old ones: whatever was sorted is sorted still.
        sub = object.__new__(EdgePattern)
        sub.num_nodes = len(nodes)
        sub.edge_index = torch.stack([row[upper], col[upper]])
        sub._row, sub._col, sub._edge = row, col, torch.searchsorted(edge[upper], edge)
        return sub

    def shifted_laplacian(
        self, keep: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> SymmetricOperator:
        """Return ``Lt = -D^-1/2 A D^-1/2`` of the kept edges, eigenvalues in [-1, 1].

        Degrees count kept edges only. A node without one has ``D^-1/2 = 0``: an empty row.

        Shapes:
            keep: ``[num_edges]``, bool. Returns an operator of size ``[num_nodes, num_nodes]``.

        Args:
            keep: The edges to keep, for example from :meth:`drop_edges`; all by default.
            dtype: float32 or float64.

        Raises:
            GraphCLError: ``keep`` is not one bool per undirected edge on the pattern's device.

        Source:
            He et al., Convolutional Neural Networks on Graphs with Chebyshev Approximation,
            Revisited, 2022: the scaled Laplacian for a largest eigenvalue of 2.
        """
        row, col = self._row, self._col
        if keep is not None:
            self._check_keep(keep)
            kept = keep[self._edge]  # a subset of sorted entries is sorted
            row, col = row[kept], col[kept]
        crow, scale = _rows(row, self.num_nodes, dtype)
        return SymmetricOperator(crow, col, -scale[row] * scale[col])

    def induced_adjacency(self, nodes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dense adjacency among some nodes, 0 or 1.

        Shapes:
            nodes: ``[n]``, distinct integers. Returns ``[n, n]``, in the order of ``nodes``.

        Args:
            nodes: Of the induced subgraph.
            dtype: Type of the entries.

        Example:
            >>> EdgePattern(torch.tensor([[0], [2]]), 3).induced_adjacency(torch.tensor([2, 0]))
            tensor([[0., 1.],
                    [1., 0.]])
        """
        position = torch.full((self.num_nodes,), -1, device=self.device)
        position[nodes] = torch.arange(len(nodes), device=self.device)
        ends = position[self.edge_index]
        low, high = ends[:, (ends >= 0).all(0)]
        adjacency = torch.zeros(len(nodes), len(nodes), dtype=dtype, device=self.device)
        adjacency[low, high] = adjacency[high, low] = 1
        return adjacency

    def _check_nodes(self, nodes: Tensor) -> None:
        fits = nodes.dtype == torch.long and nodes.dim() == 1 and len(nodes) > 0
        ascending = fits and bool((nodes.diff() > 0).all())
        if not (ascending and nodes[0] >= 0 and nodes[-1] < self.num_nodes):
            raise GraphCLError(
                f"EdgePattern.subgraph: nodes, {nodes.dtype} of shape {tuple(nodes.shape)}, are "
                f"not int64 indices from 0 to {self.num_nodes - 1}, ascending, each once; sort them"
            )

    def _check_keep(self, keep: Tensor) -> None:
        if keep.dtype != torch.bool or keep.shape != (self.num_edges,):
            raise GraphCLError(
                f"shifted_laplacian: keep is {keep.dtype} of shape {tuple(keep.shape)}; pass one "
                f"bool for each of the {self.num_edges} undirected edges"
            )
        if keep.device != self.device:
            raise GraphCLError(
                f"shifted_laplacian: keep is on {keep.device} and the edges on {self.device}; "
                "move one with .to"
            )


def laplacian(
    edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32
) -> SymmetricOperator:
    """Return ``L = I - D^-1/2 A D^-1/2``, eigenvalues in [0, 2].

    The edges are read as in :class:`EdgePattern`. A node without an edge has 1 on the diagonal.

    Shapes:
        edge_index: ``[2, E]``. Returns an operator of size ``[num_nodes, num_nodes]``.

    Args:
        edge_index: Edges as PyTorch Geometric gives them.
        num_nodes: Number of nodes.
        dtype: float32 or float64.

    Raises:
        GraphCLError: As for :class:`EdgePattern`.

    Example:
        >>> laplacian(torch.tensor([[0], [1]]), num_nodes=3).to_dense()
        tensor([[ 1., -1.,  0.],
                [-1.,  1.,  0.],
                [ 0.,  0.,  1.]])
    """
    shifted = EdgePattern(edge_index, num_nodes).shifted_laplacian(dtype=dtype).matrix
    crow, col, value = shifted.crow_indices(), shifted.col_indices(), shifted.values()
    nodes = torch.arange(num_nodes, device=col.device)
    row = torch.cat([nodes.repeat_interleave(crow.diff()), nodes])
    col, value = torch.cat([col, nodes]), torch.cat([value, torch.ones_like(nodes).to(value)])
    order = torch.argsort(row * num_nodes + col)
    return SymmetricOperator(
        crow + torch.arange(num_nodes + 1, device=col.device), col[order], value[order]
    )


def _rows(row: Tensor, num_nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the starts of the rows ``[N + 1]`` and ``D^-1/2`` ``[N]`` of sorted row indices."""
    crow = torch.searchsorted(row, torch.arange(num_nodes + 1, device=row.device))
    degree = crow.diff()
    return crow, torch.where(degree > 0, degree.clamp(min=1).to(dtype).rsqrt(), 0)


def _check_edges(edge_index: Tensor, num_nodes: int) -> None:
    if num_nodes < 1:
        raise GraphCLError(f"EdgePattern: num_nodes is {num_nodes}; pass 1 or more")
    floating = edge_index.is_floating_point() or edge_index.is_complex()
    if edge_index.dim() != 2 or len(edge_index) != 2 or floating or edge_index.dtype == torch.bool:
        raise GraphCLError(
            f"EdgePattern: edge_index is {edge_index.dtype} of shape {tuple(edge_index.shape)}; "
            "pass integers of shape [2, num_edges]"
        )
    if edge_index.numel():
        low, high = (int(end) for end in edge_index.aminmax())
        if low < 0 or high >= num_nodes:
            raise GraphCLError(
                f"EdgePattern: edge_index holds indices from {low} to {high} for {num_nodes} "
                f"nodes; pass indices from 0 to {num_nodes - 1}"
            )
