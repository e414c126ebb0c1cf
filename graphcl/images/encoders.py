"""A family of unlike small networks for images, in the manner of HtFLlib's heterogeneous groups.

The groups of HtFLlib (Zhang et al., 2025) hold a CNN of two layers, GoogLeNet, MobileNet and
ResNets from 4 layers on. These are small ones that train on a processor core: convolutions at the
images' own scale instead of a first one that shrinks them fourfold, few blocks, and GroupNorm (see
:mod:`graphcl.images.blocks`). As there, whatever features a network ends in are brought to one
width by adaptive average pooling, so that unlike networks can compare prototypes.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from graphcl.errors import GraphCLError
from graphcl.images.blocks import Inception, Residual, convolution, separable


def _cnn(in_channels: int, width: int) -> nn.Module:
    """Two convolutions, pooled, and a layer across the whole image; at width 16, that of FedAvg.

    Its last maps are pooled to 4x4, so that images of any size fit the layer.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, 2 * width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 4 * width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * width, 32 * width),
        nn.ReLU(),
    )


def _resnet(stages: int) -> Callable[[int, int], nn.Module]:
    """A ResNet of one block per stage, each of twice the channels and half the size."""

    def build(in_channels: int, width: int) -> nn.Module:
        blocks = [
            Residual(width * 2 ** max(stage - 1, 0), width * 2**stage, 2 if stage else 1)
            for stage in range(stages)
        ]
        return nn.Sequential(convolution(in_channels, width), *blocks, *_pooled())

    return build


def _mobilenet(in_channels: int, width: int) -> nn.Module:
    """A MobileNet of four separable convolutions."""
    return nn.Sequential(
        convolution(in_channels, width),
        separable(width, 2 * width, 1),
        separable(2 * width, 4 * width, 2),
        separable(4 * width, 4 * width, 1),
        separable(4 * width, 8 * width, 2),
        *_pooled(),
    )


def _googlenet(in_channels: int, width: int) -> nn.Module:
    """A GoogLeNet of two inception blocks."""
    return nn.Sequential(
        convolution(in_channels, width),
        convolution(width, 2 * width, stride=2),
        Inception(2 * width, 4 * width),
        nn.MaxPool2d(3, 2, 1),
        Inception(4 * width, 8 * width),
        *_pooled(),
    )


def _pooled() -> tuple[nn.Module, nn.Module]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten()


# By name: from the images' channels and the base width to ``[B, C, H, W] -> [B, features]``.
IMAGE_ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "cnn": _cnn,
    "resnet4": _resnet(1),
    "resnet6": _resnet(2),
    "resnet8": _resnet(3),
    "resnet10": _resnet(4),
    "mobilenet": _mobilenet,
    "googlenet": _googlenet,
}


class ImageEncoder(nn.Module):
    """Embeds images of any size of at least 4 pixels by one network of the family.

    Args:
        kind: One of :data:`IMAGE_ENCODERS`.
        in_channels: Channels of the images.
        hidden_channels: Base width, that of the first stage; the others have multiples of it. 16
            gives the CNN of the literature, 64 the widths of its ResNets.
        out_channels: Width of the embedding.
        image_size: Height and width of the images it is trained on, to which
            :meth:`ImageClassifier.predict` brings others; 0 = any.

    Shapes:
        - **input**: ``[B, in_channels, H, W]``, from -1 to 1; **output**: ``[B, out_channels]``

    Raises:
        GraphCLError: The kind is unknown.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        image_size: int = 0,
    ):
        super().__init__()
        if kind not in IMAGE_ENCODERS:
            raise GraphCLError(f"kind is '{kind}', must be one of {', '.join(IMAGE_ENCODERS)}")
        self.arguments: dict[str, Any] = {
            "kind": kind,
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "image_size": image_size,
        }
        self.network = IMAGE_ENCODERS[kind](in_channels, hidden_channels)
        self.pool = nn.AdaptiveAvgPool1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        embedding: Tensor = self.pool(self.network(x))
        return embedding
