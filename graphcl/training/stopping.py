"""Training that ends where a score on held-out data, or the loss, no longer gets better."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from math import inf
from typing import TypeVar

import torch
from torch import Tensor, nn

from graphcl.training.loop import fit

Batch = TypeVar("Batch")


def fit_best(
    model: nn.Module,
    loss: Callable[[Batch], Mapping[str, Tensor]],
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    error: Callable[[], float] | None = None,
    *,
    epochs: int,
    patience: int,
    before_epoch: Callable[[], object] | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> int:
    """Train, and leave the model in evaluation mode with the weights of its best epoch.

    Args:
        model: What is trained.
        loss: See :func:`graphcl.training.fit`, as for the next two.
        batches: Read once per epoch.
        optimizer: Steps once per batch.
        error: On held-out data, after every epoch; less is better, and of equals the first. By
            default the training loss.
        epochs: At most.
        patience: Epochs without a smaller error until training ends.
        before_epoch: Called before every epoch.
        on_epoch: Called with the epoch and the mean of every term, with the error under ``"val"``.

    Returns:
        The best epoch, from 1.

    Raises:
        GraphCLError: See :func:`graphcl.training.fit`.
    """
    least, best, kept = inf, 0, deepcopy(model.state_dict())
    for epoch in range(1, epochs + 1):
        if before_epoch is not None:
            before_epoch()
        model.train()
        terms = fit(loss, batches, optimizer, epochs=1)
        model.eval()
        found = terms["loss"] if error is None else error()
        if on_epoch is not None:
            on_epoch(epoch, terms if error is None else {**terms, "val": found})
        if found < least:
            least, best, kept = found, epoch, deepcopy(model.state_dict())
        if epoch - best >= patience:
            break
    model.load_state_dict(kept)
    model.eval()
    return best
