"""Metrics for class predictions."""

import torch
from torch import Tensor

from graphcl.errors import GraphCLError


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """Return the share of correct predictions in ``[0, 1]``; 0 where there is nothing to predict.

    Shapes:
        - **predicted**, **y**: ``[num_samples]``, class ids
    """
    return float((predicted == y).double().mean()) if y.numel() else 0.0


def roc_auc(score: Tensor, y: Tensor) -> float:
    """Return the chance that a sample of class 1 scores above one of class 0, ties counted half.

    It is the area under the ROC curve; 0.5 is chance, whatever the shares of the classes.

    Shapes:
        - **score**, **y**: ``[num_samples]``, class ids 0 and 1

    Raises:
        GraphCLError: If either class has no sample.
    """
    positive = y == 1
    ones = int(positive.sum())
    pairs = ones * (len(y) - ones)
    if not pairs:
        raise GraphCLError(f"roc_auc: {ones} of {len(y)} samples are of class 1; both need some")
    _, place, counts = torch.unique(score.double(), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1).double() / 2)[place]
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / pairs)
