"""The learner for image classification on one client's images."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.albums import album_of
from federation.learners.base import (
    Forward,
    Penalty,
    Projector,
    drawn_for,
    optimizer_for,
    workbench,
)
from federation.learners.classification import ClassificationLearner
from graphcl.images import ImageClassifier, ImageEncoder
from graphcl.training import fit, select_device

_BLOCK = 256  # images that are evaluated at once


class Shuffled:
    """Rows in batches, in another order on every pass, from torch's global generator.

    Args:
        rows: int64 ``[n]``.
        batch_size: Rows of a batch; the last may have fewer.
    """

    def __init__(self, rows: Tensor, batch_size: int):
        self.rows = rows
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows[torch.randperm(len(self.rows))].split(self.batch_size))


class ImageLearner(ClassificationLearner):
    """Classification of images in mini-batches.

    Images stay bytes, in one place for all clients of a process, until a batch of them is read.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put between encoder and head, if the algorithm has one.
        shared: Whether to work on a model that other clients of this process use, too.
    """

    heads: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(
        self,
        experiment: Experiment,
        partition: int,
        projector: Projector | None = None,
        *,
        shared: bool = False,
    ):
        self.config = experiment
        self.device = select_device(experiment.simulation.gpus_per_client)
        album = album_of(experiment, partition)
        self.images, self.num_classes = album.images, album.images.num_classes
        self.embedding_channels = experiment.model.embedding_channels
        self.rows = {split: album.rows[mask] for split, mask in album.masks.items()}

        def build() -> ImageClassifier:
            channels = {"in-channels": self.images.x.size(1)}
            model = self.build(experiment, partition, channels, self.num_classes, projector)
            return model.to(self.device)

        shape = (experiment, partition % len(experiment.encoder_names))
        bench = workbench(shape if shared else None, build, self.new_optimizer)
        super().__init__(bench, bench.model.head, lambda: build().state_dict())

    def facts(self) -> dict[str, int]:
        return {
            "num-examples": len(self.rows["train"]),
            "in-channels": self.images.x.size(1),
            "num-classes": self.num_classes,
        }

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer_for(model.parameters(), self.config.train)

    def fit(self, penalty: Penalty) -> dict[str, float]:
        def loss(rows: Tensor) -> dict[str, Tensor]:
            out = self._forward(rows)
            return {"cross_entropy": F.cross_entropy(out.logits, out.y), **penalty(out)}

        self.model.train()
        batches = Shuffled(self.rows["train"], self.config.images.batch_size)
        return fit(loss, batches, self.optimizer, epochs=self.config.train.epochs)

    @torch.no_grad()
    def outputs(self, *splits: str) -> dict[str, Forward]:
        self.model.eval()
        return {split: self._whole(self.rows[split]) for split in splits}

    def _whole(self, rows: Tensor) -> Forward:
        """Return one pass over any number of images, even none, in blocks."""
        parts = [self._forward(block) for block in rows.split(_BLOCK)]
        return Forward(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _forward(self, rows: Tensor) -> Forward:
        out = self.model(self.images.pixels(rows).to(self.device))
        return Forward(out.embedding, out.logits, self.images.y[rows].to(self.device))

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> ImageClassifier:
        model = experiment.model
        names, width = model.encoder_names, model.embedding_channels
        with drawn_for(experiment, client):
            encoder = ImageEncoder(
                names[client % len(names)] if isinstance(client, int) else names[0],
                channels["in-channels"],
                model.hidden_channels,
                width,
                experiment.data.images.size,
            )
            # Encoder and head come first, so that they are the same under every algorithm.
            classifier = ImageClassifier(encoder, width, num_classes)
            if projector is not None:
                classifier.projector = projector(width)
        return classifier
