"""What the learners of classes share: a head on an embedding, samples with masks, accuracy."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.data import Data

from federation.experiment import Experiment
from federation.learners.base import Forward, Initial, LabelledLearner, Predict, Workbench
from graphcl.metrics import accuracy, roc_auc


class ClassificationLearner(LabelledLearner):
    """A learner whose samples have classes and are split into parts.

    Args:
        model: All that may cross the wire or stay on the node, or a workbench with it.
        head: Reads the embedding; part of the model, or fitted anew whenever it is needed.
        initial: See :class:`Learner`.

    Attributes:
        config: The whole experiment.
    """

    config: Experiment

    def __init__(
        self, model: nn.Module | Workbench[Any], head: nn.Linear, initial: Initial | None = None
    ):
        self.head = head
        super().__init__(model, initial)

    def features(self) -> Forward:
        return self.outputs("train")["train"]

    @abstractmethod
    def outputs(self, *splits: str) -> dict[str, Forward]:
        """Return the samples of every split named, in evaluation mode and without gradient."""

    def evaluate(self, predict: Predict) -> dict[str, float]:
        """Return the accuracy of every inference that ``predict`` names.

        The first inference named is the one that counts. With two classes, the area under the ROC
        curve is that of the head. Where an attack draws a class towards another, it is told how
        much of it goes there.
        """
        out = self.outputs("val", "test")
        val, test = out["val"], out["test"]
        predictions = predict(test)
        loss = F.cross_entropy(test.logits, test.y, reduction="sum")
        binary = test.logits.size(1) == 2 and len(test.y.unique()) == 2
        return {
            "num-examples": len(test.y),
            "val-examples": len(val.y),
            "test-loss": float(loss) / max(len(test.y), 1),
            "val-accuracy": accuracy(next(iter(predict(val).values())), val.y),
            "accuracy": accuracy(next(iter(predictions.values())), test.y),
            **{
                f"accuracy-{name}": accuracy(predicted, test.y)
                for name, predicted in predictions.items()
            },
            **({"roc-auc": roc_auc(test.logits.diff().flatten(), test.y)} if binary else {}),
            **self._drawn(next(iter(predictions.values())), test.y),
        }

    def _drawn(self, predicted: Tensor, y: Tensor) -> dict[str, float]:
        """Return how much of a class is taken for that which an attack draws it towards."""
        label, target = self.config.faults.backdoor or (-1, -1)
        taken = predicted[y == label] == target
        if not len(taken):
            return {}
        return {"backdoor": int(taken.sum()) / len(taken), "backdoor-examples": len(taken)}


class MaskedLearner(ClassificationLearner):
    """A classifier of nodes, which are all read at once and split by masks.

    Args:
        model: All that may cross the wire or stay on the node, or a workbench with it.
        head: Reads the embedding; part of the model, or fitted anew whenever it is needed.
        data: One client's graph with its labels and masks.
        device: Where the labels and masks are put.
        initial: See :class:`Learner`.
    """

    def __init__(
        self,
        model: nn.Module | Workbench[Any],
        head: nn.Linear,
        data: Data,
        device: torch.device,
        initial: Initial | None = None,
    ):
        self.y: Tensor = data.y.to(device)
        self.masks = {
            split: getattr(data, f"{split}_mask").to(device) for split in ("train", "val", "test")
        }
        super().__init__(model, head, initial)

    def outputs(self, *splits: str) -> dict[str, Forward]:
        out = self.forward()
        return {split: out.of(self.masks[split]) for split in splits}

    @abstractmethod
    def forward(self) -> Forward:
        """Return one pass over all nodes in evaluation mode, without gradient."""
