"""The one contrastive kernel and the losses that are settings of it; torch only."""

from graphcl.contrast.correlation import correlation_loss
from graphcl.contrast.kernel import Reduction, ScoreName, contrastive_loss
from graphcl.contrast.losses import (
    InfoNCE,
    PrototypeContrast,
    SupervisedContrastive,
    bpr,
    elementwise_triplet,
    info_nce,
    prototype_contrast,
    supervised_contrastive,
)
from graphcl.contrast.pairs import ExcludeIndex, PairWeights, PositiveIndex, SameLabel, TileFunction

__all__ = [
    "ExcludeIndex",
    "InfoNCE",
    "PairWeights",
    "PositiveIndex",
    "PrototypeContrast",
    "Reduction",
    "SameLabel",
    "ScoreName",
    "SupervisedContrastive",
    "TileFunction",
    "bpr",
    "contrastive_loss",
    "correlation_loss",
    "elementwise_triplet",
    "info_nce",
    "prototype_contrast",
    "supervised_contrastive",
]
