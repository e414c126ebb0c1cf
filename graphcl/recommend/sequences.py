"""Batches of sequences: left-padded, cut from the interactions without a loop over users.

One convention throughout: column T - 1 is a user's latest event, shorter sequences are preceded by
item 0, and row 0 of whatever has a row per item is padding's.  Recurrent layers, which would carry
a state through the padding, read :func:`pad_right` of a batch and give back :func:`pad_left`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from graphcl.datasets import Interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics.ranking import SeenItems
from graphcl.training import torch_rng

_SORTED_TOGETHER = 32  # batches whose rows are sorted by length, so that few columns are padding


@dataclass(frozen=True, eq=False)
class Sequences:
    """B sequences of T events or fewer, left-padded, and what followed each event.

    Shapes:
        - **item**: int64 ``[B, T]``, 0 where there is no event; **mask**: the same as bool
        - **target**: int64 ``[B, T]``, the item after each event; 0 where none is asked for
        - **user**: int64 ``[B]``, 1 to num_users, as rows of a table; 0 for somebody unknown
        - **time**: int64 ``[B, T]`` in seconds, None without times; **target_time**: the times of
          the targets, or at which the next item is asked for
        - **session**: int64 ``[B, T]``, None without sessions, 0 where there is no event
    """

    item: Tensor
    target: Tensor
    user: Tensor
    time: Tensor | None = None
    target_time: Tensor | None = None
    session: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        return self.item > 0

    def __len__(self) -> int:
        return len(self.item)

    def to(self, device: torch.device) -> Self:
        """Return the same on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if v is not None})


def cut(interactions: Interactions, first: Tensor, end: Tensor, counted: Tensor) -> Sequences:
    """Return a batch of runs of rows, each of one user, padded to the longest of them.

    Shapes:
        - **first**, **end**: int64 ``[B]``, bounds of the runs in the rows; end is excluded
        - **counted**: int64 ``[B]``, the first row of each run whose next item is asked for
    """
    width = max(1, int((end - first).max()))
    row = end[:, None] - width + torch.arange(width)
    inside = row >= first[:, None]
    asked = inside & (row >= counted[:, None])
    last = len(interactions) - 1

    def take(values: Tensor, at: Tensor) -> Tensor:
        return values[at.clamp(0, last)] if last >= 0 else torch.zeros_like(at)

    time, session = interactions.time, interactions.session
    return Sequences(
        item=take(interactions.item, row) * inside,
        target=take(interactions.item, row + 1) * asked,
        user=take(interactions.user, first) + 1,
        time=None if time is None else take(time, row) * inside,
        target_time=None if time is None else take(time, row + 1) * inside,
        session=None if session is None else (take(session, row) + 1) * inside,
    )


