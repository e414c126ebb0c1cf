"""The one training loop."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from graphcl.errors import GraphCLError

Batch = TypeVar("Batch")


def fit(
    loss: Callable[[Batch], Mapping[str, Tensor]],
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Minimise the sum of a loss's named terms.

    Args:
        loss: Returns the named scalar terms of one batch; their sum is minimised.
        batches: Read once per epoch; ``[data]`` for full-graph training.
        optimizer: Steps once per batch.
        epochs: Number of passes over ``batches``.
        on_epoch: Called with the epoch (from 1) and the mean of every term, for progress.

    Returns:
        The mean of every term over the last epoch, and their sum under ``"loss"``.

    Raises:
        GraphCLError: If a term is NaN or infinite; the parameters keep the values they had.
    """
    means: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        sums: dict[str, float] = {}
        steps = 0
        for batch in batches:
            optimizer.zero_grad(set_to_none=True)
            terms = loss(batch)
            total = torch.stack(tuple(terms.values())).sum()
            if not torch.isfinite(total):
                bad = ", ".join(f"{name}={term.item():g}" for name, term in terms.items())
                raise GraphCLError(
                    f"the loss is not finite in epoch {epoch} ({bad}); "
                    "lower the learning rate or check the data"
                )
            total.backward()
            optimizer.step()
            steps += 1
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item()
        means = {name: value / steps for name, value in sums.items()}
        means["loss"] = sum(means.values())
        if on_epoch is not None:
            on_epoch(epoch, means)
    return means
