"""Sessions within a batch: where they begin, and what each event may look back at.

A batch's n events are numbered row by row, without its padding.  A session's events, and those of a
row, then follow one another, and every quantity is ``[n]`` or ``[n, D]``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from graphcl.recommend.sequences import Sequences

BLOCK = 10
"""Events of a session where neither sessions nor times are known."""


@dataclass(frozen=True, eq=False)
class Lookback:
    """m questions, each of which sees its event's session up to that event.

    Shapes:
        - **slot**: int64 ``[m]``, place of each question in ``[B, Q]``, which has room for all
        - **query**, **key**: int64 ``[P]``, the pairs of a question and an event that it sees
        - **column**: int64 ``[P]``, the event's place in its row
        - **size**: B and Q
    """

    slot: Tensor
    query: Tensor
    key: Tensor
    column: Tensor
    size: tuple[int, int]

    def attend(self, scores: Tensor, values: Tensor) -> Tensor:
        """Return for each question the mean of what it sees, weighted by a softmax of scores.

        Shapes:
            - **scores**: ``[P]``; **values**: ``[B, T, D]`` as :meth:`Sessions.dense` has them;
              returns ``[m, D]``
        """
        (rows, room), width = self.size, values.size(1)
        # Minus infinity would make the softmax of a place without a question NaN.
        logits = scores.new_full((rows * room, width), torch.finfo(scores.dtype).min)
        logits = logits.index_put((self.slot[self.query], self.column), scores)
        means = logits.view(rows, room, width).softmax(2) @ values
        return means.flatten(0, 1).index_select(0, self.slot)


@dataclass(frozen=True, eq=False)
class Sessions:
    """The sessions of a batch of n events in B rows of T or fewer.

    Shapes:
        - **row**, **step**: int64 ``[n]``, each event's row and its place among the row's events,
          from 0
        - **session**: int64 ``[n]``, its session, numbered from 0 over the batch
        - **nth**: int64 ``[n]``, the session's number in its row, from 0
        - **begin**: int64 ``[M]``, the first event of each session
        - **size**: B and T
    """

    row: Tensor
    step: Tensor
    session: Tensor
    nth: Tensor
    begin: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, batch: Sequences, gap: int) -> Self:
        """Return a batch's own sessions; else new ones where its times pause for over ``gap``.

        Without times either, a session is :data:`BLOCK` events, counted from a row's first one, so
        that no later event decides where one ends.

        Args:
            batch: Left-padded rows.
            gap: Seconds.
        """
        mask = batch.mask
        row, column = mask.nonzero(as_tuple=True)
        step = column - (~mask).sum(1)[row]
        if batch.session is not None:
            start = _changes(batch.session[mask]) != 0
        elif batch.time is not None:
            start = _changes(batch.time[mask]) > gap
        else:
            start = step % BLOCK == 0
        start = start | (step == 0)
        session = start.cumsum(0) - 1
        nth = session - session[torch.arange(len(row), device=row.device) - step]
        begin = start.nonzero().squeeze(1)
        return cls(row, step, session, nth, begin, (mask.size(0), mask.size(1)))

    def __len__(self) -> int:
        return len(self.row)

    @property
    def event(self) -> Tensor:
        """The events' numbers, ``[n]``."""
        return torch.arange(len(self), device=self.row.device)

    @property
    def last(self) -> Tensor:
        """The last event of each row that has one."""
        end = self.row.diff() != 0
        return torch.cat([end, end.new_ones(min(len(self), 1))]).nonzero().squeeze(1)

    def dense(self, values: Tensor) -> Tensor:
        """Return ``[n, D]`` as rows padded at their end, ``[B, T, D]``."""
        rows, width = self.size
        padded = values.new_zeros(rows * width, values.size(1))
        return padded.index_copy(0, self._place, values).view(rows, width, -1)

    def flat(self, padded: Tensor) -> Tensor:
        """Inverse of :meth:`dense`."""
        return padded.flatten(0, 1).index_select(0, self._place)

    @property
    def _place(self) -> Tensor:
        return self.row * self.size[1] + self.step

    def lookback(self, event: Tensor) -> Lookback:
        """Return what questions that are asked after events see of these events' sessions.

        Shapes:
            - **event**: int64 ``[m]``, never falling, any number of times the same
        """
        first = self.begin[self.session[event]]
        count = event - first + 1
        question = torch.arange(len(event), device=event.device)
        query = question.repeat_interleave(count)
        key = (
            torch.arange(len(query), device=event.device) - (count.cumsum(0) - count - first)[query]
        )
        row = self.row[event]
        asked = row.bincount(minlength=self.size[0])
        room = int(asked.max())
        slot = row * room + question - (asked.cumsum(0) - asked)[row]
        return Lookback(slot, query, key, self.step[key], (self.size[0], room))

    def since(self, most: int) -> Tensor:
        """Return the first event of each event's last ``most`` sessions, int64 ``[n]``."""
        return self.begin[self.session - self.nth.clamp(max=most - 1)]

    def running_mean(self, values: Tensor, first: Tensor) -> Tensor:
        """Return the mean from event ``first``, of the same row, to each event, ``[n, D]``."""
        total = self.flat(self.dense(values).cumsum(1))
        total = total - (total - values).index_select(0, first)
        return total / (self.event - first + 1)[:, None]

    def tokens(self, event: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the last events of the ``most`` last sessions up to each of some events.

        Events with equally many sessions go together, so that nothing is padded.

        Args:
            event: int64 ``[a]``.
            most: Sessions at most.

        Yields:
            Places in ``event``, int64 ``[k]``, and events ``[k, c]``, for each number c of sessions
            that occurs; in the last column is the event itself.
        """
        kept = (self.nth[event] + 1).clamp(max=most)
        for count in kept.unique().tolist():
            place = (kept == count).nonzero().squeeze(1)
            back = torch.arange(count - 1, 0, -1, device=event.device)
            earlier = self.begin[self.session[event[place], None] - back + 1] - 1
            yield place, torch.cat([earlier, event[place, None]], dim=1)

    def packed(self) -> tuple[Tensor, list[int]]:
        """Return an order of the events for a recurrent network that starts anew in each session.

        First come all sessions' first events, then all second ones, and so on, longer sessions
        first: the sessions that go on are always the first ones of the step before.

        Returns:
            The events, int64 ``[n]``, and how many there are of each step.
        """
        place = self.event - self.begin[self.session]
        length = self.session.bincount(minlength=len(self.begin))
        rank = length.argsort(descending=True, stable=True).argsort()
        order = (place * len(self.begin) + rank[self.session]).argsort()
        return order, place.bincount().tolist()


def _changes(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(min(len(values), 1)), values.diff()])
