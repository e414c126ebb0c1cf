"""What a server learns from the prototypes that it received: labelled pairs in seeded batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from federation.strategies.prototypes import Upload
from graphcl.training import fit


class Pairs(NamedTuple):
    """Prototypes with their classes."""

    values: Tensor  # [num_pairs, channels]
    classes: Tensor  # [num_pairs]


def labelled_pairs(uploads: Iterable[Upload]) -> Pairs:
    """Return all prototypes of at least one upload, sorted by class, then by value.

    So neither the order of replies nor the numbers of clients have a say in what is learned.
    """
    values, classes = (
        torch.cat(columns)
        for columns in zip(*((upload.values, upload.classes) for upload in uploads), strict=True)
    )
    order = torch.from_numpy(np.lexsort((*values.T.flip(0).numpy(), classes.numpy())))
    return Pairs(values[order], classes[order])


class _Batches:
    """Pairs in a fresh order every epoch."""

    def __init__(self, pairs: Pairs, size: int, rng: torch.Generator):
        self.pairs, self.size, self.rng = pairs, size, rng

    def __iter__(self) -> Iterator[Pairs]:
        for batch in torch.randperm(len(self.pairs.classes), generator=self.rng).split(self.size):
            yield Pairs(self.pairs.values[batch], self.pairs.classes[batch])


def fit_pairs(
    model: nn.Module,
    loss: Callable[[Pairs], Tensor],
    pairs: Pairs,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rng: torch.Generator,
) -> None:
    """Train a model of the server on pairs by plain stochastic gradient descent.

    Args:
        model: Changed in place.
        loss: Of a batch.
        pairs: At least one.
        epochs: Passes over the pairs.
        batch_size: Pairs per step.
        learning_rate: Step size.
        rng: Decides the batches.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    batches = _Batches(pairs, batch_size, rng)
    fit(lambda batch: {"pairs": loss(batch)}, batches, optimizer, epochs=epochs)
