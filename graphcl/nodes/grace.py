"""GRACE: two views of a graph, InfoNCE between them (Zhu et al., 2020).

From the paper: views by dropped edges and feature columns, a two-layer network, its projection head
and loss. Varied: propagation is a lazy walk, and a step may contrast a sample of the nodes.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graphcl.contrast import info_nce
from graphcl.nodes.convolution import ConvolutionEncoder, draw_view
from graphcl.nodes.features import Features, RowNorm
from graphcl.nodes.method import MethodConfig, NodeMethod, draw_anchors, projection_head
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import SymmetricOperator


@dataclass(frozen=True)
class GRACEConfig(MethodConfig):
    """Hyper-parameters of :class:`GRACE`; see :class:`graphcl.nodes.ASPECTConfig`."""

    hidden_channels: int = 256
    row_norm: RowNorm = "l1"
    drop_features: float = 0.3
    drop_edges: float = 0.2
    temperature: float = 0.5
    num_anchors: int = 1024
    batch_nodes: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 200
    seed: int = 0


class GRACE(NodeMethod):
    """A two-layer graph convolutional network under InfoNCE, features dropped by column."""

    config_type: ClassVar[type] = GRACEConfig
    config: GRACEConfig

    def __init__(self, config: GRACEConfig = GRACEConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        width = self.config.hidden_channels
        self.encoder = ConvolutionEncoder(in_channels, width)
        self.projection = projection_head(width, width)

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        z: Tensor = self.encoder(x, operator)
        return z

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        config = self.config
        anchors = draw_anchors(len(graph.x), config.num_anchors)
        views = []
        for _ in range(2):
            z = self(*draw_view(graph, config.drop_features, config.drop_edges))
            views.append(self.projection(z if anchors is None else z[anchors]))
        return {"info_nce": info_nce(*views, temperature=config.temperature)}
