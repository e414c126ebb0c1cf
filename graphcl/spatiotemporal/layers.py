"""What the network baselines share: nodes come first, so that a hop is one product, no copy."""

import torch
from torch import Tensor, nn

from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample


def inputs(sample: Sample) -> Tensor:
    """Return values, 0 where missing, beside their masks: ``[N, B, history, 2 C]``."""
    x = torch.where(sample.x_mask, sample.x, 0.0)
    return torch.cat([x, sample.x_mask.float()], -1).permute(2, 0, 1, 3)


def reached(x: Tensor, diffusion: Diffusion, hops: int) -> list[Tensor]:
    """Return what :meth:`Diffusion.hops` does, for ``[N, B, T, D]``."""
    return [state.view_as(x) for state in diffusion.hops(x.flatten(1)[None], hops)]


class Head(nn.Module):
    """Reads all steps and channels off a node's hidden state.

    Shapes:
        - **input**: ``[N, B, D]``
        - **output**: ``[B, horizon, N, C]``
    """

    def __init__(self, in_channels: int, horizon: int, num_channels: int):
        super().__init__()
        self.shape = horizon, num_channels
        self.out = nn.Linear(in_channels, horizon * num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x).unflatten(-1, self.shape).permute(1, 2, 0, 3)
