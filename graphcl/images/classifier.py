"""A classifier of images in three parts: encoder, optional projector, linear head."""

from typing import NamedTuple

from torch import Tensor, nn

from graphcl.images.encoders import ImageEncoder


class ImageOutput(NamedTuple):
    """What a classifier says about each image."""

    embedding: Tensor  # [B, embedding_channels], what prototypes are made of
    logits: Tensor  # [B, num_classes]


class ImageClassifier(nn.Module):
    """Encoder, projector and linear head; the head reads the projected embedding.

    Args:
        encoder: Embeds the images.
        embedding_channels: Width of the (projected) embedding.
        num_classes: Number of classes.
        projector: Maps an embedding to one of the same width; the identity by default.

    Shapes:
        - **x**: ``[B, in_channels, H, W]``, from -1 to 1
        - **output**: ``embedding [B, embedding_channels]``, ``logits [B, num_classes]``
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        embedding_channels: int,
        num_classes: int,
        projector: nn.Module | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(embedding_channels, num_classes)
        self.projector = nn.Identity() if projector is None else projector

    def forward(self, x: Tensor) -> ImageOutput:
        """Embed and classify every image."""
        embedding = self.projector(self.encoder(x))
        return ImageOutput(embedding, self.head(embedding))
