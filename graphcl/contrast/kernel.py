"""The one contrastive kernel: every loss of the package is a setting of it.

    L = - sum_i w_i sum_j T_ij log( exp(s_ij / tau) / sum_k W_ik exp(s_ik / tau) )

With ``lse_i`` for the logarithm of the denominator and ``t_i = sum_j T_ij``, a row is
``l_i = t_i lse_i - sum_j T_ij s_ij / tau`` and its gradient with respect to the logits is
``t_i W_ij exp(s_ij / tau - lse_i) - T_ij``. Neither needs more than one block of rows at a time,
so the blocked path keeps only its inputs, ``lse`` and ``t`` and computes each block anew on the
way back: one more matrix product instead of ``N x M`` memory. Where one block is all, it is kept.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from graphcl.contrast.pairs import PairWeights, TileFunction, as_pair_weights
from graphcl.contrast.scores import SCORES, Score
from graphcl.errors import GraphCLError

ScoreName = Literal["cosine", "dot", "euclidean"]
Reduction = Literal["mean", "sum", "none"]


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    target: PairWeights | Tensor | TileFunction,
    candidates: PairWeights | Tensor | TileFunction | None = None,
    score: ScoreName = "cosine",
    temperature: float | Tensor = 0.5,
    sample_weight: Tensor | None = None,
    block_size: int | None = 512,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the weighted cross entropy between a target and the softmax of scores.

    A row counts if its target is not empty and it has a candidate. Other rows give 0, pass no
    gradient, and stay out of the mean ``sum_i w_i l_i / sum_i w_i``. If no row counts, the loss is
    a differentiable 0.

    Shapes:
        queries: ``[N, D]``; keys: ``[M, D]``; sample_weight: ``[N]``; target and candidates:
        ``[N, M]``. Returns a scalar, or ``[N]`` with ``reduction="none"``, in float32 or, for
        float64 input, in float64.

    Args:
        queries: The samples that are contrasted.
        keys: What they are contrasted with.
        target: ``T``, constant: :class:`PositiveIndex`, :class:`SameLabel`, a dense tensor, or a
            function from a slice of rows to that block of the matrix.
        candidates: ``W``, constant: all keys by default, :class:`ExcludeIndex`, a dense tensor, or
            a function as above. A positive counts in the denominator only if it is a candidate.
        score: ``"cosine"`` (0 for a zero vector), ``"dot"`` or ``"euclidean"``, the negative
            distance ``-sqrt(max(||a - b||^2, 1e-12))``.
        temperature: ``tau``; a tensor with one element may be learned.
        sample_weight: ``w``, zero or more; may require a gradient.
        block_size: Rows per block; memory is ``O((N + M) D + block_size M)`` forward and backward.
            None computes all pairs at once, which second derivatives need.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        GraphCLError: A shape, an index, a weight or a setting is out of its range; or, on the way
            back, a second derivative is asked of the blocked path.

    Source:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
        eq. 4, with the sums made arbitrary; blocks after Gao et al., Scaling Deep Contrastive
        Learning Batch Size under Memory Limited Setup, 2021.

    Example:
        >>> from graphcl.contrast import PositiveIndex
        >>> queries, keys = torch.eye(2, 3), torch.eye(3)
        >>> contrastive_loss(queries, keys, target=PositiveIndex(torch.tensor([0, 1])))
        tensor(0.2395)
    """
    n, m = check_sides(queries, keys)
    check_settings(score, block_size, reduction)
    wanted = as_pair_weights(target, n, m, "target")
    allowed = None if candidates is None else as_pair_weights(candidates, n, m, "candidates")
    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    tau = _temperature(temperature, queries.device, dtype)
    weight = row_weights(sample_weight, queries, dtype)

    # Autocast would compute the tiles in half precision, where exp(1 / 0.05) has no room.
    with torch.autocast(queries.device.type, enabled=False):
        if n == 0 or m == 0:
            loss = queries[:, :0].sum(1).to(dtype) + keys[:0].sum()
            counts = torch.zeros(n, dtype=torch.bool, device=queries.device)
        else:
            how = SCORES[score]
            q, k = how.prepare(queries.to(dtype), keys.to(dtype))
            if block_size is None:
                loss, counts, _, _ = _rows(how.logits(q, k, tau), wanted, allowed, slice(0, n))
            else:
                loss, counts = _Blocked.apply(q, k, tau, how, wanted, allowed, block_size)
        return reduce_rows(loss, counts, weight, reduction)


