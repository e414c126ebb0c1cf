"""Classification by the nearest prototype."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from graphcl.prototypes.dual_branch import split_branches


class NearestPrototype(nn.Module):
    """Says which known class has the prototype that an embedding is nearest to.

    By Euclidean distance; with a ``temperature``, by ``fidelity`` times the mean squared difference
    less the cosine over the temperature, as FedDBP's two losses measure it.

    Args:
        values: The prototype of every class, ``[C, channels]``.
        known: Which classes have one, bool ``[C]``.
        fidelity: Weight of the mean squared difference.
        temperature: What the cosine is divided by; 0 = distance alone.
        fuse: How a :class:`~graphcl.prototypes.DualBranchProjector` joined its branches:
            with ``concat`` the difference is of the first half and the cosine of the second.

    Shapes:
        - **embedding**: ``[num_samples, channels]``
        - **output**: int64 ``[num_samples]``, -1 where no class is known
    """

    values: Tensor
    known: Tensor

    def __init__(
        self,
        values: Tensor,
        known: Tensor,
        *,
        fidelity: float = 1.0,
        temperature: float = 0.0,
        fuse: str = "none",
    ):
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("known", known)
        self.fidelity, self.temperature, self.fuse = fidelity, temperature, fuse

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the class of every embedding."""
        return nearest(self._distance(embedding), self.known)

    def _distance(self, embedding: Tensor) -> Tensor:
        if not self.temperature:
            return torch.cdist(embedding, self.values)
        z_align, z_discriminate = split_branches(embedding, self.fuse)
        p_align, p_discriminate = split_branches(self.values, self.fuse)
        square = torch.cdist(z_align, p_align).square() / z_align.size(-1)
        cosine = F.normalize(z_discriminate, dim=-1) @ F.normalize(p_discriminate, dim=-1).T
        return self.fidelity * square - cosine / self.temperature


def nearest(distance: Tensor, known: Tensor) -> Tensor:
    """Return the known class of least distance for every row; -1 where no class is known."""
    closest = distance.masked_fill(~known, torch.inf).argmin(1)
    return closest if bool(known.any()) else torch.full_like(closest, -1)
