"""The learner for label-free node embeddings on one client's graph.

What is trained is a method of :mod:`graphcl.nodes`; labels serve a linear probe alone. The probe is
no part of the model: wherever it is needed (predictions, FedDBP's Fisher information) it is fitted
anew to the frozen embedding of the client's training nodes, by L-BFGS from zero. So it never
crosses the wire, is never stored, always belongs to the encoder at hand, and is the same on every
carrier and after a resume. Its penalty is a key and validation nodes
decide nothing about it, where :func:`graphcl.nodes.linear_probe` lets them choose the epoch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import Forward, Penalty, Projector, drawn_for, optimizer_for
from federation.learners.classification import MaskedLearner
from federation.learners.graphs import graph_of, num_classes_of
from federation.learners.probe import fit_probe
from federation.tables import PROTOTYPE_STRATEGIES
from graphcl.nodes import ASPECT, GRACE, ASPECTConfig, GRACEConfig, NodeMethod
from graphcl.nodes.method import PreparedGraph, prepare
from graphcl.training import fit


class PretrainingModel(nn.Module):
    """A label-free method and, behind it, the projector of the algorithm.

    Args:
        encoder: With its layers built.
        projector: Maps an embedding to one of the same width; the identity by default.
    """

    def __init__(self, encoder: NodeMethod, projector: nn.Module | None = None):
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Identity() if projector is None else projector

    def forward(self, graph: PreparedGraph) -> Tensor:
        """Embed every node, ``[num_nodes, embedding_channels]``."""
        out: Tensor = self.projector(self.encoder.embedding(graph))
        return out


class PretrainingLearner(MaskedLearner):
    """Full-graph training without labels.

    Labels reach the encoder only through the penalty of a prototype algorithm, which compares the
    embeddings of labelled nodes with prototypes. Under the others the penalty is given no sample,
    and a client weighs as many samples as it has nodes.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put behind the encoder, if the algorithm has one.
    """

    model: PretrainingModel

    def __init__(self, experiment: Experiment, partition: int, projector: Projector | None = None):
        self.config = experiment
        data = graph_of(experiment, partition)
        self.graph = prepare(data)
        self.num_classes = num_classes_of(experiment)
        self.embedding_channels = experiment.model.embedding_channels
        self.supervised = experiment.strategy.name in PROTOTYPE_STRATEGIES
        channels = {"in-channels": data.num_features}
        model = self.build(experiment, partition, channels, self.num_classes, projector)
        head = nn.Linear(self.embedding_channels, self.num_classes)
        super().__init__(model, head, data, torch.device("cpu"))

    def facts(self) -> dict[str, int]:
        labelled = int(self.masks["train"].sum())
        return {
            "num-examples": labelled if self.supervised else len(self.y),
            "in-channels": self.graph.x.size(1),
            "num-classes": self.num_classes,
        }

    def new_optimizer(self, model: PretrainingModel) -> torch.optim.Optimizer:
        projector = list(model.projector.parameters())
        groups = [*model.encoder.parameter_groups(), {"params": projector}]
        return optimizer_for(groups, self.config.train)

    def fit(self, penalty: Penalty) -> dict[str, float]:
        encoder = self.model.encoder

        def loss(graph: PreparedGraph) -> dict[str, Tensor]:
            return {**encoder.loss(graph), **penalty(self._labelled(graph))}

        self.model.train()
        return fit(loss, [self.graph], self.optimizer, epochs=self.config.train.epochs)

    def _labelled(self, graph: PreparedGraph) -> Forward:
        """Return what the algorithm may see of the samples with labels."""
        if not self.supervised:
            return self.no_samples()
        train = self.masks["train"]
        return self.unscored(self.model(graph)[train], self.y[train])

    @torch.no_grad()
    def forward(self) -> Forward:
        self.model.eval()
        embedding = self.model(self.graph)
        train = self.masks["train"]
        fit_probe(self.head, embedding[train], self.y[train], self.config.pretrain.probe_decay)
        return Forward(embedding, self.head(embedding), self.y)

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> PretrainingModel:
        width = experiment.model.embedding_channels
        with drawn_for(experiment, client):
            encoder = _method(experiment)
            encoder.build(channels["in-channels"])
            return PretrainingModel(encoder, None if projector is None else projector(width))


def _method(experiment: Experiment) -> NodeMethod:
    table = experiment.pretrain
    shared: dict[str, Any] = {
        "hidden_channels": experiment.model.embedding_channels,
        "drop_features": table.drop_features,
        "drop_edges": table.drop_edges,
        "temperature": table.temperature,
        "num_anchors": table.num_anchors,
    }
    if table.method == "grace":
        return GRACE(GRACEConfig(**shared))
    return ASPECT(ASPECTConfig(**shared, **table.aspect.model_dump()))
