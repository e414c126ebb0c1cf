"""FAERec's two alignments of item tables, and which of them counts how much in which epoch."""

from math import cos, pi

import torch
from torch import Tensor

from graphcl.contrast import PositiveIndex, contrastive_loss, correlation_loss


def curriculum(epoch: int, period: int, floor: float) -> float:
    """Return the weight of the item level; that of the feature level is the rest to 1.

    It falls from 1 to ``floor`` in half a period, as a cosine, and returns.

    Args:
        epoch: From 0.
        period: Epochs.
        floor: The least weight, 0 to 1.

    Source:
        FAERec (arXiv 2604.03688), as its code has it.

    Example:
        >>> curriculum(15, period=30, floor=0.9)
        0.9
    """
    return (1 - floor) * (1 + cos(2 * pi * epoch / period)) / 2 + floor


def item_alignment(own: Tensor, text: Tensor, item: Tensor, temperature: float) -> Tensor:
    """Return the InfoNCE of items' own vectors against the vectors of their texts.

    An item that is there several times is no negative of itself.

    Shapes:
        - **own**, **text**: ``[n, D]``; **item**: int64 ``[n]``.  Returns a scalar

    Source:
        FAERec (arXiv 2604.03688), as its code has it.
    """
    place = torch.arange(len(item), device=item.device)

    def candidates(rows: slice) -> Tensor:
        return (item[rows, None] != item) | (place[rows, None] == place)

    return contrastive_loss(
        own, text, target=PositiveIndex(place), candidates=candidates, temperature=temperature
    )


def feature_alignment(own: Tensor, text: Tensor, count: Tensor, redundancy: float) -> Tensor:
    """Return the correlation losses of popular and of other items, each among themselves.

    Popular is what is taken as often as the median of what is here or more often.

    Shapes:
        - **own**, **text**: ``[n, D]``; **count**: ``[n]``, how often each item is taken in
          training.  Returns a scalar

    Source:
        FAERec (arXiv 2604.03688), as its code has it.
    """
    popular = count >= count.median()
    return sum(
        (correlation_loss(own[g], text[g], redundancy=redundancy) for g in (popular, ~popular)),
        own.new_zeros(()),
    )
