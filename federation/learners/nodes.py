"""The learner for node classification on one client's graph."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from federation.experiment import Experiment
from federation.learners.base import Forward, Penalty, Projector, drawn_for, optimizer_for
from federation.learners.classification import MaskedLearner
from federation.learners.graphs import graph_of, num_classes_of
from graphcl.nodes import NodeClassifier, NodeEncoder
from graphcl.training import fit, select_device


class NodeLearner(MaskedLearner):
    """Full-graph node classification.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put between encoder and head, if the algorithm has one.
    """

    heads: ClassVar[tuple[str, ...]] = ("head",)

    def __init__(
        self,
        experiment: Experiment,
        partition: int,
        projector: Projector | None = None,
    ):
        self.config = experiment
        device = select_device(experiment.simulation.gpus_per_client)
        data = graph_of(experiment, partition)
        self.num_classes = num_classes_of(experiment)
        self.embedding_channels = experiment.model.embedding_channels
        model = self.build(
            experiment, partition, {"in-channels": data.num_features}, self.num_classes, projector
        ).to(device)
        super().__init__(model, model.head, data, device)
        self.x: Tensor = data.x.to(device)
        self.operator = model.encoder.operator(data.edge_index.to(device), self.x.size(0))

    def facts(self) -> dict[str, int]:
        return {
            "num-examples": int(self.masks["train"].sum()),
            "in-channels": self.x.size(1),
            "num-classes": self.num_classes,
        }

    def reset_optimizer(self) -> None:
        self.optimizer = optimizer_for(self.model.parameters(), self.config.train)

    def fit(self, penalty: Penalty) -> dict[str, float]:
        def loss(split: str) -> dict[str, Tensor]:
            out = self._forward().of(self.masks[split])
            return {"cross_entropy": F.cross_entropy(out.logits, out.y), **penalty(out)}

        self.model.train()
        return fit(loss, ["train"], self.optimizer, epochs=self.config.train.epochs)

    @torch.no_grad()
    def forward(self) -> Forward:
        self.model.eval()
        return self._forward()

    def _forward(self) -> Forward:
        out = self.model(self.x, self.operator)
        return Forward(out.embedding, out.logits, self.y)

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> NodeClassifier:
        model = experiment.model
        names = model.encoder_names
        width = model.embedding_channels
        with drawn_for(experiment, client):
            encoder = NodeEncoder(
                names[client % len(names)] if isinstance(client, int) else names[0],
                channels["in-channels"],
                model.hidden_channels,
                width,
                num_layers=model.num_layers,
                dropout=model.dropout,
            )
            # Encoder and head come first, so that they are the same under every algorithm.
            classifier = NodeClassifier(encoder, width, num_classes)
            if projector is not None:
                classifier.projector = projector(width)
        return classifier
