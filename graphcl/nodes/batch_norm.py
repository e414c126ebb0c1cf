"""Batch normalisation of nodes that may come alone."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that lets a lone node, which has no variance, pass as at inference.

    Without normalisation all nodes of a bootstrapped network soon point one way, which the
    predictor predicts for any.
    """

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
