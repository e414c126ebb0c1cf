"""A plain graph convolution on the static graph: the baseline of SA-HGNN in the same training."""

from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.outages.model import OutageModel, OutageModelConfig, Territory


class OutageGCN(OutageModel):
    """Two layers of mean aggregation over the static graph, on all features side by side.

    Args:
        config: See :class:`graphcl.outages.OutageModelConfig`.

    Source:
        Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR
        2017, with rows normalised as in SA-HGNN's static graph.
    """

    config_type: ClassVar[type] = OutageModelConfig
    config: OutageModelConfig

    def build(self, static_channels: int, weather_channels: int) -> None:
        width = self.config.hidden_channels
        self.first = nn.Linear(static_channels + weather_channels, width)
        self.second = nn.Linear(width, width)

    def embed_events(self, static: Tensor, weather: Tensor, territory: Territory) -> Tensor:
        events = []
        for storm in weather:
            h = territory.mean @ self.first(torch.cat([static, storm], 1))
            h = F.dropout(h.relu(), self.config.dropout, self.training)
            events.append(territory.mean @ self.second(h))
        return torch.stack(events)
