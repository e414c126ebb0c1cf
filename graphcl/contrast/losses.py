"""The field's contrastive losses, each a setting of :func:`contrastive_loss`.

Embeddings go in as the encoder gives them; the cosine inside normalises them.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from graphcl.contrast.kernel import Reduction, contrastive_loss
from graphcl.contrast.pairs import ExcludeIndex, PositiveIndex, SameLabel
from graphcl.contrast.two_views import halves, two_view_loss
from graphcl.errors import GraphCLError


def info_nce(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    intra_view_negatives: bool = True,
    symmetric: bool = True,
    sample_weight: Tensor | None = None,
    block_size: int | None = 512,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the InfoNCE loss between two views of the same nodes, in the form of GRACE.

    Shapes:
        z1, z2: ``[N, D]``, row i of both being the same node; sample_weight: ``[N]``. Returns a
        scalar, or ``[N]`` with ``reduction="none"``.

    Args:
        z1: Embeddings of the first view.
        z2: Embeddings of the second view.
        temperature: Divides the cosine.
        intra_view_negatives: Whether the other nodes of a node's own view are negatives too. The
            node itself, whose similarity is constant, never is.
        symmetric: Whether to average over both directions instead of asking only z1 for z2.
        sample_weight: Weights of the nodes in the mean.
        block_size: See :func:`contrastive_loss`. With negatives within views, both directions and a
            constant temperature from 0.025 on, about half of the pairs are computed.
        reduction: See :func:`contrastive_loss`.

    Raises:
        GraphCLError: The views differ in shape, or see :func:`contrastive_loss`.

    Source:
        Zhu et al., Deep Graph Contrastive Representation Learning, 2020, eq. 1 and 2.

    Example:
        >>> info_nce(torch.eye(3), torch.eye(3), temperature=1.0)
        tensor(0.9048)
    """
    if z1.shape != z2.shape:
        raise GraphCLError(
            f"info_nce: z1 has shape {tuple(z1.shape)} and z2 {tuple(z2.shape)}; "
            "pass the same nodes in both views"
        )

    both = symmetric and intra_view_negatives and z1.numel()
    if both and block_size is not None and halves(temperature):
        return two_view_loss(z1, z2, temperature, sample_weight, block_size, reduction)

    def direction(anchors: Tensor, positives: Tensor) -> Tensor:
        own = torch.arange(len(anchors), device=anchors.device)
        keys, candidates = positives, None
        if intra_view_negatives:
            keys = torch.cat([positives, anchors])
            candidates = ExcludeIndex(own + len(positives))
        return contrastive_loss(
            anchors,
            keys,
            target=PositiveIndex(own),
            candidates=candidates,
            temperature=temperature,
            sample_weight=sample_weight,
            block_size=block_size,
            reduction=reduction,
        )

    if not symmetric:
        return direction(z1, z2)
    return (direction(z1, z2) + direction(z2, z1)) / 2


def supervised_contrastive(
    z: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sample_weight: Tensor | None = None,
    block_size: int | None = 512,
) -> Tensor:
    """Return the supervised contrastive loss, with the sum over positives outside the logarithm.

    Samples that are the only one of their class have no positive and do not count.

    Shapes:
        z: ``[N, D]``; y: ``[N]`` integers; sample_weight: ``[N]``. Returns a scalar.

    Args:
        z: Embeddings, of one view or of several stacked ones.
        y: Their classes.
        temperature: Divides the cosine.
        sample_weight: Weights of the samples in the mean.
        block_size: See :func:`contrastive_loss`.

    Raises:
        GraphCLError: The labels are not one integer per sample, or see :func:`contrastive_loss`.

    Source:
        Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2, as a mean over the
        anchors with a positive.

    Example:
        >>> supervised_contrastive(torch.eye(3), torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.6931)
    """
    return contrastive_loss(
        z,
        z,
        target=SameLabel(y),
        candidates=ExcludeIndex(torch.arange(len(z), device=z.device)),
        temperature=temperature,
        sample_weight=sample_weight,
        block_size=block_size,
    )


