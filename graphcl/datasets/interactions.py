"""Interactions of users with items: who took what, in which order, and what the items are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from graphcl.datasets.interaction_rules import check_fields, check_order
from graphcl.errors import DataError

_HEAD_SHARE = 0.2  # of the items seen in training


@dataclass(frozen=True, eq=False, repr=False)
class Interactions:
    """n interactions, each one user with one item, sorted by user and then by time.

    Users are numbered from 0, items from 1: item 0 is padding everywhere, and whatever has a row
    per item has one for it too, so that ``title[item]`` and ``text[item]`` need no shift.  A user
    may take an item several times, even at one time, and numbers may stand for users and items
    without any interaction, as they do in the parts of a split.  ``dataclasses.replace`` adds what
    a file lacks, such as text embeddings of one's own.

    Shapes:
        - **name**: what to call the interactions in a message
        - **user**: int64 ``[n]``, 0 to num_users - 1; **item**: int64 ``[n]``, 1 to num_items
        - **time**: int64 ``[n]``, seconds since 1970 in UTC; None if only the order is known
        - **session**: int64 ``[n]``; the rows of a session follow one another and are one user's
        - **user_name**: num_users unique names
        - **item_name**: num_items + 1 names, unique, the first empty
        - **category**: int64 ``[num_items + 1]``, 0 for none, named by **category_name**, whose
          first name, that of none, is empty
        - **text**: float32 ``[num_items + 1, D]``, embeddings of what is written of the items; row
          0 is zero
        - **title**: num_items + 1 texts, the first empty
        - **attribute**: int64 ``[m]``, 0 or more, what each item is beside its category, brands and
          tags for example; item i has those from ``attribute_indptr[i]`` on and before
          ``attribute_indptr[i + 1]``, in any order, and item 0 none; **attribute_indptr**: int64
          ``[num_items + 2]``
    """

    name: str
    user: Tensor
    item: Tensor
    num_users: int
    num_items: int
    time: Tensor | None = None
    session: Tensor | None = None
    user_name: tuple[str, ...] | None = None
    item_name: tuple[str, ...] | None = None
    category: Tensor | None = None
    category_name: tuple[str, ...] | None = None
    text: Tensor | None = None
    title: tuple[str, ...] | None = None
    attribute: Tensor | None = None
    attribute_indptr: Tensor | None = None

    def __len__(self) -> int:
        return len(self.item)

    def __repr__(self) -> str:
        found = [key for key in _OPTIONAL if getattr(self, key) is not None]
        return (
            f"Interactions({self.name!r}, {len(self)} of {self.num_users} users with "
            f"{self.num_items} items, with {', '.join(found) or 'their order alone'})"
        )

    @cached_property
    def indptr(self) -> Tensor:
        """Bounds of each user's rows, int64 ``[num_users + 1]``."""
        counts = self.user.bincount(minlength=self.num_users)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def sequence(self, user: int) -> Tensor:
        """Return the items of one user in order, int64 ``[L]``, without a copy; L may be 0.

        Raises:
            DataError: There is no such user.
        """
        if not 0 <= user < self.num_users:
            raise DataError(
                f"{self.name}: sequence: user is {user}, must be 0 to {self.num_users - 1}"
            )
        return self.item[int(self.indptr[user]) : int(self.indptr[user + 1])]

    def select(self, rows: Tensor) -> Self:
        """Return some of the interactions; users and items keep their numbers.

        Args:
            rows: A boolean mask [n], or int64 indices in increasing order.
        """
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            time=None if self.time is None else self.time[rows],
            session=None if self.session is None else self.session[rows],
        )

    def sort(self, name: str | None = None) -> Self:
        """Return the interactions sorted by user and then by time; ties keep their order.

        Without times the order of the rows is that of each user's events.

        Args:
            name: What to call them in a message instead of their own name, usually their file.

        Raises:
            DataError: A rule of the class other than this order is broken.
        """
        name = self.name if name is None else name
        check_fields(self, name)
        order = torch.arange(len(self)) if self.time is None else self.time.argsort(stable=True)
        ordered = self.select(order[self.user[order].argsort(stable=True)])
        check_order(ordered, name)
        return ordered

    def k_core(self, k: int) -> Self:
        """Return the largest part whose every user and every item has k interactions or more.

        Users and items are numbered anew, in their order; their names and features go with them.

        Raises:
            DataError: k is not positive, or nothing is left.

        Source:
            Batagelj and Zaveršnik, arXiv cs/0310049, for graphs of two kinds of nodes.
        """
        if k < 1:
            raise DataError(f"{self.name}: k_core: k is {k}, must be at least 1")
        kept, count = torch.ones(len(self), dtype=torch.bool), len(self) + 1
        while int(kept.sum()) < count:
            count = int(kept.sum())
            users = self.user[kept].bincount(minlength=self.num_users)
            items = self.item[kept].bincount(minlength=self.num_items + 1)
            kept &= (users[self.user] >= k) & (items[self.item] >= k)
        if not count:
            raise DataError(
                f"{self.name}: k_core: no part of it has {k} interactions of every user and item: "
                "choose a smaller k"
            )
        return self.select(kept)._renumbered()

    def hold_out_last(self) -> tuple[Self, Self]:
        """Hold out the last event of each user who has three or more; return the rest and these.

        Raises:
            DataError: No user has three events.
        """
        last = self.indptr[self.user + 1] - 1 == torch.arange(len(self))
        held_out = last & (self.indptr.diff()[self.user] >= 3)
        if not held_out.any():
            raise DataError(
                f"{self.name}: hold_out_last: no user has three events: give longer histories"
            )
        return self.select(~held_out), self.select(held_out)

    def leave_one_out(self) -> "InteractionSplit":
        """Hold out the last event of each user to test on and the last but one to validate on.

        A user with fewer than three events is in the training part alone.

        Raises:
            DataError: No user has three events.

        Source:
            Kang and McAuley, ICDM 2018 (SASRec).
        """
        after = self.indptr[self.user + 1] - torch.arange(len(self)) - 1
        long_enough = self.indptr.diff()[self.user] >= 3
        if not long_enough.any():
            raise DataError(
                f"{self.name}: leave_one_out: no user has three events, one each to train, "
                "validate and test on: give longer histories, or use split_by_time"
            )
        val, test = (long_enough & (after == place) for place in (1, 0))
        return InteractionSplit(self.select(~(val | test)), self.select(val), self.select(test))

    def split_by_time(self, val_ratio: float, test_ratio: float) -> "InteractionSplit":
        """Cut at two points in time, the same for all users.

        Events of one time stay together, in the later part, so that the shares may differ a little
        from those asked for.

        Args:
            val_ratio: Share of all events between the two points.
            test_ratio: Share of all events after the second.

        Raises:
            DataError: There are no times, or a part has no event.
        """
        time = self._times("split_by_time")
        ordered = time.sort().values
        at = [round(len(self) * (1 - share)) for share in (val_ratio + test_ratio, test_ratio)]
        if not 0 < at[0] < at[1] < len(self):
            raise DataError(
                f"{self.name}: split_by_time: val_ratio is {val_ratio} and test_ratio "
                f"{test_ratio}: each part needs an event, and there are {len(self)}"
            )
        start, end = (int(ordered[place]) for place in at)
        if not int(ordered[0]) < start < end:
            raise DataError(
                f"{self.name}: split_by_time: too many events at one time: val_ratio {val_ratio} "
                f"and test_ratio {test_ratio} cut at {start} s and {end} s, after the first one at "
                f"{int(ordered[0])} s: choose other ratios"
            )
        parts = (time < start, (time >= start) & (time < end), time >= end)
        return InteractionSplit(*(self.select(part) for part in parts))

    def item_groups(self) -> "ItemGroups":
        """Group the items by how often they are here: ask the training part of a split.

        The head is the fifth of the items seen here that is seen most, ties by number; the others
        seen here are the tail.

        Source:
            FAERec (arXiv 2604.03688), which counts held-out events too.
        """
        counts = self.item.bincount(minlength=self.num_items + 1)
        seen = counts > 0
        head = torch.zeros_like(seen)
        most = counts.argsort(descending=True, stable=True)
        head[most[: max(1, round(_HEAD_SHARE * int(seen.sum())))]] = True
        cold = ~seen
        cold[0] = False
        return ItemGroups(head & seen, seen & ~head, cold)

    def sessions(self, gap: int) -> Self:
        """Return the interactions with sessions that end where a user pauses for over ``gap``.

        Sessions are numbered from 0 over all users, in their order.

        Args:
            gap: Seconds; 1,800 is usual for clicks.

        Raises:
            DataError: There are no times, or the gap is not positive.
        """
        time = self._times("sessions")
        if gap < 1:
            raise DataError(f"{self.name}: sessions: gap is {gap}, must be at least 1 second")
        starts = (self.user.diff() != 0) | (time.diff() > gap)
        return replace(self, session=torch.cat([starts.new_zeros(1), starts]).cumsum(0))

    def validate(self, name: str | None = None) -> Self:
        """Return the interactions unchanged after checking every rule of the class.

        Args:
            name: What to call them in a message instead of their own name, usually their file.

        Raises:
            DataError: A rule is broken; the message names the field, the row and the rule.
        """
        name = self.name if name is None else name
        check_fields(self, name)
        check_order(self, name)
        return self

    def _times(self, verb: str) -> Tensor:
        if self.time is None:
            raise DataError(
                f"{self.name}: {verb}: the interactions have no time: give it, or do without "
                f"{verb}, as leave_one_out does"
            )
        return self.time

    def _renumbered(self) -> Self:
        """Return the same without the users and items that have no row."""
        users, user = self.user.unique(return_inverse=True)
        items, item = self.item.unique(return_inverse=True)
        items = torch.cat([items.new_zeros(1), items])
        attribute, attribute_indptr = _runs(self.attribute, self.attribute_indptr, items)
        return replace(
            self,
            user=user,
            item=item + 1,
            num_users=len(users),
            num_items=len(items) - 1,
            user_name=_at(self.user_name, users),
            item_name=_at(self.item_name, items),
            category=None if self.category is None else self.category[items],
            text=None if self.text is None else self.text[items],
            title=_at(self.title, items),
            attribute=attribute,
            attribute_indptr=attribute_indptr,
        )


class InteractionSplit(NamedTuple):
    """Three parts of interactions, of which each is in one; all number users and items alike.

    What came before an event of ``val`` is in ``train``, and before one of ``test`` in ``train``
    and ``val``.
    """

    train: Interactions
    val: Interactions
    test: Interactions


class ItemGroups(NamedTuple):
    """Items by how often they are seen in training, each bool ``[num_items + 1]``.

    Every item is in one group, padding in none; ``tail[test.item]`` are the test events of one.
    """

    head: Tensor
    tail: Tensor
    cold: Tensor


_OPTIONAL = ("time", "session", "user_name", "item_name", "category", "text", "title", "attribute")


def _at(names: Sequence[str] | None, index: Tensor) -> tuple[str, ...] | None:
    return None if names is None else tuple(names[i] for i in index.tolist())


def _runs(
    values: Tensor | None, indptr: Tensor | None, index: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the values of some items, one after the other, and their bounds."""
    if values is None or indptr is None:
        return None, None
    count = indptr.diff()[index]
    bounds = torch.cat([count.new_zeros(1), count.cumsum(0)])
    row = torch.arange(int(bounds[-1])) + (indptr[index] - bounds[:-1]).repeat_interleave(count)
    return values[row], bounds
