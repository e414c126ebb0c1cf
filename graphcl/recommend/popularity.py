"""What most users take: the least that a recommender has to beat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from graphcl.datasets import Interactions
from graphcl.recommend.recommender import Recommender
from graphcl.recommend.sequences import Sequences


@dataclass(frozen=True)
class PopularityConfig:
    """Nothing to set: what the kernel reads of every configuration is no choice here."""

    length: ClassVar[int] = 1
    seed: ClassVar[int] = 0


class Popularity(Recommender):
    """Ranks the items by how often they were taken in training, whoever asks.

    It has no weights and nothing to validate: an item's vector is its count, every state is 1.
    """

    config_type: ClassVar[type] = PopularityConfig

    def build(self, features: dict[str, Tensor]) -> None:
        """Build nothing: the kernel has counted already."""

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        count = self.count if items is None else self.count[items]
        return count.float()[:, None]

    def states(self, batch: Sequences, last: bool = False) -> Tensor:
        item = batch.item[:, -1:] if last else batch.item
        return torch.ones(*item.shape, 1, device=item.device)

    def fit(
        self,
        train: Interactions,
        val: Interactions | None = None,
        on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Self:
        """Count what users took; without epochs to choose between, nothing is held out.

        Raises:
            DataError: The interactions break a rule.
        """
        return self.start(train.validate())
