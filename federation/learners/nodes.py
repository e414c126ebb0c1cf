"""The learner for node classification on one client's graph."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import (
    Forward,
    Penalty,
    Projector,
    drawn_for,
    optimizer_for,
    workbench,
)
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
        shared: Whether to work on a model that other clients of this process use, too.
    """

    heads: ClassVar[tuple[str, ...]] = ("head",)
    model: NodeClassifier

    def __init__(
        self,
        experiment: Experiment,
        partition: int,
        projector: Projector | None = None,
        *,
        shared: bool = False,
    ):
        self.config = experiment
        device = select_device(experiment.simulation.gpus_per_client)
        data = graph_of(experiment, partition)
        self.num_classes = num_classes_of(experiment)
        self.embedding_channels = experiment.model.embedding_channels

        def build() -> NodeClassifier:
            channels = {"in-channels": data.num_features}
            model = self.build(experiment, partition, channels, self.num_classes, projector)
            return model.to(device)

        shape = (experiment, partition % len(experiment.encoder_names), data.num_features)
        bench = workbench(shape if shared else None, build, self.new_optimizer)
        super().__init__(bench, bench.model.head, data, device, lambda: build().state_dict())
        self.x: Tensor = data.x.to(device)
        self.operator = self.model.encoder.operator(data.edge_index.to(device), self.x.size(0))

    def facts(self) -> dict[str, int]:
        return {
            "num-examples": int(self.masks["train"].sum()),
            "in-channels": self.x.size(1),
            "num-classes": self.num_classes,
        }

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return optimizer_for(model.parameters(), self.config.train)

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
