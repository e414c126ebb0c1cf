"""The Causal Codebook: prototypes of shared dynamics, which clients match and average."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Match(NamedTuple):
    """How queries match a codebook.

    Shapes:
        - **readout**: ``[..., D]``, prototypes weighted by their scores
        - **alignment**: scalar, the contrast of the best against the second best prototype
        - **best**: int64 ``[...]``, the best prototype of each query
    """

    readout: Tensor
    alignment: Tensor
    best: Tensor


class CausalCodebook(nn.Module):
    """Learnable prototypes, read by attention.

    A query is drawn to its best prototype and away from the second best, by InfoNCE on cosines.

    Args:
        num_prototypes: At least 2.
        channels: D.
        temperature: Of the contrast.

    Shapes:
        - **query**: ``[..., D]``

    Source:
        SC-FSGL, eq. 8 to 10, the sign of eq. 10 mended; initial values and read-out as in MegaCRN
        (Jiang et al., AAAI 2023).
    """

    def __init__(self, num_prototypes: int, channels: int, temperature: float):
        super().__init__()
        self.temperature = temperature
        self.prototypes = nn.Parameter(torch.empty(num_prototypes, channels))
        nn.init.xavier_normal_(self.prototypes)

    def forward(self, query: Tensor) -> Match:
        scores = query @ self.prototypes.T
        first, second = scores.topk(2).indices.unbind(-1)
        cosine = F.normalize(query, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        near, far = (cosine.gather(-1, i[..., None]) for i in (first, second))
        alignment = F.softplus((far - near) / self.temperature).mean()
        return Match(scores.softmax(-1) @ self.prototypes, alignment, first)
