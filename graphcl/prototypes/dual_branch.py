"""FedDBP's projector: one branch for fidelity to prototypes, one for telling classes apart."""

from typing import Any

import torch
from torch import Tensor, nn

from graphcl.errors import GraphCLError


class DualBranchProjector(nn.Module):
    """Two branches over an embedding: one for fidelity, one for discrimination.

    It starts as the identity: layers drawn at random between encoder and head cost more in the
    first rounds than the losses bring.

    Args:
        channels: Width of the embedding, in and out.
        fuse: ``concat`` gives each branch half the channels; ``sum`` gives both the full width
            and averages them.

    Shapes:
        - **input**, **output**: ``[num_samples, channels]``
    """

    def __init__(self, channels: int, fuse: str = "concat"):
        super().__init__()
        self.fuse = fuse
        width = channels // 2 if fuse == "concat" else channels
        self.align = nn.Linear(channels, width)
        nn.init.eye_(self.align.weight)
        nn.init.zeros_(self.align.bias)
        self.discriminate = ResidualPerceptron(channels, width)

    def forward(self, h: Tensor) -> Tensor:
        """Project an embedding."""
        aligned, discriminated = self.align(h), self.discriminate(h)
        if self.fuse == "concat":
            return torch.cat((aligned, discriminated), -1)
        return (aligned + discriminated) / 2


class ResidualPerceptron(nn.Module):
    """The last channels of an embedding, and what a perceptron adds to them, at first nothing.

    Args:
        channels: Width of the embedding.
        width: Channels that come out.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Return ``[num_samples, width]``."""
        added: Tensor = self.out(self.hidden(h).relu())
        return h[..., -self.width :] + added


def split_branches(z: Tensor, fuse: str) -> tuple[Tensor, Tensor]:
    """Return the channels of the fidelity and of the discrimination branch.

    With ``fuse = "sum"``, and with ``"none"``, which has no projector, both are all of them.
    """
    if fuse != "concat":
        return z, z
    half = z.size(-1) // 2
    return z[..., :half], z[..., half:]


def projector_header(projector: nn.Module) -> dict[str, Any] | None:
    """Return what :func:`projector_of` builds a stored model's projector from; None without one.

    Raises:
        GraphCLError: It is of a kind that could not be built again.
    """
    if isinstance(projector, nn.Identity):
        return None
    if not isinstance(projector, DualBranchProjector):
        raise GraphCLError(f"a {type(projector).__name__} behind an embedding cannot be stored")
    return {"channels": projector.align.in_features, "fuse": projector.fuse}


def projector_of(header: dict[str, Any] | None) -> nn.Module:
    """Inverse of :func:`projector_header`, but for the weights."""
    return nn.Identity() if header is None else DualBranchProjector(**header)
