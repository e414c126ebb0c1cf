"""Cross-entropy over a catalogue of items, without a logit for every pair of position and item.

    l_i = log sum_{j >= 1} exp(<h_i, e_j> / tau + b_j) - <h_i, e_t> / tau - b_t,   t = target_i

Item 0 is padding: it is no candidate, and a position whose target it is does not count and is left
out before anything is computed, which of short sequences is most of them.
"""

from collections.abc import Iterator
from functools import partial
from math import isqrt, log
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy

from graphcl.errors import GraphCLError

SoftmaxMethod = Literal["auto", "dense", "torch", "tiles"]

# 16 MiB in single precision; and a tile that stays in a core's cache, 256 rows of 1024 columns.
_BLOCK, _TILE = 2**22, 2**18
# With fewer rows at a time, torch reads the table too often: at 4 it takes three times as long.
_FEWEST_ROWS = 32


def catalogue_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    block: int | None = None,
    method: SoftmaxMethod = "auto",
) -> Tensor:
    """Return the mean cross-entropy of the targets among all items but padding.

    The methods differ in time and memory only.  ``"dense"`` holds all ``M x V`` logits; it alone
    has second derivatives.  ``"torch"`` is PyTorch's ``linear_cross_entropy``, which forms the
    gradient with the loss, a block of whole rows at a time.  ``"tiles"`` cuts the catalogue too and
    computes every tile anew on the way back: a matrix product more, but its tiles fit in the cache
    however large the catalogue is.  ``"auto"`` takes the fastest of what fits in ``block``, as
    measured on CPU with D = 64 (``tests/benchmarks/bench_softmax.py``): dense up to 2^18 logits in
    all, torch while 32 rows fit in a block, by default up to 131,072 items, tiles beyond.

    Shapes:
        hidden: ``[M, D]``; items: ``[V, D]``, row 0 is padding; target: int64 ``[M]``, 0 where a
        position has no target; bias: ``[V]``.  Returns a scalar, a differentiable 0 if no position
        has a target, in float32 or, for float64 input, in float64.

    Args:
        hidden: What a sequence model says at each position.
        items: The table of item embeddings.
        target: The item that came next.
        bias: Added to each item's logit.
        temperature: Divides the inner products.
        block: Logits held at a time, at least one row with ``"torch"``.  By default 2^22, and 2^18
            with ``"tiles"``; a GPU wants more, such as 2^26.
        method: ``"auto"``, ``"dense"``, ``"torch"`` or ``"tiles"``.

    Raises:
        GraphCLError: A shape, a target or a setting is out of its range; or, on the way back, a
            second derivative is asked of another method than ``"dense"``.

    Source:
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, ICLR 2025, for tiles
        that are computed anew.

    Example:
        >>> items = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> catalogue_cross_entropy(torch.eye(2), items, torch.tensor([1, 0]))
        tensor(0.3133)
    """
    name = "catalogue_cross_entropy"
    _check_tensors(name, hidden, items, target, bias)
    _check_temperature(name, temperature)
    if method not in ("auto", "dense", "torch", "tiles"):
        raise GraphCLError(
            f"{name}: unknown method {method!r}; use 'auto', 'dense', 'torch' or 'tiles'"
        )
    if block is not None and block < 1:
        raise GraphCLError(f"{name}: block is {block}; use 1 or more, or None for the default")
    # Autocast would compute the logits in half precision, where exp(1 / 0.05) has no room.
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, items, target, bias = _prepare(hidden, items, target, bias, temperature)
        if not len(target):
            return _nothing(hidden, items, bias)
        if method == "auto":
            method = _fastest(len(target), len(items), block or _BLOCK)
        if method == "dense":
            return cross_entropy(linear(hidden, *_candidates(items, bias)), target - 1)
        if method == "torch":
            loss = _by_torch(hidden, *_candidates(items, bias), target - 1, block or _BLOCK)
        else:
            loss = _Tiled.apply(hidden, items, bias, target, block or _TILE).mean()
        if loss.requires_grad:
            loss.register_hook(partial(_refuse_second_derivative, name))
        return loss


