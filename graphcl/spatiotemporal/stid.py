"""STID."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from graphcl.errors import check_fields
from graphcl.spatiotemporal.forecaster import NetworkConfig, NetworkForecaster
from graphcl.spatiotemporal.layers import Head, inputs
from graphcl.spatiotemporal.samples import Sample


@dataclass(frozen=True)
class STIDConfig(NetworkConfig):
    """Hyper-parameters of STID; the defaults are the published ones.

    Attributes:
        hidden_channels: Of each part that is joined: window, node, and every cycle of the calendar.
        num_layers: Residual MLPs.
    """

    hidden_channels: int = 32
    dropout: float = 0.15
    num_layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, ("num_layers",), lambda v: v >= 1, "at least 1")


class STID(NetworkForecaster):
    """Tells apart which node and what time it is, and reads no graph: an MLP, and hard to beat.

    A cycle of the calendar has an embedding where training saw it twice.

    Source:
        Shao et al., Spatial-Temporal Identity, CIKM 2022.  The mask beside the window and the
        embedding of the week of the year are ours.
    """

    config_type: ClassVar[type] = STIDConfig
    config: STIDConfig

    def build(self) -> None:
        config, C, D = self.config, len(self.channel_names), self.config.hidden_channels
        self.window = nn.Linear(2 * C * config.history, D)
        self.identity = nn.Parameter(torch.empty(len(self.node), D))
        self.cycles = nn.ModuleList(nn.Embedding(n, D) for n in self.calendar.num_places)
        for table in (self.identity, *self.cycles.parameters()):
            nn.init.xavier_uniform_(table)
        width = (2 + len(self.cycles)) * D
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Dropout(config.dropout),
                nn.Linear(width, width),
            )
            for _ in range(config.num_layers)
        )
        self.head = Head(width, config.horizon, C)

    def forward(self, sample: Sample) -> Tensor:
        window = self.window(inputs(sample).flatten(2))
        places = self.calendar.places(sample.time[:, self.config.history - 1])
        times = [table(place) for table, place in zip(self.cycles, places, strict=True)]
        known = [part.expand_as(window) for part in (self.identity[:, None], *times)]
        x = torch.cat([window, *known], -1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)
