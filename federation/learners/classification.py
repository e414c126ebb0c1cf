"""What the learners of node classes share: a head on an embedding, samples with masks, accuracy."""

from abc import abstractmethod

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch_geometric.data import Data

from federation.learners.base import Forward, LabelledLearner, Predict
from graphcl.metrics import accuracy, roc_auc


class ClassificationLearner(LabelledLearner):
    """A learner whose nodes have classes and are split by masks.

    Args:
        model: All that may cross the wire or stay on the node.
        head: Reads the embedding; part of the model, or fitted anew whenever it is needed.
        data: One client's graph with its labels and masks.
        device: Where the labels and masks are put.
    """

    def __init__(self, model: nn.Module, head: nn.Linear, data: Data, device: torch.device):
        self.head = head
        self.y: Tensor = data.y.to(device)
        self.masks = {
            split: getattr(data, f"{split}_mask").to(device) for split in ("train", "val", "test")
        }
        super().__init__(model)

    def features(self) -> Forward:
        return self.forward().of(self.masks["train"])

    @abstractmethod
    def forward(self) -> Forward:
        """Return one pass over all samples in evaluation mode, without gradient."""

    def evaluate(self, predict: Predict) -> dict[str, float]:
        """Return the accuracy of every inference that ``predict`` names.

        The first inference named is the one that counts. With two classes, the area under the ROC
        curve is that of the head.
        """
        out = self.forward()
        predictions = predict(out)
        val, test = self.masks["val"], self.masks["test"]
        loss = F.cross_entropy(out.logits[test], self.y[test], reduction="sum")
        first = next(iter(predictions.values()))
        tested = out.of(test)
        binary = out.logits.size(1) == 2 and len(tested.y.unique()) == 2
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
            **({"roc-auc": roc_auc(tested.logits.diff().flatten(), tested.y)} if binary else {}),
        }
