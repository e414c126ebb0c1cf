"""From features as a utility has them to inputs of a network."""

import torch
from torch import Tensor, nn


class Standardization(nn.Module):
    """Standardises features on a logarithmic scale and flags those that are missing.

    ``x`` becomes ``sign(x) log(1 + |x|)``, then has mean 0 and deviation 1 over what it was fitted
    to; a missing value (NaN) becomes that mean, and a second column per feature says so. The rule
    looks at no unit and no skewness, so two territories treat a feature alike.

    Args:
        num_features: F.

    Shapes:
        - **input**: ``[..., F]``, NaN where missing
        - **output**: ``[..., 2 F]``, the features and then their flags

    Example:
        >>> scale = Standardization(1)
        >>> scale.fit(torch.tensor([[0.0], [2.0], [float("nan")]]))
        >>> scale(torch.tensor([[0.0], [float("nan")]]))
        tensor([[-1.,  0.],
                [ 0.,  1.]])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))

    @property
    def fitted(self) -> bool:
        """Whether the scales are those of some samples rather than the ones it begins with."""
        return bool(self.mean.any()) or bool((self.deviation != 1).any())

    def fit(self, x: Tensor) -> None:
        """Take mean and deviation from samples ``[n, F]``; a constant feature keeps its scale."""
        values = _symlog(x).double()
        seen = ~values.isnan()
        count = seen.sum(0).clamp(min=1)
        mean = values.nan_to_num().sum(0) / count
        square = torch.where(seen, values - mean, 0).square().sum(0) / count
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(square > 1e-12, square.sqrt(), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        missing = x.isnan()
        scaled = (_symlog(x) - self.mean) / self.deviation
        return torch.cat([torch.where(missing, 0.0, scaled), missing.to(x)], -1)


def _symlog(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()
