"""Attacks on one released prototype, by somebody who knows the encoder that made it.

That is the worst case, as a server that sees prototypes alone has no encoder.
"""

import torch
from torch import Tensor

from graphcl.metrics import roc_auc


def membership_auc(prototype: Tensor, members: Tensor, others: Tensor) -> float:
    """Return how well closeness to a prototype tells members of its class from others of it.

    Shapes:
        - **prototype**: ``[channels]``, **members**, **others**: ``[num, channels]``

    Returns:
        The area under the ROC curve: 0.5 is chance, 1 tells every member.

    Raises:
        GraphCLError: If there are no members or no others.

    Source:
        A threshold on a distance, after Yeom et al., CSF 2018, where it is one on the loss.
    """
    score = -(torch.cat((members, others)) - prototype).norm(dim=1)
    y = torch.zeros(len(score), dtype=torch.long)
    y[: len(members)] = 1
    return roc_auc(score, y)


def length_auc(members: Tensor, others: Tensor) -> float:
    """Return how well an embedding's length tells members from others, without any prototype.

    A network is surer of the samples that it was trained on, and their embeddings are longer.
    What this tells is the encoder's, and no defence of prototypes takes it back.

    Shapes:
        - **members**, **others**: ``[num, channels]``
    """
    return 1 - membership_auc(torch.zeros_like(members[0]), members, others)


def nearest_distance(prototype: Tensor, members: Tensor, class_samples: Tensor) -> float:
    """Return how near a prototype is to a member, over how near samples of the class are.

    Args:
        prototype: ``[channels]``.
        members: ``[num_members, channels]``, at least one.
        class_samples: ``[num, channels]``, at least two, members and others; their mean distance
            is the unit.

    Returns:
        0 where the prototype is a member's embedding, about 1 where it is as any sample.
    """
    typical = torch.pdist(class_samples).mean()
    distance = (members - prototype).norm(dim=1).min()
    return float(distance / typical.clamp(min=torch.finfo(typical.dtype).tiny))


def owner_is_nearest(prototype: Tensor, own: Tensor, foreign: Tensor) -> bool:
    """Say whether the sample nearest to a prototype is one of its owner's.

    Shapes:
        - **prototype**: ``[channels]``, **own**, **foreign**: ``[num, channels]``, training samples
          of the owner and of all other clients, embedded by the owner's encoder
    """
    return bool((own - prototype).norm(dim=1).min() < (foreign - prototype).norm(dim=1).min())