def sampled_cross_entropy(
    hidden: Tensor,
    items: Tensor,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the cross-entropy of the targets with its denominator estimated from a sample.

    All positions share the K negatives, so that the logits are one matrix product; negatives of
    each position's own take as long as the whole catalogue.  The sum over the items other than the
    target is replaced by the mean of ``exp(s_j) / q_j`` over the negatives, whose expectation it
    is: a negative's logit is lowered by ``log(K q_j)``, and where it is the target itself (an
    accidental hit) it is left out.  The target was not drawn, so its logit stays as it is.  With
    more negatives the loss goes to that of :func:`catalogue_cross_entropy`.

    Shapes:
        hidden: ``[M, D]``; items: ``[V, D]``, row 0 is padding; target: int64 ``[M]``, 0 where a
        position has no target; negatives: int64 ``[K]``, 1 to V - 1, with repetitions; log_q:
        ``[K]``; bias: ``[V]``.  Returns a scalar, a differentiable 0 if no position has a target,
        in float32 or, for float64 input, in float64.

    Args:
        hidden: What a sequence model says at each position.
        items: The table of item embeddings.
        target: The item that came next.
        negatives: Items drawn independently of one another, with replacement.
        log_q: Logarithm of the probability with which each of them is drawn, ``-log(V - 1)`` where
            all items are alike.
        bias: Added to each item's logit.
        temperature: Divides the inner products.

    Raises:
        GraphCLError: A shape, a target, a negative or a setting is out of its range.

    Source:
        Bengio and Senécal, Adaptive Importance Sampling to Accelerate Training of a Neural
        Probabilistic Language Model, IEEE Transactions on Neural Networks 19, 2008; Khrylchenko et
        al., Correcting the LogQ Correction, RecSys 2025, for the target that was not drawn (their
        weights of the positions are left out).

    Example:
        >>> items = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> negatives, log_q = torch.tensor([1, 2]), torch.tensor([0.5, 0.5]).log()
        >>> sampled_cross_entropy(torch.eye(2), items, torch.tensor([1, 0]), negatives, log_q)
        tensor(0.3133)
    """
    name = "sampled_cross_entropy"
    _check_tensors(name, hidden, items, target, bias)
    _check_temperature(name, temperature)
    _check_negatives(name, negatives, log_q, len(items))
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, items, target, bias = _prepare(hidden, items, target, bias, temperature)
        if not len(target):
            return _nothing(hidden, items, bias)
        drawn = torch.cat([target, negatives])
        # One selection, hence one gradient of the size of the table instead of two.
        rows, others = items.index_select(0, drawn).split([len(target), len(negatives)])
        positive, correction = (hidden * rows).sum(1), -log_q.to(hidden) - log(len(negatives))
        if bias is not None:
            own, shared = bias.index_select(0, drawn).split([len(target), len(negatives)])
            positive, correction = positive + own, correction + shared
        hits = _hits(target, negatives)
        loss: Tensor = _Sampled.apply(hidden, others, positive, correction, hits)
        if loss.requires_grad:
            loss.register_hook(partial(_refuse_second_derivative, "sampled_cross_entropy"))
        return loss


def _prepare(
    hidden: Tensor, items: Tensor, target: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the inputs in one precision, without padding, and the temperature in ``hidden``."""
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, items.dtype), torch.float32)
    counted = target.nonzero().squeeze(1)
    if len(counted) < len(target):
        hidden, target = hidden.index_select(0, counted), target[counted]
    # Scaling M x D numbers instead of M x V saves a pass over the logits.
    hidden = hidden.to(dtype) / temperature
    return hidden, items.to(dtype), target, None if bias is None else bias.to(dtype)


def _nothing(hidden: Tensor, items: Tensor, bias: Tensor | None) -> Tensor:
    """Return 0 with a gradient of zeros."""
    zero = hidden.sum() + items[:0].sum()
    return zero if bias is None else zero + bias[:0].sum()


