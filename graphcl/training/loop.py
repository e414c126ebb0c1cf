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
        GraphCLError: If a term or a gradient is NaN or infinite; the parameters keep the values
            they had before that step.
    """
    if epochs < 1:
        raise GraphCLError(f"epochs is {epochs}, must be at least 1")
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
            _check_gradients(optimizer, epoch)
            optimizer.step()
            steps += 1
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.item()
        if steps == 0:
            raise GraphCLError(f"no batches in epoch {epoch}; give a list, not a spent iterator")
        means = {name: value / steps for name, value in sums.items()}
        means["loss"] = sum(means.values())
        if on_epoch is not None:
            on_epoch(epoch, means)
    return means


def _check_gradients(optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Raise before a step would write NaN or infinity into the parameters."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        raise GraphCLError(
            f"a gradient is not finite in epoch {epoch}; lower the learning rate or check the data"
        )
