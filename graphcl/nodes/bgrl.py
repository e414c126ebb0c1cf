"""BGRL: a network predicts what a slowly following copy of it says (Thakoor et al., 2022).

From the paper: views by dropped edges and feature columns, an online network with batch
normalisation and a predictor, a target network as an exponential moving average, its momentum
rising to 1 by a cosine, the symmetric cosine loss without negatives. Varied: the network is
otherwise that of our GRACE, the predictor as wide as the embedding, both views drop with the same
probabilities, and Adam has no warm-up.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.nodes.batch_norm import BatchNorm
from graphcl.nodes.convolution import ConvolutionEncoder, View, draw_view
from graphcl.nodes.features import Features, RowNorm
from graphcl.nodes.method import MethodConfig, NodeMethod
from graphcl.nodes.prepared import PreparedGraph
from graphcl.spectral import SymmetricOperator


@dataclass(frozen=True)
class BGRLConfig(MethodConfig):
    """Hyper-parameters of :class:`BGRL`; see also :class:`graphcl.nodes.ASPECTConfig`.

    Attributes:
        momentum: Of the target network in the first step; 1 would hold it still.
    """

    hidden_channels: int = 256
    row_norm: RowNorm = "l1"
    drop_features: float = 0.3
    drop_edges: float = 0.2
    momentum: float = 0.99
    batch_nodes: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 200
    seed: int = 0


class BGRL(NodeMethod):
    """A two-layer graph convolutional network that learns from its own moving average.

    The target network is saved too, so that a loop of one's own can go on with a loaded method.

    Args:
        config: See :class:`BGRLConfig`.
    """

    config_type: ClassVar[type] = BGRLConfig
    config: BGRLConfig

    def __init__(self, config: BGRLConfig = BGRLConfig()):
        super().__init__(config)

    def build(self, in_channels: int) -> None:
        width = self.config.hidden_channels
        self.encoder = ConvolutionEncoder(in_channels, width, BatchNorm)
        self.target = deepcopy(self.encoder).requires_grad_(False)
        self.predictor = nn.Sequential(nn.Linear(width, width), nn.PReLU(), nn.Linear(width, width))

    def forward(self, x: Features, operator: SymmetricOperator) -> Tensor:
        z: Tensor = self.encoder(x, operator)
        return z

    def loss(self, graph: PreparedGraph) -> dict[str, Tensor]:
        config = self.config
        first, second = (
            draw_view(graph, config.drop_features, config.drop_edges) for _ in range(2)
        )

        def miss(seen: View, other: View) -> Tensor:
            predicted = self.predictor(self.encoder(*seen))
            return 1 - F.cosine_similarity(predicted, self.target(*other), dim=-1).mean()

        return {"bootstrap": miss(first, second) + miss(second, first)}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the target: its momentum is ``1 - (1 - momentum) (cos(pi progress) + 1) / 2``."""
        share = (1 - self.config.momentum) * (math.cos(math.pi * progress) + 1) / 2
        for slow, fast in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, share)