def _candidates(items: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return items[1:], None if bias is None else bias[1:]


def _fastest(rows: int, columns: int, block: int) -> SoftmaxMethod:
    if rows * columns <= min(block, _TILE):
        return "dense"
    return "torch" if _FEWEST_ROWS * columns <= block else "tiles"


def _by_torch(
    hidden: Tensor, items: Tensor, bias: Tensor | None, target: Tensor, block: int
) -> Tensor:
    # Left to itself torch takes few rows of a large catalogue: at 100,000 items six times as long.
    rows = max(1, block // len(items))
    options = LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)
    return linear_cross_entropy(hidden, items, target, linear_bias=bias, options=options)


class _Tiled(torch.autograd.Function):
    """Cross-entropy of each row, in memory for one tile of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, items: Tensor, bias: Tensor | None, target: Tensor, block: int
    ) -> Tensor:
        size = _tile_size(block)
        lse = torch.empty_like(hidden[:, 0])
        for rows in _slices(0, len(hidden), size[0]):
            parts = [
                _tile(hidden, items, bias, rows, columns).logsumexp(1)
                for columns in _slices(1, len(items), size[1])
            ]
            lse[rows] = torch.stack(parts).logsumexp(0)
        ctx.save_for_backward(hidden, items, bias, target, lse)
        ctx.size = size
        own = (hidden * items[target]).sum(1)
        return lse - (own if bias is None else own + bias[target])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, items, bias, target, lse = ctx.saved_tensors
        grad = grads[0][:, None]
        _, learn_items, learn_bias, *_ = ctx.needs_input_grad
        grad_hidden = -grad * items[target]
        grad_items = grad_bias = None
        if learn_items:
            grad_items = torch.zeros_like(items).index_add_(0, target, -grad * hidden)
        if learn_bias:
            grad_bias = torch.zeros_like(bias).index_add_(0, target, -grads[0])
        with torch.autocast(hidden.device.type, enabled=False):
            # Columns outside: their part of the large gradient stays in the cache.
            for columns in _slices(1, len(items), ctx.size[1]):
                for rows in _slices(0, len(hidden), ctx.size[0]):
                    tile = _tile(hidden, items, bias, rows, columns)
                    tile.sub_(lse[rows, None]).exp_().mul_(grad[rows])
                    grad_hidden[rows].addmm_(tile, items[columns])
                    if grad_items is not None:
                        grad_items[columns].addmm_(tile.T, hidden[rows])
                    if grad_bias is not None:
                        grad_bias[columns] += tile.sum(0)
        return grad_hidden, grad_items, grad_bias, None, None


def _tile(
    hidden: Tensor, items: Tensor, bias: Tensor | None, rows: slice, columns: slice
) -> Tensor:
    return linear(hidden[rows], items[columns], None if bias is None else bias[columns])


def _tile_size(block: int) -> tuple[int, int]:
    """Return the rows and columns of a tile of at most ``block`` logits, 256 and 1024 for 2^18."""
    columns = min(block, 2 * isqrt(block))
    return block // columns, columns


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


class _Sampled(torch.autograd.Function):
    """Mean cross-entropy of positives against shared negatives, which forms its gradient with it.

    A block of rows of logits stays in the cache from the product that gives it to those that need
    it for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, others: Tensor, positive: Tensor, bias: Tensor, hits: Tensor
    ) -> Tensor:
        size, count = max(1, _TILE // len(others)), len(hidden)
        ends = torch.searchsorted(hits[0], torch.arange(0, count + size, size, device=hits.device))
        grads = [torch.zeros_like(x) for x in (hidden, others, positive, bias)]
        losses = torch.empty_like(positive)
        for n, rows in enumerate(_slices(0, count, size)):
            own, at = positive[rows], hits[:, ends[n] : ends[n + 1]]
            tile = torch.addmm(bias, hidden[rows], others.T)
            tile[at[0] - rows.start, at[1]] = -torch.inf
            highest = torch.maximum(tile.amax(1), own)
            tile.sub_(highest[:, None]).exp_()
            share, rest = (own - highest).exp(), tile.sum(1)
            losses[rows] = (share + rest).log() + highest - own
            weight = 1 / ((share + rest) * count)
            tile.mul_(weight[:, None])
            torch.mm(tile, others, out=grads[0][rows])
            grads[1].addmm_(tile.T, hidden[rows])
            grads[2][rows] = -rest * weight
            grads[3] += tile.sum(0)
        ctx.save_for_backward(*grads)
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (*(grads[0] * grad for grad in ctx.saved_tensors), None)


def _hits(target: Tensor, negatives: Tensor) -> Tensor:
    """Return the rows and columns where a negative is the target itself, int64 ``[2, n]``."""
    ordered, order = negatives.sort()
    first = torch.searchsorted(ordered, target)
    count = torch.searchsorted(ordered, target, right=True) - first
    row = torch.arange(len(target), device=target.device).repeat_interleave(count)
    nth = torch.arange(len(row), device=target.device) - (count.cumsum(0) - count)[row]
    return torch.stack([row, order[first[row] + nth]])


def _refuse_second_derivative(name: str, grad: Tensor) -> None:
    # Gradient mode is on here exactly when the caller asked for a differentiable gradient.
    if torch.is_grad_enabled():
        raise GraphCLError(
            f"{name}: blocks have no second derivative; where the gradient itself is "
            "differentiated, call catalogue_cross_entropy with method='dense'"
        )


def _check_tensors(
    name: str, hidden: Tensor, items: Tensor, target: Tensor, bias: Tensor | None
) -> None:
    for field, value in (("hidden", hidden), ("items", items)):
        if value.dim() != 2 or not value.is_floating_point():
            raise GraphCLError(
                f"{name}: {field} has shape {list(value.shape)} and type {value.dtype}; pass a "
                "matrix of floats, one vector per row"
            )
    if hidden.shape[1] != items.shape[1]:
        raise GraphCLError(
            f"{name}: hidden has {hidden.shape[1]} columns and items {items.shape[1]}; pass "
            "vectors of one length"
        )
    if len(items) < 2:
        raise GraphCLError(
            f"{name}: items has {len(items)} rows; pass the padding's and at least one item's"
        )
    if bias is not None and bias.shape != (len(items),):
        raise GraphCLError(
            f"{name}: bias has shape {list(bias.shape)} for {len(items)} items; pass one for each"
        )
    if target.shape != (len(hidden),) or target.dtype != torch.int64:
        raise GraphCLError(
            f"{name}: target has shape {list(target.shape)} and type {target.dtype} for "
            f"{len(hidden)} rows of hidden; pass one int64 for each"
        )
    _check_ids(f"{name}: target", target, 0, len(items))


def _check_ids(field: str, ids: Tensor, first: int, stop: int) -> None:
    bad = ((ids < first) | (ids >= stop)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise GraphCLError(
            f"{field}[{place}] is {int(ids[place])} ({len(bad)} such); there are {stop} items, use "
            f"{first} to {stop - 1}"
        )


def _check_temperature(name: str, temperature: float) -> None:
    if not 0 < temperature < torch.inf:
        raise GraphCLError(f"{name}: temperature is {temperature}; pass a finite number above 0")


def _check_negatives(name: str, negatives: Tensor, log_q: Tensor, num_items: int) -> None:
    if negatives.dim() != 1 or not len(negatives) or negatives.dtype != torch.int64:
        raise GraphCLError(
            f"{name}: negatives has shape {list(negatives.shape)} and type {negatives.dtype}; pass "
            "int64 of one axis, at least one"
        )
    _check_ids(f"{name}: negatives", negatives, 1, num_items)
    if log_q.shape != negatives.shape:
        raise GraphCLError(
            f"{name}: log_q has shape {list(log_q.shape)} for {len(negatives)} negatives; pass one "
            "for each"
        )
    bad = (~log_q.isfinite() | (log_q > 0)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise GraphCLError(
            f"{name}: log_q[{place}] is {log_q[place].item()} ({len(bad)} such); pass logarithms "
            "of probabilities, finite and at most 0"
        )
