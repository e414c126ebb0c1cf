"""What many users or items have in common: a few learned prototypes, and each one's share of them.

The softmax over prototypes is that of BIGCF (Zhang et al., SIGIR 2024).
"""

import torch
from torch import Tensor, nn


class Intents(nn.Module):
    """Maps a vector to its collective intent ``softmax(x C^T) C``, a mean of prototypes C.

    Without prototypes the intent is zero.

    Args:
        num_intents: Prototypes K.
        channels: D.

    Shapes:
        ``[..., D]`` to ``[..., D]``.
    """

    def __init__(self, num_intents: int, channels: int):
        super().__init__()
        self.prototype = nn.Parameter(torch.empty(num_intents, channels))
        if num_intents:
            nn.init.xavier_normal_(self.prototype)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.prototype.T).softmax(-1) @ self.prototype
