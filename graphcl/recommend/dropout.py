"""Dropout whose random numbers cost little on a CPU, where PyTorch's take a quarter of a step."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 2**16  # of a random number of 16 bits, four of which come in one draw


class Dropout(nn.Module):
    """Zeroes elements with probability p, which on a CPU is rounded to a multiple of 2^-16.

    As with :class:`torch.nn.Dropout` the others are scaled so that the mean stays, and nothing
    happens in evaluation mode.  Other devices use PyTorch's own.

    Args:
        p: At least 0 and below 1.

    Example:
        >>> Dropout(0.5).eval()(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        return x * _noise(x, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _noise(x: Tensor, p: float) -> Tensor:
    """Return what an element is multiplied by: 0, or the inverse of the share that is kept."""
    dropped = min(round(p * _LEVELS), _LEVELS - 1)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    draws.random_(torch.iinfo(torch.int64).min, None)  # all 64 bits
    level = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = level >= dropped - _LEVELS // 2
    return kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
