"""SC-FSGL's encoder, and what its shared and its own part are made of."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from graphcl.spatiotemporal.calendar import Calendar
from graphcl.spatiotemporal.propagation import Diffusion


class Parts(NamedTuple):
    """The temporal and the spatial side of something, each ``[B, N, C, D]``."""

    temporal: Tensor
    spatial: Tensor

    def joined(self, gate: nn.Linear) -> Tensor:
        """Return both sides in the shares that a gate from both tells, ``[B, N, C, D]``."""
        share = torch.sigmoid(gate(torch.cat([self.spatial, self.temporal], -1)))
        return torch.lerp(self.temporal, self.spatial, share)


class Anchor(NamedTuple):
    """What a forecast is relative to: the last value ``[B, N, C]``, usual ones ``[B, F, N, C]``."""

    last: Tensor
    usual: Tensor


class Encoder(nn.Module):
    """Both extractors: what a window holds per node, and what the graph adds to it.

    Args:
        steps: What is read of each variable.
        width: D.
        num_layers: Residual blocks of the temporal extractor.
        hops: Steps of the diffusion, in each direction.
        dropout: In the blocks.
        sensors: N and C, each of which gets an embedding of its own; None treats all alike.
    """

    def __init__(
        self,
        steps: int,
        width: int,
        num_layers: int,
        hops: int,
        dropout: float,
        sensors: tuple[int, int] | None,
    ):
        super().__init__()
        D = width
        self.window = nn.Sequential(nn.Linear(steps, D), nn.ReLU(), nn.Linear(D, D))
        self.time = nn.Linear(Calendar.width, D, bias=False)
        self.node = None if sensors is None else nn.Parameter(0.02 * torch.randn(*sensors, D))
        self.temporal = nn.ModuleList(_Block(D, dropout) for _ in range(num_layers))
        self.hops = hops
        self.spatial = nn.Linear((1 + 2 * hops) * D, D)

    def forward(self, window: Tensor, calendar: Tensor, diffusion: Diffusion) -> Parts:
        """Return both representations, each ``[B, N, C, D]``.

        Shapes:
            window: ``[B, N, C, steps]``; calendar: ``[B, calendar.width]``, of the last step.
        """
        x = self.window(window)
        if self.node is not None:
            x = x + self.node
        x = x + self.time(calendar)[:, None, None]
        temporal = x
        for block in self.temporal:
            temporal = temporal + block(temporal)
        hops = diffusion.hops(x.flatten(2), self.hops)
        around = [hop.unflatten(2, x.shape[2:]) for hop in hops]
        spatial = x + torch.relu(self.spatial(torch.cat([x, *around], -1)))
        return Parts(temporal, spatial)


class _Block(nn.Sequential):
    def __init__(self, channels: int, dropout: float):
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
        )
