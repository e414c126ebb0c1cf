"""The learner for node classification on one client's graph."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import Forward, Learner, Penalty, Predict
from federation.learners.graphs import client_graphs
from graphcl.metrics import accuracy
from graphcl.nodes import NodeClassifier, NodeEncoder
from graphcl.training import derive_seed, fit, select_device


class NodeLearner(Learner):
    """Full-graph node classification.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put between encoder and head, if the algorithm has one.
    """

    def __init__(
        self,
        experiment: Experiment,
        partition: int,
        projector: Callable[[int], nn.Module] | None = None,
    ):
        clients = client_graphs(experiment)
        self.config = experiment
        self.device = select_device(experiment.simulation.gpus_per_client)
        data = clients.graphs[partition]
        self.num_classes = clients.num_classes
        self.embedding_channels = experiment.model.embedding_channels
        model = build_classifier(
            experiment, partition, data.num_features, self.num_classes, projector
        ).to(self.device)
        super().__init__(model, model.head)
        self.x: Tensor = data.x.to(self.device)
        self.y: Tensor = data.y.to(self.device)
        self.masks = {
            split: getattr(data, f"{split}_mask").to(self.device)
            for split in ("train", "val", "test")
        }
        self.operator = model.encoder.operator(data.edge_index.to(self.device), self.x.size(0))

    def facts(self) -> dict[str, int]:
        return {
            "num-examples": int(self.masks["train"].sum()),
            "in-channels": self.x.size(1),
            "num-classes": self.num_classes,
        }

    def reset_optimizer(self) -> None:
        train = self.config.train
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[train.optimizer]
        self.optimizer = kind(
            self.model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )

    def _forward(self, split: str) -> Forward:
        out, mask = self.model(self.x, self.operator), self.masks[split]
        return Forward(out.embedding[mask], out.logits[mask], self.y[mask])

    def fit(self, penalty: Penalty) -> dict[str, float]:
        def loss(split: str) -> dict[str, Tensor]:
            out = self._forward(split)
            return {"cross_entropy": F.cross_entropy(out.logits, out.y), **penalty(out)}

        self.model.train()
        return fit(loss, ["train"], self.optimizer, epochs=self.config.train.epochs)

    @torch.no_grad()
    def features(self) -> Forward:
        self.model.eval()
        return self._forward("train")

    @torch.no_grad()
    def evaluate(self, predict: Predict) -> dict[str, float]:
        self.model.eval()
        out = self.model(self.x, self.operator)
        predictions = predict(Forward(out.embedding, out.logits, self.y))
        val, test = self.masks["val"], self.masks["test"]
        loss = F.cross_entropy(out.logits[test], self.y[test], reduction="sum")
        first = next(iter(predictions.values()))
        return {
            "num-examples": int(test.sum()),
            "val-examples": int(val.sum()),
            "test-loss": float(loss) / max(int(test.sum()), 1),
            "val-accuracy": accuracy(first[val], self.y[val]),
            "accuracy": accuracy(first[test], self.y[test]),
            **{
                f"accuracy-{name}": accuracy(predicted[test], self.y[test])
                for name, predicted in predictions.items()
            },
        }


def build_classifier(
    experiment: Experiment,
    client: int | str,
    in_channels: int,
    num_classes: int,
    projector: Callable[[int], nn.Module] | None = None,
) -> NodeClassifier:
    """Build the classifier of one client, or the server's first one (``client="server"``).

    The weights depend on the seed and the client alone; encoder and head come first, so that
    they are the same under every algorithm.
    """
    model = experiment.model
    names = model.encoder_names
    width = model.embedding_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.run.seed, "model", client))
        encoder = NodeEncoder(
            names[client % len(names)] if isinstance(client, int) else names[0],
            in_channels,
            model.hidden_channels,
            width,
            num_layers=model.num_layers,
            dropout=model.dropout,
        )
        classifier = NodeClassifier(encoder, width, num_classes)
        if projector is not None:
            classifier.projector = projector(width)
    return classifier
