"""Gradients that are kept from growing large."""

from typing import Any

import torch


def clip_gradients(
    optimizer: torch.optim.Optimizer, max_norm: float = 5.0
) -> torch.optim.Optimizer:
    """Let an optimiser scale all gradients down to a norm before each of its steps; return it.

    Source:
        Pascanu, Mikolov and Bengio, ICML 2013.
    """

    def clip(*_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