class TrainingBatches:
    """All pairs of history and next item, each once per epoch, in batches of windows.

    A user with more events than fit has several windows, which overlap by half: every item is
    predicted from at least ``length // 2`` earlier ones, where there are so many.

    Args:
        interactions: What to train on; users with one event have nothing to predict.
        length: Events that a model reads at most.
        batch_size: Windows per batch.
        seed: Decides the order of every epoch.

    Raises:
        DataError: No user has two events.
    """

    def __init__(self, interactions: Interactions, length: int, batch_size: int, seed: int):
        start, pairs = interactions.indptr[:-1], interactions.indptr.diff() - 1
        if int(pairs.max()) < 1:
            raise DataError(
                f"{interactions.name}: no user has two events, so that nothing follows anything: "
                "give longer histories"
            )
        self.interactions, self.batch_size = interactions, batch_size
        stride = length - length // 2
        count = ((pairs - length + stride - 1).div(stride, rounding_mode="floor") + 1).clamp(min=1)
        count = count * (pairs > 0)
        user = torch.arange(len(pairs)).repeat_interleave(count)
        nth = torch.arange(len(user)) - (count.cumsum(0) - count)[user]
        self.first = start[user] + nth * stride
        self.end = torch.minimum(self.first + length, start[user] + pairs[user])
        # All but a user's first window only ask about what the window before it did not.
        self.counted = torch.where(nth == 0, self.first, self.first + length - stride)
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return -(-len(self.first) // self.batch_size)

    def __iter__(self) -> Iterator[Sequences]:
        self.epoch += 1
        rng = torch_rng(self.seed, "sequences", self.epoch)
        order, length = torch.randperm(len(self.first), generator=rng), self.end - self.first
        batches: list[Tensor] = []
        for part in order.split(self.batch_size * _SORTED_TOGETHER):
            batches += part[length[part].argsort(stable=True)].split(self.batch_size)
        for index in torch.randperm(len(batches), generator=rng).tolist():
            row = batches[index]
            first, end, counted = (x[row] for x in (self.first, self.end, self.counted))
            yield cut(self.interactions, first, end, counted)


@dataclass(frozen=True, eq=False)
class Histories:
    """n histories after each of which the next item is asked for; all lie in some interactions.

    Shapes:
        - **start**, **end**: int64 ``[n]``, bounds of the histories in the rows; end is excluded
        - **user**: int64 ``[n]``, 1 to num_users; 0 for somebody unknown
        - **target**: int64 ``[n]``, what came next; 0 where it is not known
        - **time**: int64 ``[n]``, the seconds at which it is asked for; None without times
    """

    interactions: Interactions
    start: Tensor
    end: Tensor
    user: Tensor
    target: Tensor
    time: Tensor | None = None

    @classmethod
    def held_out(cls, events: Interactions, *before: Interactions) -> Self:
        """Return what came before each event of a part of a split.

        Args:
            events: What to predict; what comes first in it is known to what comes later.
            before: What is known beside them.
        """
        merged, row = _merge(*before, events)
        return cls(
            merged,
            start=merged.indptr[merged.user[row]],
            end=row,
            user=merged.user[row] + 1,
            target=merged.item[row],
            time=None if merged.time is None else merged.time[row],
        )

    @classmethod
    def of_users(cls, interactions: Interactions, known: bool = True) -> Self:
        """Return everything that each user did, to be asked for the next item right after it.

        Args:
            interactions: With one history per user.
            known: Whether the users are those of the training data, with the same numbers.
        """
        start, end = interactions.indptr[:-1], interactions.indptr[1:]
        users = torch.arange(1, interactions.num_users + 1)
        time = interactions.time
        return cls(
            interactions,
            start,
            end,
            user=users if known else torch.zeros_like(users),
            target=torch.zeros_like(users),
            time=None if time is None else time[(end - 1).clamp(min=0)],
        )

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def repeats(self) -> Tensor:
        """Whether the target is in its history already, bool ``[n]``."""
        seen = self.seen
        case = torch.arange(len(self)).repeat_interleave(seen.indptr.diff())
        found = torch.zeros(len(self), dtype=torch.bool)
        found[case[seen.indices == self.target[case]]] = True
        return found

    def some(self, count: int) -> Self:
        """Return that many of the histories, spread evenly, or all where there are fewer."""
        if len(self) <= count:
            return self
        return self.select(torch.arange(count) * len(self) // count)

    def select(self, index: Tensor) -> Self:
        """Return some of the histories, in the order of ``index``, int64 ``[n]``."""
        return replace(
            self,
            start=self.start[index],
            end=self.end[index],
            user=self.user[index],
            target=self.target[index],
            time=None if self.time is None else self.time[index],
        )

    def batch(self, cases: slice, length: int) -> Sequences:
        """Return the last ``length`` events of some histories, asked about what follows the last.

        The row of an empty history is padding.
        """
        start, end = self.start[cases], self.end[cases]
        batch = cut(self.interactions, torch.maximum(start, end - length), end, end)
        target, at = batch.target, batch.target_time
        target[:, -1] = self.target[cases]
        if at is not None and self.time is not None:
            at[:, -1] = self.time[cases]
        return replace(batch, user=self.user[cases])

    @cached_property
    def seen(self) -> SeenItems:
        """The items of each history, all of them."""
        count = self.end - self.start
        ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
        row = torch.arange(int(ptr[-1])) + (self.start - ptr[:-1]).repeat_interleave(count)
        return SeenItems(ptr, self.interactions.item[row])


def _merge(*parts: Interactions) -> tuple[Interactions, Tensor]:
    """Return all parts as one, of one time in their order, and the rows of the last."""
    user, item = (torch.cat([getattr(part, key) for part in parts]) for key in ("user", "item"))
    time, session = (
        cat_known([getattr(part, key) for part in parts]) for key in ("time", "session")
    )
    order = torch.arange(len(user)) if time is None else time.argsort(stable=True)
    order = order[user[order].argsort(stable=True)]
    merged = Interactions(
        parts[-1].name,
        user,
        item,
        parts[-1].num_users,
        parts[-1].num_items,
        time=time,
        session=session,
    ).select(order)
    return merged, (order >= len(order) - len(parts[-1])).nonzero().squeeze(1)


def cat_known(values: Sequence[Tensor | None]) -> Tensor | None:
    """Return the values as one, or None where one is missing."""
    known = [value for value in values if value is not None]
    return torch.cat(known) if len(known) == len(values) else None


def pad_right(x: Tensor, mask: Tensor) -> Tensor:
    """Return left-padded rows with their padding at the end.

    Shapes:
        - **x**: ``[B, T, ...]``; **mask**: bool ``[B, T]``, padding first
    """
    return _rolled(x, (~mask).sum(1))


def pad_left(x: Tensor, mask: Tensor) -> Tensor:
    """Inverse of :func:`pad_right`, with the same mask of the left-padded rows."""
    return _rolled(x, mask.sum(1))


def _rolled(x: Tensor, by: Tensor) -> Tensor:
    width = x.size(1)
    column = (torch.arange(width, device=x.device) + by[:, None]) % width
    return x[torch.arange(len(x), device=x.device)[:, None], column]


def check_history(name: str, items: Tensor, num_items: int) -> None:
    """Refuse items that are not in the catalogue.

    Raises:
        GraphCLError: One is not; the message names its place.
    """
    bad = ((items < 1) | (items > num_items)).nonzero()
    if len(bad):
        place = int(bad[0])
        raise GraphCLError(
            f"{name}: history[{place}] is {int(items[place])} ({len(bad)} such), must be an item, "
            f"1 to {num_items}: leave out what is not in the catalogue"
        )
