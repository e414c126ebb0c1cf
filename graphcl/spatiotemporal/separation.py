"""The Conditional Separation Module: a soft mask that divides a representation in two."""

import torch
from torch import Tensor, nn


class ConditionalSeparation(nn.Module):
    """Divides a representation into a shared and a client-specific part.

    ``M = sigmoid(W F_prev + b)``, ``F_c = relu((1 + LN(M)) F)``, ``F_o = relu((1 + LN(1 - M)) F)``.
    The mask is conditioned on the representation of the same input in the round before: what is
    shared between clients is expected to stay, what is a client's own to drift.

    Args:
        channels: D.

    Shapes:
        - **f**, **f_previous**, both outputs: ``[..., D]``
        - **f_own**: ``[..., D]``, what the own part is taken from; in the paper it is ``f``

    Source:
        SC-FSGL, eq. 4 to 6.  Sigmoid for the mask, ReLU outside and one layer norm with affine
        terms for both masks are ours: the paper writes one symbol for every activation.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.mask = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(
        self, f: Tensor, f_previous: Tensor, f_own: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        mask = torch.sigmoid(self.mask(f_previous.detach()))
        shared = torch.relu((1 + self.norm(mask)) * f)
        own = torch.relu((1 + self.norm(1 - mask)) * (f if f_own is None else f_own))
        return shared, own
