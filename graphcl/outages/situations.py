"""Contrast between situations: what a location goes through in an event."""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from graphcl.contrast import PositiveIndex, contrastive_loss
from graphcl.errors import GraphCLError

Negatives = Literal["all_events", "other_types"]


def similar_pairs(traits: Tensor, outages: Tensor, num_similar: int, tolerance: float) -> Tensor:
    """Return the pairs of locations that an event treats alike: ``[P, 3]`` of event, i and j.

    ``j`` is among the locations whose traits have the highest cosine with those of ``i``, and the
    logarithms of their counts in the event differ by at most the tolerance.

    Shapes:
        traits: ``[M, F]``, centred, of each location; outages: ``[B, M]``.

    Args:
        traits: What a location is like, whatever the storm.
        outages: Counts of each event.
        num_similar: Locations ``j`` per ``i`` at most.
        tolerance: Of ``|log1p y_i - log1p y_j|``; infinity asks traits alone.

    Source:
        Shen et al., SA-HGNN, 2026, ask for similar locations within an event; the rule is
        completed.

    Example:
        >>> traits = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0]])
        >>> similar_pairs(traits, torch.tensor([[3, 3, 9]]), 1, 0.5)
        tensor([[0, 0, 1],
                [0, 1, 0]])
    """
    direction = F.normalize(traits, dim=-1)
    cosine = (direction @ direction.t()).fill_diagonal_(-torch.inf)
    width = min(num_similar, len(traits) - 1)
    alike = cosine.topk(width, dim=1).indices
    level = outages.to(traits).log1p()
    near = (level[:, :, None] - level[:, alike]).abs() <= tolerance
    event, i, place = near.nonzero(as_tuple=True)
    return torch.stack([event, i, alike[i, place]], 1)


def situation_contrast(
    u: Tensor,
    pairs: Tensor,
    event_type: Tensor,
    *,
    negatives: Negatives = "all_events",
    temperature: float = 0.2,
) -> Tensor:
    """Pull similar locations of an event together, push all locations of other events away.

    An anchor's loss is the mean over its positives of InfoNCE with that positive alone against the
    negatives; the result is the mean over anchors with a positive, or a differentiable 0.

    Shapes:
        u: ``[B, M, D]``, of the same M locations in each of B events; pairs: ``[P, 3]``, see
        :func:`similar_pairs`; event_type: ``[B]`` integers. Returns a scalar.

    Args:
        u: Projected embeddings.
        pairs: Who is whose positive.
        event_type: Kind of each storm.
        negatives: All other events (as in the paper), or only those of another type.
        temperature: Divides the cosine.

    Raises:
        GraphCLError: ``negatives`` is neither.

    Source:
        Shen et al., SA-HGNN, 2026, state the aim; the form (InfoNCE, several positives) is
        completed.

    Example:
        >>> u = torch.eye(4).reshape(2, 2, 4)
        >>> situation_contrast(u, torch.tensor([[0, 0, 1]]), torch.tensor([0, 1]), temperature=1.0)
        tensor(1.0986)
    """
    if negatives not in ("all_events", "other_types"):
        raise GraphCLError(f"negatives is {negatives!r}: use 'all_events' or 'other_types'")
    _, num_locations, _ = u.shape
    keys = u.flatten(0, 1)
    event, i, j = pairs.t()
    group = torch.arange(len(u), device=u.device) if negatives == "all_events" else event_type
    of_key = group.repeat_interleave(num_locations)
    positive = event * num_locations + j
    anchor = event * num_locations + i
    count = torch.bincount(anchor, minlength=len(keys))[anchor]

    def candidates(rows: slice) -> Tensor:
        others = of_key != group[event[rows], None]
        return others.scatter_(1, positive[rows, None], True)

    return contrastive_loss(
        keys[anchor],
        keys,
        target=PositiveIndex(positive),
        candidates=candidates,
        temperature=temperature,
        sample_weight=1 / count,
    )