def prototype_contrast(
    z: Tensor,
    y: Tensor,
    prototypes: Tensor,
    known: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    sample_weight: Tensor | None = None,
    candidates: Tensor | None = None,
    block_size: int | None = 512,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the cross entropy of samples against the known class prototypes.

    The mean is over the samples whose class is known; without one, it is a differentiable 0.

    Shapes:
        z: ``[N, D]``; y: ``[N]`` integers in ``[0, C)``; prototypes: ``[C, D]``; known: ``[C]``
        booleans; sample_weight: ``[N]``; candidates: ``[N, C]`` booleans. Returns a scalar, or
        ``[N]`` without reduction.

    Args:
        z: Embeddings.
        y: Their classes.
        prototypes: One vector per class, constant; rows of unknown classes are not read.
        known: Which prototypes exist; all by default.
        temperature: Divides the cosine.
        sample_weight: Weights of the samples in the mean.
        candidates: Which prototypes each sample is told from; all by default.
        block_size: See :func:`contrastive_loss`.
        reduction: See :func:`contrastive_loss`.

    Raises:
        GraphCLError: Labels, prototypes or mask do not fit, or see :func:`contrastive_loss`.

    Source:
        Snell et al., Prototypical Networks for Few-shot Learning, NeurIPS 2017, eq. 2, with the
        cosine over a temperature as in Li et al., Prototypical Contrastive Learning, ICLR 2021.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> prototype_contrast(z, y, torch.eye(2), temperature=1.0)
        tensor(0.3133)
        >>> prototype_contrast(z, y, torch.eye(2), torch.tensor([True, False]))
        tensor(0.)
    """
    classes = len(prototypes)
    if known is None:
        known = torch.ones(classes, dtype=torch.bool, device=prototypes.device)
    if known.shape != (classes,) or known.dtype != torch.bool:
        raise GraphCLError(
            f"prototype_contrast: known has shape {tuple(known.shape)} and type {known.dtype}; "
            f"pass one boolean for each of the {classes} prototypes"
        )
    _check_classes(y, len(z), classes)
    if candidates is not None and candidates.shape != (len(z), classes):
        raise GraphCLError(
            f"prototype_contrast: candidates has shape {tuple(candidates.shape)}; pass one boolean "
            f"for each of the {len(z)} samples and {classes} prototypes"
        )
    # Unknown classes leave the keys altogether, so what their rows hold cannot matter.
    position = torch.where(known, known.cumsum(0) - 1, -1)
    return contrastive_loss(
        z,
        prototypes.detach()[known],
        target=PositiveIndex(position[y.to(position.device)]),
        candidates=None if candidates is None else candidates[:, known],
        temperature=temperature,
        sample_weight=sample_weight,
        block_size=block_size,
        reduction=reduction,
    )


def bpr(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean of ``softplus(<a, n> - <a, p>)``: Bayesian personalised ranking.

    It is InfoNCE of one negative by inner product; written out, since every row has its own.

    Shapes:
        anchor, positive, negative: ``[N, D]``. Returns a scalar, a differentiable 0 without rows.

    Args:
        anchor: What is compared.
        positive: What it is to be nearer to.
        negative: What it is to be further from.

    Raises:
        GraphCLError: The three differ in shape.

    Source:
        Rendle et al., BPR: Bayesian Personalized Ranking from Implicit Feedback, UAI 2009.

    Example:
        >>> a = torch.tensor([[1.0, 0.0]])
        >>> bpr(a, torch.tensor([[0.8, 0.2]]), torch.tensor([[0.1, 0.9]]))
        tensor(0.4032)
    """
    _check_triples("bpr", anchor, positive, negative)
    return softplus((anchor * (negative - positive)).sum(1)).sum() / max(len(anchor), 1)


def elementwise_triplet(
    anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float = 1.0
) -> Tensor:
    """Return the mean over rows of ``sum_d max(0, (a_d - p_d)^2 - (a_d - n_d)^2 + margin)``.

    Unlike the usual triplet loss it has a hinge in every dimension, not one for the distance, so
    that no dimension rests while another is far ahead.

    Shapes:
        anchor, positive, negative: ``[N, D]``. Returns a scalar, a differentiable 0 without rows.

    Args:
        anchor: What is compared.
        positive: What it is to be nearer to.
        negative: What it is to be further from.
        margin: By how much, in each dimension.

    Raises:
        GraphCLError: The three differ in shape.

    Source:
        The code of Zheng et al., Disentangling Long and Short-Term Interests for Recommendation
        (CLSR), WWW 2022.

    Example:
        >>> a = torch.tensor([[1.0, 0.0]])
        >>> elementwise_triplet(a, torch.tensor([[0.8, 0.2]]), torch.tensor([[0.1, 0.9]]))
        tensor(0.4600)
    """
    _check_triples("elementwise_triplet", anchor, positive, negative)
    ahead = (anchor - positive).square() - (anchor - negative).square()
    return (ahead + margin).relu().sum() / max(len(anchor), 1)


def _check_triples(name: str, anchor: Tensor, positive: Tensor, negative: Tensor) -> None:
    if anchor.dim() != 2 or not anchor.shape == positive.shape == negative.shape:
        raise GraphCLError(
            f"{name}: anchor has shape {tuple(anchor.shape)}, positive {tuple(positive.shape)} and "
            f"negative {tuple(negative.shape)}; pass three matrices of one shape"
        )


def _check_classes(y: Tensor, samples: int, classes: int) -> None:
    if y.shape != (samples,) or y.is_floating_point() or y.dtype == torch.bool:
        raise GraphCLError(
            f"prototype_contrast: y has shape {tuple(y.shape)} and type {y.dtype}; "
            f"pass one integer class for each of the {samples} samples"
        )
    if samples and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise GraphCLError(
            f"prototype_contrast: y holds classes {int(y.min())} to {int(y.max())}, but there are "
            f"{classes} prototypes; use classes 0 to {classes - 1}"
        )


class InfoNCE(nn.Module):
    """The module of :func:`info_nce`, whose arguments it keeps.

    Example:
        >>> InfoNCE(temperature=1.0)(torch.eye(3), torch.eye(3))
        tensor(0.9048)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        *,
        intra_view_negatives: bool = True,
        symmetric: bool = True,
        block_size: int | None = 512,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.intra_view_negatives = intra_view_negatives
        self.symmetric = symmetric
        self.block_size = block_size

    def forward(self, z1: Tensor, z2: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss between two views ``[N, D]``."""
        return info_nce(
            z1,
            z2,
            temperature=self.temperature,
            intra_view_negatives=self.intra_view_negatives,
            symmetric=self.symmetric,
            sample_weight=sample_weight,
            block_size=self.block_size,
        )

    def extra_repr(self) -> str:
        """Return the settings for the module's representation."""
        return (
            f"temperature={self.temperature}, intra_view_negatives={self.intra_view_negatives}, "
            f"symmetric={self.symmetric}, block_size={self.block_size}"
        )


class SupervisedContrastive(nn.Module):
    """The module of :func:`supervised_contrastive`, whose arguments it keeps.

    Example:
        >>> SupervisedContrastive(temperature=1.0)(torch.eye(3), torch.tensor([0, 0, 1]))
        tensor(0.6931)
    """

    def __init__(self, temperature: float | Tensor = 0.1, *, block_size: int | None = 512) -> None:
        super().__init__()
        self.temperature = temperature
        self.block_size = block_size

    def forward(self, z: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of embeddings ``[N, D]`` with classes ``[N]``."""
        return supervised_contrastive(
            z,
            y,
            temperature=self.temperature,
            sample_weight=sample_weight,
            block_size=self.block_size,
        )

    def extra_repr(self) -> str:
        """Return the settings for the module's representation."""
        return f"temperature={self.temperature}, block_size={self.block_size}"


class PrototypeContrast(nn.Module):
    """The module of :func:`prototype_contrast`, whose arguments it keeps.

    Example:
        >>> PrototypeContrast(temperature=1.0)(torch.eye(2), torch.tensor([0, 1]), torch.eye(2))
        tensor(0.3133)
    """

    def __init__(self, temperature: float | Tensor = 0.1, *, block_size: int | None = 512) -> None:
        super().__init__()
        self.temperature = temperature
        self.block_size = block_size

    def forward(
        self,
        z: Tensor,
        y: Tensor,
        prototypes: Tensor,
        known: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``[N, D]`` with classes ``[N]`` against prototypes ``[C, D]``."""
        return prototype_contrast(
            z,
            y,
            prototypes,
            known,
            temperature=self.temperature,
            sample_weight=sample_weight,
            block_size=self.block_size,
        )

    def extra_repr(self) -> str:
        """Return the settings for the module's representation."""
        return f"temperature={self.temperature}, block_size={self.block_size}"
