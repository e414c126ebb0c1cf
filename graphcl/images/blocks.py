"""What the networks for images are built from.

All normalise with GroupNorm (Wu and He, 2018), where the networks they are named after use
BatchNorm. BatchNorm's running statistics are averaged with the weights though they belong to the
classes of one client, its batches of few classes tell one sample about the others (Hsieh et al.,
2020, "The Non-IID Data Quagmire"), and a network that says one thing of a sample in training and
another in evaluation would be compared with prototypes of the other. GroupNorm has no statistics
to share, works for a batch of one, and is the same function in both modes.
"""

from math import gcd

import torch
from torch import Tensor, nn

_GROUPS = 8  # of channels, where they can be divided so


def convolution(
    in_channels: int, out_channels: int, kernel: int = 3, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution that keeps the size at stride 1, its normalisation and a ReLU."""
    return nn.Sequential(*normalised(in_channels, out_channels, kernel, stride, groups), nn.ReLU())


def normalised(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution as :func:`convolution` does, without the ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.GroupNorm(gcd(_GROUPS, out_channels), out_channels),
    )


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al., 2016).

    Shapes:
        - **input**: ``[B, in_channels, H, W]``
        - **output**: ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            convolution(in_channels, out_channels, stride=stride),
            normalised(out_channels, out_channels),
        )
        alike = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if alike else normalised(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the image's next features."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Inception(nn.Module):
    """Convolutions of several sizes side by side, with a quarter of the channels each.

    Szegedy et al., 2015.

    Shapes:
        - **input**: ``[B, in_channels, H, W]``, **output**: ``[B, out_channels, H, W]``
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        quarter = out_channels // 4
        self.branches = nn.ModuleList(
            [
                convolution(in_channels, quarter, 1),
                nn.Sequential(
                    convolution(in_channels, quarter, 1), convolution(quarter, quarter, 3)
                ),
                nn.Sequential(
                    convolution(in_channels, quarter, 1), convolution(quarter, quarter, 5)
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(in_channels, quarter, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the image's next features."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Return a convolution within each channel and one across them (Howard et al., 2017)."""
    return nn.Sequential(
        convolution(in_channels, in_channels, stride=stride, groups=in_channels),
        convolution(in_channels, out_channels, 1),
    )
