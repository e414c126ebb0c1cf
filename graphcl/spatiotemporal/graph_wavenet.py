"""Graph WaveNet."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.errors import check_fields
from graphcl.spatiotemporal.calendar import Calendar
from graphcl.spatiotemporal.forecaster import GraphForecaster, NetworkConfig
from graphcl.spatiotemporal.layers import Head, inputs, reached
from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample


@dataclass(frozen=True)
class GraphWaveNetConfig(NetworkConfig):
    """Hyper-parameters of Graph WaveNet; the defaults are the published ones.

    Attributes:
        hidden_channels: Of the layers; four times as many are skipped to the head.
        hops: Of a graph convolution, in either direction and along the learned graph.
        adaptive_channels: Of each of a node's two embeddings, whose products are the learned graph.
    """

    hidden_channels: int = 32
    dropout: float = 0.3
    learning_rate: float = 1e-3
    hops: int = 2
    adaptive_channels: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ("hops", "adaptive_channels"), lambda v: v >= 1, "at least 1")


class DilatedLayer(nn.Module):
    """A gated convolution of kernel 2 along time, then one over given and learned graph.

    Of T steps only every second is computed, counted from the last: no later layer reads the
    others on the way to the last step, since dilations double.  Convolutions dilated by 1, 2, 4,
    ... give the same there at several times the cost.

    Shapes:
        - **input**: ``[N, B, T, D]``
        - **output**: ``[N, B, ceil(T / 2), D]``, output i ending at step ``2 i + 1`` of an even T
    """

    def __init__(self, config: GraphWaveNetConfig):
        super().__init__()
        D = config.hidden_channels
        self.hops = config.hops
        self.gated = nn.Linear(2 * D, 2 * D)
        self.spatial = nn.Linear((1 + 3 * config.hops) * D, D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, diffusion: Diffusion, adaptive: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, x.size(2) % 2, 0))
        value, gate = self.gated(x.unflatten(2, (-1, 2)).flatten(3)).chunk(2, -1)
        h = torch.tanh(value) * torch.sigmoid(gate)
        around = [h, *reached(h, diffusion, self.hops)]
        learned = h.flatten(1)
        for _ in range(self.hops):
            learned = adaptive @ learned
            around.append(learned.view_as(h))
        return x[:, :, 1::2] + self.dropout(self.spatial(torch.cat(around, -1)))


class GraphWaveNet(GraphForecaster):
    """Dilated convolutions along time, diffusion over the given graph and over a learned one.

    As many layers as the history needs.  The learned graph is dense: memory grows with N².

    Source:
        Wu et al., Graph WaveNet, IJCAI 2019.  Simplified: one stack whose dilations double in
        place of four whose dilations are 1 and 2, no batch norm, a narrower head, skips from behind
        the graph convolution, so that the last one counts.  The mask is ours, and so is the week
        beside the time of day.
    """

    config_type: ClassVar[type] = GraphWaveNetConfig
    config: GraphWaveNetConfig

    def build(self) -> None:
        config, D = self.config, self.config.hidden_channels
        N, C = len(self.node), len(self.channel_names)
        self.value = nn.Linear(2 * C, D)
        self.time = nn.Linear(Calendar.width, D, bias=False)
        self.source = nn.Parameter(torch.randn(N, config.adaptive_channels))
        self.target = nn.Parameter(torch.randn(N, config.adaptive_channels))
        num_layers = max(1, (config.history - 1).bit_length())
        self.layers = nn.ModuleList(DilatedLayer(config) for _ in range(num_layers))
        self.skip = nn.Linear(num_layers * D, 4 * D)
        self.hidden = nn.Linear(4 * D, 4 * D)
        self.head = Head(4 * D, config.horizon, C)

    @property
    def adaptive(self) -> Tensor:
        """The learned graph ``[N, N]``; row n holds the shares of those that node n reads."""
        return torch.relu(self.source @ self.target.T).softmax(1)

    def forward(self, sample: Sample) -> Tensor:
        x = self.value(inputs(sample))
        x = x + self.time(self.calendar(sample.time[:, : self.config.history]))
        adaptive, skips = self.adaptive, []
        for layer in self.layers:
            x = layer(x, self.diffusion, adaptive)
            skips.append(x[:, :, -1])
        # One map of all skips is the sum of a map of each.
        x = torch.relu(self.skip(torch.cat(skips, -1)))
        return self.head(torch.relu(self.hidden(x)))
