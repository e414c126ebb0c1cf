"""Two views of the same nodes, each contrasted with all others of both: half of the pairs suffice.

With the views below one another in ``z``, rows of length one, the loss of row i with partner p is

    l_i = log (sum_{j != i} e_ij / e_ip),    e_ij = exp(s_ij / tau),    s = z z^T

``e`` is symmetric: its sums come from the pairs above the diagonal. So is the gradient of the
scores, ``(a_i + a_j) e_ij / tau`` with ``a_i`` for the gradient of ``l_i`` over the sum of row i;
at the partner the gradients of ``l_i`` and ``l_p``, over ``tau``, are taken off. The general kernel
computes every pair twice, and its gradient from either side.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from graphcl.contrast.kernel import Reduction, check_settings, check_sides, reduce_rows, row_weights
from graphcl.contrast.scores import directions
from graphcl.errors import GraphCLError

# Rows of a tile.
_TILE = 128


def halves(temperature: float | Tensor) -> TypeGuard[float]:
    """Return whether ``exp(1 / tau)``, its inverse and their sums have room in single precision."""
    return isinstance(temperature, float | int) and 0.025 <= temperature < 1e30


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
        temperature: ``tau``, one that :func:`halves` allows.
        sample_weight: Weights of the nodes in the mean.
        block_size: Of up to so many nodes, the pairs are kept for the way back; of more, those of
            up to so many rows are in memory at a time.
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
        loss = _TwoViews.apply(z, temperature, min(block_size, _TILE), n <= block_size)
        return reduce_rows(loss, torch.ones_like(loss, dtype=torch.bool), weight, reduction)


class _TwoViews(torch.autograd.Function):
    """Mean of both directions' losses of every node, tile by tile above the diagonal."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float, tile: int, keep: bool) -> Tensor:
        n = len(z) // 2
        sums, positive, kept = z.new_zeros(2 * n), z.new_empty(n), []
        for start in range(0, 2 * n, tile):
            end = start + tile
            scores = _exp_scores(z, start, end, tau)
            sums[start:end] += scores.sum(1)
            sums[end:] += scores[:, tile:].sum(0)
            if start < n:
                # From the same product as the sums, so that they cancel where views agree.
                positive[start:end] = scores.diagonal(n)
            if keep:
                kept.append(scores)
        ctx.save_for_backward(z, sums, positive, *kept)
        ctx.settings = tau, tile
        return (sums.view(2, n) / positive).log().mean(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        # Gradient mode is on here exactly when the caller asked for a differentiable gradient.
        if torch.is_grad_enabled():
            raise GraphCLError(
                "info_nce: the blocked path has no second derivative; "
                "pass block_size=None where the gradient itself is differentiated"
            )
        z, sums, positive, *kept = ctx.saved_tensors
        tau, tile = ctx.settings
        n, by_view = len(positive), sums.view(2, -1)
        each = grads[0] / (2 * tau)
        share, grad = (each / by_view).view(-1), torch.zeros_like(z)
        partner = (each * (positive / by_view - 1)).sum(0)
        with torch.autocast(z.device.type, enabled=False):
            for start in range(0, 2 * n, tile):
                end = min(start + tile, 2 * n)
                scores = kept[start // tile] if kept else _exp_scores(z, start, end, tau)
                pull = (share[start:end, None] + share[start:]).mul_(scores)
                if start < n:
                    pull.diagonal(n).copy_(partner[start:end])
                if start < end - n:  # a pair of partners within the rows of one tile
                    pull[:, : end - start].diagonal(-n).copy_(partner[start : end - n])
                grad[start:end].addmm_(pull, z[start:])
                grad[end:].addmm_(pull[:, tile:].T, z[start:end])
        return grad, None, None, None


def _exp_scores(z: Tensor, start: int, end: int, tau: float) -> Tensor:
    """Return ``exp(<z_i, z_j> / tau)`` of rows start to end and columns from start, 0 for i = j."""
    scores = ((z[start:end] / tau) @ z[start:].T).exp_()
    scores.diagonal().zero_()
    return scores
