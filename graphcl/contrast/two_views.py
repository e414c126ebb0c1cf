"""Two views of the same nodes, each contrasted with all others of both: half of the pairs suffice.

With the views below one another in ``z``, rows of length one, the loss of row i with partner p is

    l_i = log sum_{j != i} e_ij - s_ip / tau,    e_ij = exp(s_ij / tau),    s = z z^T

``e`` is symmetric: its sums come from the pairs above the diagonal, and with ``a_i`` for the
gradient of the logarithm over its sum, that of ``z`` is ``((a_i + a_j) e_ij) z / tau``, symmetric
as well. The general kernel computes every pair twice, and its gradient from either side.
"""

from typing import Any

import torch
from torch import Tensor

from graphcl.contrast.kernel import Reduction, check_settings, check_sides, reduce_rows, row_weights
from graphcl.contrast.scores import directions
from graphcl.errors import GraphCLError

# Rows of a tile that stays in a core's cache.
_TILE = 128
# exp(1 / tau) and its inverse, summed over any number of nodes, have room in single precision.
LEAST_TEMPERATURE = 0.025


def two_view_loss(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    sample_weight: Tensor | None,
    block_size: int,
    reduction: Reduction,
) -> Tensor:
    """Return InfoNCE over the cosine, both directions, negatives within views as well.

    Shapes:
        z1, z2: ``[N, D]``, N above 0; sample_weight: ``[N]``. Returns a scalar, or ``[N]`` with
        ``reduction="none"``.

    Args:
        z1: Embeddings of the first view.
        z2: Embeddings of the second view.
        temperature: ``tau``, :data:`LEAST_TEMPERATURE` or more.
        sample_weight: Weights of the nodes in the mean.
        block_size: Memory is for so many rows of pairs; up to so many nodes, the pairs are kept for
            the way back.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        GraphCLError: A shape, a weight or a setting is out of its range; or, on the way back, a
            second derivative is asked.
    """
    n, _ = check_sides(z1, z2)
    check_settings("cosine", block_size, reduction)
    dtype = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    weight = row_weights(sample_weight, z1, dtype)
    # Autocast would compute the tiles in half precision, where exp(1 / 0.05) has no room.
    with torch.autocast(z1.device.type, enabled=False):
        z = directions(torch.cat([z1.to(dtype), z2.to(dtype)]))
        partition = _LogPartition.apply(z, temperature, min(block_size, _TILE), n <= block_size)
        positive = (z[:n] * z[n:]).sum(1) / temperature
        loss = partition.view(2, n).mean(0) - positive
        return reduce_rows(loss, torch.ones_like(loss, dtype=torch.bool), weight, reduction)


class _LogPartition(torch.autograd.Function):
    """``log sum_{j != i} exp(<z_i, z_j> / tau)`` of every row, tile by tile above the diagonal."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float, tile: int, keep: bool) -> Tensor:
        sums, kept = z.new_zeros(len(z)), []
        for start in range(0, len(z), tile):
            end = start + tile
            scores = _exp_scores(z, start, end, tau)
            sums[start:end] += scores.sum(1)
            sums[end:] += scores[:, tile:].sum(0)
            if keep:
                kept.append(scores)
        ctx.save_for_backward(z, sums, *kept)
        ctx.settings = tau, tile
        return sums.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # Gradient mode is on here exactly when the caller asked for a differentiable gradient.
        if torch.is_grad_enabled():
            raise GraphCLError(
                "info_nce: the blocked path has no second derivative; "
                "pass block_size=None where the gradient itself is differentiated"
            )
        z, sums, *kept = ctx.saved_tensors
        tau, tile = ctx.settings
        share, grad = grads[0] / (sums * tau), torch.zeros_like(z)
        with torch.autocast(z.device.type, enabled=False):
            for start in range(0, len(z), tile):
                end = start + tile
                scores = kept[start // tile] if kept else _exp_scores(z, start, end, tau)
                pull = (share[start:end, None] + share[start:]).mul_(scores)
                grad[start:end].addmm_(pull, z[start:])
                grad[end:].addmm_(pull[:, tile:].T, z[start:end])
        return grad, None, None, None


def _exp_scores(z: Tensor, start: int, end: int, tau: float) -> Tensor:
    """Return ``exp(<z_i, z_j> / tau)`` of rows start to end and columns from start, 0 for i = j."""
    scores = ((z[start:end] / tau) @ z[start:].T).exp_()
    scores.diagonal().zero_()
    return scores
