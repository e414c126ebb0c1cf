"""STGCN."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.errors import check_fields
from graphcl.spatiotemporal.forecaster import GraphForecaster, NetworkConfig
from graphcl.spatiotemporal.layers import Head, inputs, reached
from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample

_KERNEL = 3  # steps
_BLOCKS = 2


@dataclass(frozen=True)
class STGCNConfig(NetworkConfig):
    """Hyper-parameters of STGCN.

    Attributes:
        hidden_channels: Of the temporal convolutions; graph convolutions have a quarter, as
            published.
        hops: Of a graph convolution, in either direction.
    """

    learning_rate: float = 1e-3
    hops: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ("hops",), lambda v: v >= 1, "at least 1")


class GatedConvolution(nn.Module):
    """A gated linear unit along time, without padding: output i ends at step i + kernel - 1.

    Shapes:
        - **input**: ``[N, B, T, in_channels]``
        - **output**: ``[N, B, T - kernel + 1, out_channels]``
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int):
        super().__init__()
        self.kernel = kernel
        self.filter = nn.Linear(kernel * in_channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.size(2) - self.kernel + 1
        taps = [x[:, :, first : first + steps] for first in range(self.kernel)]
        return F.glu(self.filter(torch.cat(taps, -1)), -1)


class SandwichBlock(nn.Module):
    """A graph convolution between two temporal ones; 2 (kernel - 1) steps shorter."""

    def __init__(self, in_channels: int, config: STGCNConfig):
        super().__init__()
        D = config.hidden_channels
        inner = -(-D // 4)
        self.hops = config.hops
        self.before = GatedConvolution(in_channels, D, _KERNEL)
        self.narrow = nn.Linear(D, inner)
        self.spatial = nn.Linear((1 + 2 * config.hops) * inner, inner)
        self.after = GatedConvolution(inner, D, _KERNEL)
        self.norm = nn.LayerNorm(D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, diffusion: Diffusion) -> Tensor:
        x = self.narrow(self.before(x))
        x = torch.relu(x + self.spatial(torch.cat([x, *reached(x, diffusion, self.hops)], -1)))
        return self.dropout(self.norm(self.after(x)))


class STGCN(GraphForecaster):
    """Convolutions along time and over the graph in turns.

    Weights do not depend on the node.

    Source:
        Yu et al., Spatio-Temporal Graph Convolutional Networks, IJCAI 2018.  Simplified: diffusion
        along and against the edges in place of Chebyshev polynomials of an undirected graph, layer
        norm over channels alone, all steps ahead at once in place of one fed back.
    """

    config_type: ClassVar[type] = STGCNConfig
    config: STGCNConfig

    def build(self) -> None:
        config, C, D = self.config, len(self.channel_names), self.config.hidden_channels
        self.blocks = nn.ModuleList(
            SandwichBlock(width, config) for width in (2 * C, *[D] * (_BLOCKS - 1))
        )
        used_up = 2 * (_KERNEL - 1) * _BLOCKS
        self.padding = max(0, used_up + 1 - config.history)
        self.last = GatedConvolution(D, D, config.history + self.padding - used_up)
        self.hidden = nn.Linear(D, D)
        self.head = Head(D, config.horizon, C)

    def forward(self, sample: Sample) -> Tensor:
        x = F.pad(inputs(sample), (0, 0, self.padding, 0))
        for block in self.blocks:
            x = block(x, self.diffusion)
        return self.head(torch.relu(self.hidden(self.last(x).squeeze(2))))