def _rows(
    logits: Tensor, target: PairWeights, candidates: PairWeights | None, rows: slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``l_i``, whether it counts, ``lse_i`` and ``t_i`` of a block of rows.

    ``lse_i`` is infinite for a row without a candidate, so that its softmax comes out as zeros.
    The logits are changed in place.
    """
    pulled, mass = target.pull(logits, rows)
    # Asked of the slots alone: a row whose scores are not finite counts, and spoils the loss.
    counts = mass > 0
    if candidates is None:
        lse = logits.logsumexp(1)
    else:
        candidates.mask_(logits, rows)
        barren = logits.detach().amax(1) == -torch.inf
        # The derivative of logsumexp is NaN on a row of minus infinities: leave it none.
        logits[:, 0].masked_fill_(barren, 0)
        lse = logits.logsumexp(1).masked_fill(barren, torch.inf)
        counts = counts & ~barren
    loss = mass * torch.where(counts, lse, 0) - torch.where(counts, pulled, 0)
    return loss, counts, lse.detach(), mass


def _blocks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


class _Blocked(torch.autograd.Function):
    """Losses of the rows and whether they count, in memory for one block of rows."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        tau: Tensor,
        score: Score,
        target: PairWeights,
        candidates: PairWeights | None,
        block_size: int,
    ) -> tuple[Tensor, Tensor]:
        parts, kept = [], None
        for rows in _blocks(len(queries), block_size):
            logits = score.logits(queries[rows], keys, tau)
            if len(logits) == len(queries):
                kept = logits.clone() if candidates is not None else logits
            parts.append(_rows(logits, target, candidates, rows))
        loss, counts, lse, mass = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(queries, keys, tau, counts, lse, mass, kept)
        ctx.slots = (score, target, candidates, block_size)
        ctx.mark_non_differentiable(counts)
        return loss, counts

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        # Gradient mode is on here exactly when the caller asked for a differentiable gradient.
        if torch.is_grad_enabled():
            raise GraphCLError(
                "contrastive_loss: the blocked path has no second derivative; "
                "pass block_size=None where the gradient itself is differentiated"
            )
        queries, keys, tau, counts, lse, mass, kept = ctx.saved_tensors
        score, target, candidates, block_size = ctx.slots
        grad_rows = torch.where(counts, grads[0], 0)
        grad_queries = torch.empty_like(queries)
        grad_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        grad_tau = torch.zeros_like(tau) if ctx.needs_input_grad[2] else None
        with torch.autocast(queries.device.type, enabled=False):
            for rows in _blocks(len(queries), block_size):
                logits = score.logits(queries[rows], keys, tau) if kept is None else kept
                # A row without a candidate has an infinite lse, hence only zeros after exp.
                grad = logits - lse[rows, None]
                if candidates is not None:
                    candidates.mask_(grad, rows)
                grad.exp_().mul_((grad_rows[rows] * mass[rows])[:, None])
                target.subtract_(grad, rows, grad_rows[rows])
                if grad_tau is not None:
                    grad_tau -= (grad * logits).sum() / tau
                grad_queries[rows] = score.backward(
                    queries[rows], keys, tau, logits, grad, grad_keys
                )
        return grad_queries, grad_keys, grad_tau, None, None, None, None


def reduce_rows(
    loss: Tensor, counts: Tensor, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    """Return the weighted mean or sum of the losses ``[N]`` that count, or each of them."""
    used = counts.to(loss) if weight is None else torch.where(counts, weight, 0)
    weighted = used * loss
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = used.sum()
    return weighted.sum() / torch.where(total > 0, total, 1)


def check_sides(queries: Tensor, keys: Tensor) -> tuple[int, int]:
    """Refuse what are not two matrices of floats, alike in width and device; return their rows."""
    for name, side in (("queries", queries), ("keys", keys)):
        if side.dim() != 2 or not side.is_floating_point():
            raise GraphCLError(
                f"contrastive_loss: {name} has shape {tuple(side.shape)} and type {side.dtype}; "
                "pass a matrix of floats, one vector per row"
            )
    if queries.shape[1] != keys.shape[1]:
        raise GraphCLError(
            f"contrastive_loss: queries have {queries.shape[1]} columns and keys {keys.shape[1]}; "
            "pass vectors of one length"
        )
    if queries.device != keys.device:
        raise GraphCLError(
            f"contrastive_loss: queries are on {queries.device} and keys on {keys.device}; "
            "move both to one device"
        )
    return len(queries), len(keys)


def check_settings(score: str, block_size: int | None, reduction: str) -> None:
    """Refuse settings that do not exist."""
    if score not in SCORES:
        raise GraphCLError(
            f"contrastive_loss: unknown score {score!r}; use one of {', '.join(SCORES)}"
        )
    if block_size is not None and block_size < 1:
        raise GraphCLError(
            f"contrastive_loss: block_size is {block_size}; use 1 or more, or None for no blocks"
        )
    if reduction not in ("mean", "sum", "none"):
        raise GraphCLError(
            f"contrastive_loss: unknown reduction {reduction!r}; use 'mean', 'sum' or 'none'"
        )


def _temperature(temperature: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # With the type given at once, a number such as 0.3 is not rounded to single precision first.
    tau = torch.as_tensor(temperature, device=device, dtype=dtype)
    if tau.numel() != 1:
        raise GraphCLError(
            f"contrastive_loss: temperature has shape {tuple(tau.shape)}; pass one number"
        )
    if not 0 < tau.item() < torch.inf:
        raise GraphCLError(
            f"contrastive_loss: temperature is {tau.item():g}; pass a finite number above 0"
        )
    return tau.reshape(())


def row_weights(weight: Tensor | None, queries: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the sample weights ``[N]`` in type and place of the losses; refuse negative ones."""
    if weight is None:
        return None
    if weight.shape != (len(queries),):
        raise GraphCLError(
            f"contrastive_loss: sample_weight has shape {tuple(weight.shape)} for {len(queries)} "
            "queries; pass one weight for each"
        )
    # A comparison with NaN is false, so this form of the test refuses NaN too.
    if len(weight) and not bool(weight.detach().min() >= 0):
        raise GraphCLError(
            "contrastive_loss: sample_weight holds a negative value or NaN; pass zero or more"
        )
    return weight.to(device=queries.device, dtype=dtype)
