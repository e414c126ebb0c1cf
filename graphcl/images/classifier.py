"""A classifier of images."""

from typing import ClassVar

import torch
from torch import Tensor

from graphcl.datasets import ImageSet
from graphcl.errors import GraphCLError
from graphcl.images.encoders import ImageEncoder
from graphcl.prototypes import Classifier, ClassifierOutput

_BLOCK = 256  # images that are read at once


class ImageClassifier(Classifier):
    """Classifies images, see :class:`~graphcl.prototypes.Classifier`.

    Shapes:
        - **x**: ``[B, in_channels, H, W]``, from -1 to 1
        - **output**: ``embedding [B, embedding_channels]``, ``logits [B, num_classes]``
    """

    encoder_class: ClassVar[type[ImageEncoder]] = ImageEncoder
    encoder: ImageEncoder

    def forward(self, x: Tensor) -> ClassifierOutput:
        """Embed and classify every image."""
        return self.classified(self.encoder(x))

    @torch.no_grad()
    def predict(self, images: ImageSet) -> Tensor:
        """Return the class of every image, int64 ``[N]``; the classes they come with are not read.

        By the nearest of :attr:`prototypes` where there are some, else by the head. Images are
        brought to the size of those of training, if the encoder was told of one.

        Raises:
            GraphCLError: The images are grey and those of training coloured, or the other way.
        """
        channels = self.encoder.arguments["in_channels"]
        if images.x.size(1) != channels:
            raise GraphCLError(
                f"{type(self).__name__} was trained on images of {channels} channels, these have "
                f"{images.x.size(1)}"
            )
        if size := self.encoder.arguments["image_size"]:
            images = images.resized(size)
        self.eval()
        blocks = torch.arange(len(images)).split(_BLOCK)
        return torch.cat([self.decide(self(images.pixels(rows))) for rows in blocks])
