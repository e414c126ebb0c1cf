"""Node encoders: PyTorch Geometric's networks and ASPECT's behind one constructor.

An encoder reads ``edge_index`` as PyTorch Geometric gives it, or the propagation operator that
:meth:`NodeEncoder.operator` prepares from it once per graph: a CSR matrix where the network
multiplies with one, which spares the normalisation and the gather-scatter in every step, and a
shifted Laplacian for ``aspect``.
"""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, MLP, GraphSAGE
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor

from graphcl.nodes.aspect import ASPECTConfig, SpectralEncoder
from graphcl.spectral import EdgePattern, SymmetricOperator
from graphcl.spectral.sparse import building_csr

Operator = Tensor | SymmetricOperator


class _SGC(nn.Module):
    """Simplified graph convolution: ``num_layers`` propagation steps, one linear map."""

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, dropout: float):
        super().__init__()
        self.num_layers = num_layers
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edge_index: Operator) -> Tensor:
        # The weights first: propagating the narrow side is cheaper, and the two commute. The bias
        # does not: the operator's rows do not sum to one.
        x = F.linear(self.dropout(x), self.linear.weight)
        for _ in range(self.num_layers):
            x = edge_index @ x
        return x + self.linear.bias


class _MLP(nn.Module):
    """A perceptron on the node features; it ignores the edges."""

    def __init__(self, *sizes: int, dropout: float):
        super().__init__()
        self.mlp = MLP(list(sizes), dropout=dropout, norm=None)

    def forward(self, x: Tensor, edge_index: Operator) -> Tensor:
        return self.mlp(x)


class _Aspect(SpectralEncoder):
    """ASPECT's encoder without the projection heads, which only its label-free loss sees."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        self.config = ASPECTConfig(hidden_channels=out_channels, drop_features=dropout)
        self.create_policy(self.create_channels(in_channels))


def _csr(edge_index: Tensor, weight: Tensor | None, num_nodes: int) -> Tensor:
    """Return the transposed adjacency as CSR: row i gathers the messages to node i."""
    with building_csr():
        return to_torch_csr_tensor(edge_index.flip(0), weight, size=(num_nodes, num_nodes))


def _normalised(edge_index: Tensor, num_nodes: int) -> Operator:
    """``D^-1/2 (A + I) D^-1/2``."""
    edge_index, weight = gcn_norm(edge_index, num_nodes=num_nodes)
    return _csr(edge_index, weight, num_nodes)


def _mean(edge_index: Tensor, num_nodes: int) -> Operator:
    """``D^-1 A``: a mean over the incoming neighbours; zero rows for isolated nodes."""
    degree = torch.bincount(edge_index[1], minlength=num_nodes).clamp(min=1)
    return _csr(edge_index, 1.0 / degree[edge_index[1]], num_nodes)


def _adjacency(edge_index: Tensor, num_nodes: int) -> Operator:
    return _csr(edge_index, torch.ones(edge_index.size(1), device=edge_index.device), num_nodes)


def _as_given(edge_index: Tensor, num_nodes: int) -> Operator:
    return edge_index


def _shifted_laplacian(edge_index: Tensor, num_nodes: int) -> Operator:
    """``-D^-1/2 A D^-1/2``, edges read in both directions."""
    return EdgePattern(edge_index, num_nodes).shifted_laplacian()


def _gcn(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return GCN(i, h, n, o, dropout=p, normalize=False)


def _sage(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return GraphSAGE(i, h, n, o, dropout=p, aggr="sum")  # the operator holds the mean


def _gat(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    heads = next(heads for heads in (4, 2, 1) if h % heads == 0)
    return GAT(i, h, n, o, dropout=p, heads=heads)


def _gin(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return GIN(i, h, n, o, dropout=p, norm=None)


def _sgc(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return _SGC(i, o, n, p)


def _mlp(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return _MLP(i, *[h] * (n - 1), o, dropout=p)


def _aspect(i: int, h: int, o: int, n: int, p: float) -> nn.Module:
    return _Aspect(i, o, p)


Builder = Callable[[int, int, int, int, float], nn.Module]
ENCODERS: dict[str, tuple[Builder, Callable[[Tensor, int], Operator]]] = {
    "gcn": (_gcn, _normalised),
    "sage": (_sage, _mean),
    "gat": (_gat, _as_given),
    "gin": (_gin, _adjacency),
    "sgc": (_sgc, _normalised),
    "mlp": (_mlp, _as_given),
    "aspect": (_aspect, _shifted_laplacian),
}


def _is_edges(graph: Operator) -> TypeGuard[Tensor]:
    """Say whether a graph came as ``edge_index``, not as what was prepared from it."""
    return isinstance(graph, Tensor) and graph.layout == torch.strided


class NodeEncoder(nn.Module):
    """A graph neural network that embeds the nodes of a graph.

    Args:
        name: ``gcn`` (Kipf & Welling, 2017), ``sage`` (Hamilton et al., 2017, mean), ``gat``
            (Veličković et al., 2018), ``gin`` (Xu et al., 2019), ``sgc`` (Wu et al., 2019) or
            ``mlp`` (no edges), with PyTorch Geometric's layers; or ``aspect``, the spectral
            encoder of :class:`graphcl.nodes.ASPECT` with the filters and the node-wise policy
            that it has by default, for which edges have no direction.
        in_channels: Width of the node features.
        hidden_channels: Width between the layers.
        out_channels: Width of the embeddings.
        num_layers: Number of layers, or of propagation steps for ``sgc``; ``aspect`` has one
            layer, whose filters reach as far as their degree.
        dropout: Probability of dropping, while training: hidden features, and attention weights
            in ``gat``; input features in ``sgc`` and ``aspect``, which have no hidden layer.

    Shapes:
        - **x**: ``[num_nodes, in_channels]``
        - **edge_index**: ``[2, num_edges]``, or what :meth:`operator` returned for this graph
        - **output**: ``[num_nodes, out_channels]``

    Example:
        >>> x, edge_index = torch.randn(3, 8), torch.tensor([[0, 1], [1, 0]])
        >>> NodeEncoder("gcn", 8, 16, 4)(x, edge_index).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.0,
    ):
        super().__init__()
        if name not in ENCODERS:
            raise ValueError(f"unknown encoder '{name}' (known: {', '.join(ENCODERS)})")
        self.name = name
        self.arguments = {
            "name": name,
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
            "dropout": dropout,
        }
        build, self._operator = ENCODERS[name]
        self.net = build(in_channels, hidden_channels, out_channels, num_layers, dropout)

    def operator(self, edge_index: Tensor, num_nodes: int) -> Operator:
        """Prepare a graph once for this encoder; pass the result in place of ``edge_index``."""
        return self._operator(edge_index, num_nodes)

    def forward(self, x: Tensor, edge_index: Operator) -> Tensor:
        """Embed every node."""
        if _is_edges(edge_index) and self._operator is not _as_given:
            edge_index = self.operator(edge_index, x.size(0))
        if not _is_edges(edge_index) and edge_index.dtype != x.dtype:
            edge_index = edge_index.to(dtype=x.dtype)
        out: Any = self.net(x, edge_index)
        return out
