"""Exact metrics of full rankings: every item competes with the target, none is sampled.

Item 0 is padding and never competes, and neither does what a user has seen.  Scores are computed
for a block of users at a time, so a catalogue of a million items needs no matrix of users by items.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from graphcl.errors import GraphCLError

_BLOCK = 2**22  # scores at a time, 16 MiB in single precision
_USERS = 1024  # at a time, for a model that reads what each of them did


@dataclass(frozen=True, eq=False)
class ItemScores:
    """The scores of V items, padding among them, for U users; a block of users at a time.

    Args:
        function: From a slice of users to their scores, float ``[users, V]``, larger being better;
            minus infinity keeps an item out of :func:`top_k`.
        num_users: U.
        num_items: V, item 0 being padding, whatever it scores.
    """

    function: Callable[[slice], Tensor]
    num_users: int
    num_items: int

    def blocks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield users and scores, at most ``size`` scores at a time but at least a user's.

        More than 1,024 users are never read together, however few items there are.

        Raises:
            GraphCLError: The function returns another shape than ``[users, V]`` or a NaN.
        """
        step = max(1, min(_USERS, size // self.num_items))
        for start in range(0, self.num_users, step):
            users = slice(start, min(start + step, self.num_users))
            scores = self.function(users)
            wanted = [users.stop - users.start, self.num_items]
            if list(scores.shape) != wanted or not scores.is_floating_point():
                raise GraphCLError(
                    f"scores: the block of users {users.start} to {users.stop - 1} has shape "
                    f"{list(scores.shape)} and type {scores.dtype}; return floats {wanted}, one "
                    "column per item with the padding's first"
                )
            bad = scores.amax(1).isnan().nonzero()
            if len(bad):
                user = int(bad[0])
                item = int(scores[user].isnan().nonzero()[0])
                raise GraphCLError(
                    f"scores: item {item} scores NaN for user {start + user}; a NaN has no rank, "
                    "look for the training step that produced it"
                )
            yield users, scores


@dataclass(frozen=True, eq=False)
class SeenItems:
    """The items that each of U users has seen: user u has ``indices[indptr[u]:indptr[u + 1]]``.

    Shapes:
        indptr: int64 ``[U + 1]``, from 0, never falling; indices: int64, items in any order, the
        same one any number of times.

    Raises:
        GraphCLError: A rule is broken; the message names the field and the place.
    """

    indptr: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        for field in ("indptr", "indices"):
            value = getattr(self, field)
            if value.dim() != 1 or value.dtype != torch.int64:
                raise GraphCLError(
                    f"seen: {field} is {value.dtype} of shape {list(value.shape)}, must be int64 "
                    "of one axis"
                )
        ends = [int(end) for end in (*self.indptr[:1], *self.indptr[-1:])]
        if ends != [0, len(self.indices)]:
            raise GraphCLError(
                f"seen: indptr begins and ends with {ends}, must begin with 0 and end with "
                f"{len(self.indices)}, the number of indices"
            )
        falls = (self.indptr.diff() < 0).nonzero()
        if len(falls):
            raise GraphCLError(
                f"seen: indptr falls after user {int(falls[0])}, must never decrease"
            )

    def pairs(self, users: slice) -> tuple[Tensor, Tensor]:
        """Return row within the slice and item of all that these users have seen."""
        ptr = self.indptr[users.start : users.stop + 1]
        row = torch.arange(len(ptr) - 1, device=ptr.device).repeat_interleave(ptr.diff())
        return row, self.indices[int(ptr[0]) : int(ptr[-1])]


def dot_scores(hidden: Tensor, items: Tensor, bias: Tensor | None = None) -> ItemScores:
    """Return the inner products of users and items as scores.

    Shapes:
        hidden: ``[U, D]``; items: ``[V, D]``, row 0 is padding; bias: ``[V]``, added to the items'.

    Raises:
        GraphCLError: The shapes do not fit.
    """
    if hidden.dim() != 2 or items.dim() != 2 or hidden.shape[1] != items.shape[1]:
        raise GraphCLError(
            f"dot_scores: hidden has shape {list(hidden.shape)} and items {list(items.shape)}; "
            "pass [U, D] and [V, D]"
        )
    if bias is not None and bias.shape != items.shape[:1]:
        raise GraphCLError(
            f"dot_scores: bias has shape {list(bias.shape)} for {len(items)} items; pass one for "
            "each"
        )
    return ItemScores(lambda users: linear(hidden[users], items, bias), len(hidden), len(items))


@torch.no_grad()
def rank_targets(
    scores: ItemScores, target: Tensor, seen: SeenItems | None = None, *, block: int = _BLOCK
) -> Tensor:
    """Return the rank of each user's target among all items but padding and what the user has seen.

    The best rank is 1.  Of items that score the same as the target half are taken to stand before
    it, the mean over all orders of the tied: a model to which all items are alike gets the middle
    rank, not the first, and no order of the items changes a figure.  The target itself competes
    even if it was seen.

    Shapes:
        target: int64 ``[U]``, 1 to V - 1.  Returns float64 ``[U]``, multiples of 1/2.

    Args:
        scores: See :class:`ItemScores` and :func:`dot_scores`.
        target: The one item per user that was held out.
        seen: What else to leave out; nothing by default.
        block: Scores held at a time, at least one user's.

    Raises:
        GraphCLError: A shape, an item or the block is out of its range, or a score is NaN.

    Source:
        Berrendorf et al., On the Ambiguity of Rank-Based Evaluation of Entity Alignment or Link
        Prediction Methods, 2020, for the mean of the best and the worst rank.

    Example:
        >>> scores = dot_scores(torch.eye(1), torch.tensor([[9.0], [3.0], [2.0], [2.0], [1.0]]))
        >>> rank_targets(scores, torch.tensor([2]))
        tensor([2.5000], dtype=torch.float64)
    """
    _check_target("rank_targets", target, scores)
    _check_seen("rank_targets", seen, scores)
    _check_positive("rank_targets", "block", block)
    ranks = torch.empty(len(target), dtype=torch.float64, device=target.device)
    for users, block_scores in scores.blocks(block):
        own = target[users, None]
        score = block_scores.gather(1, own)
        # A NaN compares false with everything: it neither stands before the target nor beside it.
        rivals = _masked(block_scores, seen, users, torch.nan).scatter_(1, own, torch.nan)
        ahead, beside = (rivals > score).sum(1), (rivals == score).sum(1)
        ranks[users] = 1 + ahead + beside.double() / 2
    return ranks


@torch.no_grad()
def top_k(
    scores: ItemScores, k: int, seen: SeenItems | None = None, *, block: int = _BLOCK
) -> tuple[Tensor, Tensor]:
    """Return each user's k best items and their scores, without padding and what the user has seen.

    The best come first, and of items that score the same the one with the smaller number.  Where a
    user has fewer than k items left, the rest is item 0 with a score of minus infinity.

    Shapes:
        Returns int64 ``[U, k]`` and ``[U, k]`` in the type of the scores.

    Args:
        scores: See :class:`ItemScores` and :func:`dot_scores`.
        k: How many; may exceed the number of items.
        seen: What to leave out; nothing by default.
        block: Scores held at a time, at least one user's.

    Raises:
        GraphCLError: k or the block is not positive, ``seen`` does not fit, or a score is NaN.

    Example:
        >>> top_k(dot_scores(torch.eye(1), torch.tensor([[9.0], [1.0], [2.0]])), k=3)
        (tensor([[2, 1, 0]]), tensor([[2., 1., -inf]]))
    """
    _check_positive("top_k", "k", k)
    _check_positive("top_k", "block", block)
    _check_seen("top_k", seen, scores)
    parts = [
        _best(_masked(block_scores, seen, users, -torch.inf), k)
        for users, block_scores in scores.blocks(block)
    ]
    if not parts:
        return torch.empty(0, k, dtype=torch.int64), torch.empty(0, k)
    items, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return items, values


def hit_ratio(ranks: Tensor, k: int) -> float:
    """Return the share of targets that rank k or better, in ``[0, 1]``.

    With one target per user it is also the recall at k.

    Shapes:
        - **ranks**: ``[U]``, from 1, see :func:`rank_targets`

    Raises:
        GraphCLError: There is no rank, one is below 1, or k is not positive.
    """
    return float(_hits("hit_ratio", ranks, k).double().mean())


def ndcg(ranks: Tensor, k: int) -> float:
    """Return the mean of ``1 / log2(rank + 1)``, 0 where the rank exceeds k, in ``[0, 1]``.

    With one target per user the ideal is 1, so that nothing is left to normalise.

    Shapes:
        - **ranks**: ``[U]``, from 1, see :func:`rank_targets`

    Raises:
        GraphCLError: There is no rank, one is below 1, or k is not positive.
    """
    hits = _hits("ndcg", ranks, k)
    return float((hits / (ranks.double() + 1).log2()).mean())


def mrr(ranks: Tensor, k: int | None = None) -> float:
    """Return the mean of ``1 / rank``, 0 where the rank exceeds k, in ``[0, 1]``.

    Shapes:
        - **ranks**: ``[U]``, from 1, see :func:`rank_targets`

    Args:
        ranks: The ranks of the targets.
        k: Where the list ends; by default it has all items.

    Raises:
        GraphCLError: There is no rank, one is below 1, or k is not positive.
    """
    hits = _hits("mrr", ranks, k)
    return float((hits / ranks.double()).mean())


def group_ranks(ranks: Tensor, target: Tensor, groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return, for each group of items by name, the ranks of the users whose target is in it.

    Groups may overlap: ``{"head": head, "tail": ~head}``.  One to which no target belongs is left
    out, since a mean over nobody is no figure.

    Shapes:
        - **ranks**: ``[U]``; **target**: int64 ``[U]``; **groups**: bool ``[V]`` each

    Raises:
        GraphCLError: The shapes do not fit, or a mask is not boolean.
    """
    if ranks.shape != target.shape:
        raise GraphCLError(
            f"group_ranks: ranks has shape {list(ranks.shape)} and target {list(target.shape)}; "
            "pass one of each per user"
        )
    chosen = {}
    for name, mask in groups.items():
        if mask.dtype != torch.bool or mask.dim() != 1:
            raise GraphCLError(
                f"group_ranks: group {name!r} is {mask.dtype} of shape {list(mask.shape)}, must "
                "be bool, one entry per item"
            )
        _check_items(f"group_ranks: target of group {name!r}", target, 1, len(mask))
        inside = mask[target]
        if inside.any():
            chosen[name] = ranks[inside]
    return chosen


def _masked(scores: Tensor, seen: SeenItems | None, users: slice, value: float) -> Tensor:
    """Return a copy, since the function may have lent its own matrix, with what is out masked."""
    scores = scores.clone()
    scores[:, 0] = value
    if seen is not None:
        scores[seen.pairs(users)] = value
    return scores


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return items and scores of the k largest per row, ties in the order of the columns.

    ``torch.topk`` leaves open which of the tied it takes.  Its k-th value does not depend on that:
    what reaches it is put in order by two stable sorts, by score and then by row.
    """
    n, width = scores.shape
    kth = scores.topk(min(k, width)).values[:, -1:]
    row, item = ((scores >= kth) & (scores > -torch.inf)).nonzero(as_tuple=True)
    order = scores[row, item].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    row, item = row[order], item[order]
    count = row.bincount(minlength=n)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    row, item, place = (index[place < k] for index in (row, item, place))
    items = torch.zeros(n, k, dtype=torch.int64, device=scores.device)
    values = scores.new_full((n, k), -torch.inf)
    items[row, place] = item
    values[row, place] = scores[row, item]
    return items, values


def _hits(metric: str, ranks: Tensor, k: int | None) -> Tensor:
    """Return whether each rank is within k, after checking both."""
    if k is not None:
        _check_positive(metric, "k", k)
    if not ranks.numel():
        raise GraphCLError(f"{metric}: there is no rank; a mean needs at least one")
    # A comparison with NaN is false, so this form of the test refuses NaN too.
    bad = (~(ranks >= 1)).nonzero()
    if len(bad):
        user = int(bad[0])
        raise GraphCLError(
            f"{metric}: ranks[{user}] is {ranks[user].item()} ({len(bad)} such); ranks begin at 1"
        )
    return ranks <= (torch.inf if k is None else k)


def _check_positive(name: str, field: str, value: int) -> None:
    if value < 1:
        raise GraphCLError(f"{name}: {field} is {value}; use 1 or more")


def _check_target(name: str, target: Tensor, scores: ItemScores) -> None:
    if target.shape != (scores.num_users,) or target.dtype != torch.int64:
        raise GraphCLError(
            f"{name}: target is {target.dtype} of shape {list(target.shape)}, must be int64 "
            f"[{scores.num_users}], one item per user"
        )
    _check_items(f"{name}: target", target, 1, scores.num_items)


def _check_seen(name: str, seen: SeenItems | None, scores: ItemScores) -> None:
    if seen is None:
        return
    if len(seen.indptr) != scores.num_users + 1:
        raise GraphCLError(
            f"{name}: seen has {len(seen.indptr) - 1} users and scores {scores.num_users}; pass "
            "the same users in the same order"
        )
    _check_items(f"{name}: seen.indices", seen.indices, 0, scores.num_items)


def _check_items(field: str, items: Tensor, first: int, stop: int) -> None:
    bad = ((items < first) | (items >= stop)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise GraphCLError(
            f"{field}[{place}] is {int(items[place])} ({len(bad)} such); the items are {first} to "
            f"{stop - 1}"
        )
