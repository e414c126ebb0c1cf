"""What GRACE and BGRL share: the network that embeds, and the views it is shown."""

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.nodes.features import Features, drop_columns, linear
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import SymmetricOperator

View = tuple[Features, SymmetricOperator]


class ConvolutionEncoder(nn.Module):
    """A two-layer graph convolutional network, twice as wide in the middle.

    Its propagation is ``A + I`` over degrees through the same symmetric operator as ASPECT's:
    ``(x + A_norm x) / 2``, a lazy walk, in place of the renormalised adjacency.

    Args:
        in_channels: Width of the node features.
        width: Width of the embedding.
        norm: Makes what normalises each layer before its ReLU, from a width; nothing by default.

    Shapes:
        - **x**: ``[num_nodes, in_channels]``
        - **output**: ``[num_nodes, width]``
    """

    def __init__(
        self, in_channels: int, width: int, norm: Callable[[int], nn.Module] = nn.Identity
    ):
        super().__init__()
        self.first = nn.Linear(in_channels, 2 * width)
        self.second = nn.Linear(2 * width, width)
        # As PyG's GCNConv starts: features whose rows sum to one would drown in biases.
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.norms = nn.ModuleList([norm(2 * width), norm(width)])

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        """Embed every node."""
        hidden = linear(x, self.first.weight)
        hidden = F.relu(self.norms[0]((hidden - operator @ hidden) / 2 + self.first.bias))
        out = F.linear(hidden, self.second.weight)
        return F.relu(self.norms[1]((out - operator @ out) / 2 + self.second.bias))


def draw_view(graph: PreparedGraph, drop_features: float, drop_edges: float) -> View:
    """Return a view of a graph without some feature columns and some edges."""
    x = drop_columns(graph.x, drop_features)
    return x, graph.pattern.shifted_laplacian(graph.pattern.drop_edges(drop_edges))
