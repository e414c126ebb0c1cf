"""GRACE: two views of a graph, InfoNCE between them (Zhu et al., 2020).

From the paper: views by dropped edges and feature columns, a two-layer network, its projection head
and loss. Varied: propagation is a lazy walk, and a step may contrast a sample of the nodes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.contrast import info_nce
from graphcl.nodes.features import Features, drop_columns, linear
from graphcl.nodes.method import NodeMethod, PreparedGraph, draw_anchors, projection_head
from graphcl.spectral import SymmetricOperator


@dataclass(frozen=True)
class GRACEConfig:
    """Hyper-parameters of :class:`GRACE`; see :class:`graphcl.nodes.ASPECTConfig`."""

    hidden_channels: int = 256
    drop_features: float = 0.3
    drop_edges: float = 0.2
    temperature: float = 0.5
    num_anchors: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 200
    seed: int = 0


class GRACE(NodeMethod):
    """A two-layer graph convolutional network under InfoNCE, features dropped by column.

    Its propagation is ``A + I`` over degrees through the same symmetric operator as ASPECT's:
    ``(x + A_norm x) / 2``, a lazy walk, in place of the renormalised adjacency.
    """

    config_type: ClassVar[type] = GRACEConfig
    config: GRACEConfig

    def __init__(self, config: GRACEConfig = GRACEConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        width = self.config.hidden_channels
        self.first = nn.Linear(in_channels, 2 * width)
        self.second = nn.Linear(2 * width, width)
        self.projection = projection_head(width)

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        hidden = linear(x, self.first.weight)
        hidden = F.relu((hidden - operator @ hidden) / 2 + self.first.bias)
        out = F.linear(hidden, self.second.weight)
        return F.relu((out - operator @ out) / 2 + self.second.bias)

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        config = self.config
        anchors = draw_anchors(len(graph.x), config.num_anchors)
        views = []
        for _ in range(2):
            x = drop_columns(graph.x, config.drop_features)
            keep = graph.pattern.drop_edges(config.drop_edges)
            z = self(x, graph.pattern.shifted_laplacian(keep))
            views.append(self.projection(z[anchors]))
        return {"info_nce": info_nce(*views, temperature=config.temperature)}
