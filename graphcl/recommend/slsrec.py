"""SLSRec: long- and short-term interests over sessions, kept apart by contrast."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from graphcl.contrast import bpr, elementwise_triplet
from graphcl.datasets import Interactions
from graphcl.errors import check_fields
from graphcl.recommend.attention import PairScore, SessionAttention, perceptron
from graphcl.recommend.baselines import item_table
from graphcl.recommend.dropout import Dropout
from graphcl.recommend.recommender import Recommender, RecommenderConfig
from graphcl.recommend.sequences import Sequences
from graphcl.recommend.sessions import Sessions
from graphcl.recommend.time_lstm import TimeLSTM

_UNKNOWN = 0.1  # share of rows from which the vectors of somebody unknown learn
# Without a bound the share goes to 0 or 1, often to the worse one, and the other learns no more; a
# bound of 3 leaves room for that too.
_LOGIT = 2.0
_PAIRS = 2**18  # of a question and an event at a time where many candidates are scored
_CONTRASTS = {"bpr": bpr, "triplet": elementwise_triplet}


@dataclass(frozen=True)
class SLSRecConfig(RecommenderConfig):
    """The hyper-parameters of :class:`SLSRec`.

    Attributes:
        gap: Seconds of a pause after which a new session begins: 30 days for reviews, 1,800 for
            clicks.  Not read where the interactions have sessions of their own.
        num_sessions: Sessions that are read, the latest.
        contrast: How the interests are told apart: ``"bpr"`` by inner products, ``"triplet"`` by
            distances, with a margin of 1 in each dimension.
        contrast_weight: Of the four terms of contrast.  CLSR's 0.1 is for a sigmoid; here, where
            ``"triplet"`` sums over all dimensions, it drowns the ranking.
        min_events: Events that a history has at least to be contrasted; it has two sessions too.
        discrepancy_weight: Of what drives the two vectors of a user apart.
        time_unit: Seconds of which pauses are the logarithm; below half of it all are alike.
        blend: Share of the long-term interest; None lets the model weigh at every event.
        mode: ``"retrieval"`` scores by inner products; ``"candidates"`` reads each history anew
            for every item that it scores, which is to rank a short list.
        num_candidates: Items drawn for each event against which its target is compared in mode
            ``"candidates"``, where ``negatives`` is not read.
    """

    dropout: float = 0.1
    gap: int = 30 * 86_400
    num_sessions: int = 10
    contrast: Literal["bpr", "triplet"] = "triplet"
    contrast_weight: float = 0.001
    min_events: int = 6
    discrepancy_weight: float = 0.01
    time_unit: float = 86.4
    blend: float | None = None
    mode: Literal["retrieval", "candidates"] = "retrieval"
    num_candidates: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one = ("gap", "num_sessions", "min_events", "num_candidates")
        check_fields(self, at_least_one, lambda v: v >= 1, "at least 1")
        weights = ("contrast_weight", "discrepancy_weight")
        check_fields(self, weights, lambda v: v >= 0, "at least 0")
        check_fields(self, ("time_unit",), lambda v: v > 0, "above 0")
        check_fields(self, ("blend",), lambda v: v is None or 0 <= v <= 1, "0 to 1, or None")


class Reading(NamedTuple):
    """What a batch of n events says after a of them, before an item is in question.

    Shapes:
        - **users**: int64 ``[B]``, as they are looked up
        - **x**: ``[n, D]``, the events' items; **outputs**: ``[n, D]``, states over their sessions
        - **asked**: int64 ``[a]``, the events in question, never falling
        - **long**: ``[a, D]``, the long-term interest; **query**: ``[a, D]``, what is asked of the
          last session; **context**: ``[a, D + 1]``, what the blend is decided by
    """

    sessions: Sessions
    users: Tensor
    x: Tensor
    outputs: Tensor
    asked: Tensor
    long: Tensor
    query: Tensor
    context: Tensor


class Interests(NamedTuple):
    """The interests after m questions, ``[m, D]`` each, and the long one's share, ``[m, 1]``."""

    long: Tensor
    short: Tensor
    share: Tensor

    @property
    def blended(self) -> Tensor:
        return self.share * self.long + (1 - self.share) * self.short


class SLSRec(Recommender):
    """Long- and short-term interest in separate vectors, weighed anew at every event.

    A history falls into sessions.  The long-term interest is what a user's vector finds in the last
    sessions: in each of them by attention, then among them.  The short-term interest is what the
    user's history asks of the last session, which a :class:`TimeLSTM` reads.  A small network
    weighs the two, and contrast draws each to the mean of what it stands for and away from the
    other's.  Everything is computed after all events at once.

    Somebody unknown, with a number beyond those of the training data, or of whom these have no two
    events in order, is looked up in row 0 of ``user_long`` and ``user_short``, which a tenth of the
    rows in training are given.  These two tables are all that is one user's own: a federation may
    keep them at home.

    The time at which the next item is asked for is read too, as in CLSR.  Under evaluation that is
    the time of the held-out event, which tells, for one, whether the session goes on: models that
    read no times know less.  :meth:`rank` asks right after the last event.

    Source:
        Zhou et al., arXiv 2604.04530 (SLSRec), of which only the design could be read: sessions by
        time, two interests, self-supervised contrast, attention that weighs.  Layers, proxies,
        losses and weights are completed from the code of Zheng et al., WWW 2022 (CLSR); attention
        on two levels from Feng et al., IJCAI 2019 (DSIN).  Ours: inner products with the whole
        catalogue as scores, for which the last event stands in for the item in question; ages up to
        the next event instead of up to now, so that one pass serves all events; row 0 for somebody
        unknown; normalised states of the short-term interest and a share of 0.12 to 0.88, without
        which one interest goes silent; no weight decay.  Without times ages are 0 and a session is
        ten events.

    Example:
        >>> from graphcl.datasets import simulate_interactions
        >>> interactions = simulate_interactions(num_users=300, num_items=50).interactions
        >>> model = SLSRec(SLSRecConfig(epochs=2, gap=1800)).fit(interactions)
        >>> items, scores = model.rank(interactions, k=5)
        >>> items.shape
        torch.Size([300, 5])
    """

    config_type: ClassVar[type] = SLSRecConfig
    reads_times: ClassVar[bool] = True
    config: SLSRecConfig

    learned: Tensor  # [num_users + 1], who gave a pair of events to learn from, bool

    @property
    def scores_by_product(self) -> bool:
        return self.config.mode == "retrieval"

    def features(self, interactions: Interactions) -> dict[str, Tensor]:
        pairs = interactions.user.bincount(minlength=interactions.num_users) > 1
        return {"learned": torch.cat([pairs.new_zeros(1), pairs])}

    def build(self, features: dict[str, Tensor]) -> None:
        width = self.config.hidden_channels
        self.item = item_table(self.num_items, width)
        self.user_long = _user_table(self.num_users, width)
        self.user_short = _user_table(self.num_users, width)
        self.dropout = Dropout(self.config.dropout)
        self.within = PairScore(width, width)
        self.across = SessionAttention(width, self.config.num_sessions)
        self.evolution = nn.GRU(width, width, batch_first=True)
        self.time_lstm = TimeLSTM(width)
        # The states of an LSTM are short: an inner product would hear the long-term interest alone.
        self.norm = nn.LayerNorm(width)
        self.recent = PairScore(width, 2 * width)
        if self.config.blend is None:
            self.context = nn.GRU(width, width, batch_first=True)
            self.fusion = perceptron(4 * width + 1, 80, 40)
        if self.config.mode == "candidates":
            self.head = perceptron(2 * width, 100, 64, bias=False)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self.item.weight if items is None else self.item(items)

    def states(self, batch: Sequences, last: bool = False) -> Tensor:
        mask = batch.mask
        sessions = Sessions.of(batch, self.config.gap)
        asked = sessions.last if last else sessions.event
        reading = self.read(batch, sessions, asked)
        mask = mask[:, -1:] if last else mask
        states = reading.x.new_zeros(*mask.shape, self.config.hidden_channels)
        states[mask] = self.interests(reading, reading.x[asked, None]).blended
        return states

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        following = batch.target[batch.mask]
        asked = following.nonzero().squeeze(1)
        reading = self.read(batch, Sessions.of(batch, self.config.gap), asked)
        target = following[asked]
        if self.config.mode == "retrieval":
            interests = self.interests(reading, reading.x[asked, None])
            softmax = self.softmax(interests.blended, target)
            short = interests.short
        else:
            candidates, known = self._draw(batch, reading, target)
            logits, interests = self._judge(reading, candidates)
            softmax = _of_first(logits.masked_fill(known, -torch.inf))
            short = interests.short[:: candidates.size(1)]
        return {
            "softmax": softmax,
            "contrast": self.config.contrast_weight * self._contrast(reading, short),
            "discrepancy": self.config.discrepancy_weight * self._discrepancy(reading.users),
        }

    def scorer(self) -> Callable[[Sequences], Tensor]:
        if self.config.mode == "retrieval":
            return super().scorer()
        every = torch.arange(self.num_items + 1, device=self.item.weight.device)
        return lambda batch: self.score_candidates(batch, every.expand(len(batch), -1))

    @torch.no_grad()
    def score_candidates(self, batch: Sequences, candidates: Tensor) -> Tensor:
        """Return how well each row's candidates follow its last event, 0 in a row without events.

        In mode ``"candidates"`` every score takes a pass over the last session.

        Shapes:
            - **candidates**: int64 ``[B, C]``, 0 to num_items; returns ``[B, C]``
        """
        self.eval()
        if self.config.mode == "retrieval":
            return (self.item(candidates) @ self.states(batch, last=True).mT).squeeze(2)
        sessions = Sessions.of(batch, self.config.gap)
        last = sessions.last
        reading, row = self.read(batch, sessions, last), sessions.row[last]
        width = max(1, _PAIRS // max(1, len(sessions.lookback(last).key)))
        parts = [self._judge(reading, part)[0] for part in candidates[row].split(width, dim=1)]
        scores = self.item.weight.new_zeros(candidates.shape)
        scores[row] = torch.cat(parts, dim=1)
        return scores

    def read(self, batch: Sequences, sessions: Sessions, asked: Tensor) -> Reading:
        """Return what a batch says after some of its events.

        Args:
            batch: Left-padded rows.
            sessions: Theirs.
            asked: int64 ``[a]``, numbers of these events as :class:`Sessions` gives them.
        """
        users = batch.user * (batch.user <= self.num_users)
        users = users * self.learned[users]
        if self.training:
            users = users * (torch.rand(len(users)) >= _UNKNOWN).to(users)
        x = self.dropout(self.item(batch.item[batch.mask]))
        rows, asks = sessions.dense(x), self.user_long(users)
        look = sessions.lookback(sessions.event)
        scores = self.within(x, asks, None, sessions.row)
        prefix = look.attend(scores.index_select(0, look.key), rows)
        age, since = self._time_features(batch, sessions)
        order, sizes = sessions.packed()
        outputs = self.time_lstm(x[order], age[order], since[order], sizes)
        query, _ = self.evolution(rows, self.user_short(users)[None])
        context = age[asked, None]
        if self.config.blend is None:
            state, _ = self.context(rows)
            context = torch.cat([sessions.flat(state)[asked], context], dim=1)
        return Reading(
            sessions,
            users,
            x,
            self.norm(outputs).index_select(0, order.argsort()),
            asked,
            self.across(prefix, sessions, users=asks, event=asked),
            sessions.flat(query)[asked],
            context,
        )

    def interests(self, reading: Reading, items: Tensor) -> Interests:
        """Return the interests with which each event in question meets C items.

        Shapes:
            - **items**: ``[a, C, D]``, vectors; returns ``m = a C`` interests, C of each event
        """
        sessions, count = reading.sessions, items.size(1)
        item = items.flatten(0, 1)
        query, long, context = (
            value.repeat_interleave(count, 0) if count > 1 else value
            for value in (reading.query, reading.long, reading.context)
        )
        look = sessions.lookback(reading.asked.repeat_interleave(count))
        asks = torch.cat([query, item], dim=1)
        scores = self.recent(reading.outputs, asks, look.key, look.query)
        short = look.attend(scores, sessions.dense(reading.outputs))
        if self.config.blend is not None:
            return Interests(long, short, long.new_full((len(long), 1), self.config.blend))
        logit = self.fusion(torch.cat([context, item, long, short], dim=1))
        return Interests(long, short, (_LOGIT * (logit / _LOGIT).tanh()).sigmoid())

    def _time_features(self, batch: Sequences, sessions: Sessions) -> tuple[Tensor, Tensor]:
        """Return the logarithms of what passes until the next event, from each and the first."""
        if batch.time is None or batch.target_time is None:
            nothing = self.item.weight.new_zeros(len(sessions))
            return nothing, nothing
        time, following = batch.time[batch.mask], batch.target_time[batch.mask]
        first = time[sessions.event - sessions.step]
        unit, dtype = self.config.time_unit, self.item.weight.dtype
        age, since = (
            ((following - start) / unit).clamp(min=0.5).log().to(dtype) for start in (time, first)
        )
        return age, since

    def _draw(self, batch: Sequences, reading: Reading, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return each event's target and drawn items, ``[a, 1 + K]``, and what does not count."""
        drawn = torch.randint(1, self.num_items + 1, (len(target), self.config.num_candidates))
        drawn = drawn.to(target.device)
        window = batch.item[reading.sessions.row[reading.asked]]
        taken = torch.cat([window, target[:, None]], dim=1)
        known = (drawn[:, :, None] == taken[:, None]).any(2)
        candidates = torch.cat([target[:, None], drawn], dim=1)
        return candidates, torch.cat([torch.zeros_like(known[:, :1]), known], dim=1)

    def _judge(self, reading: Reading, candidates: Tensor) -> tuple[Tensor, Interests]:
        """Return the logits of C items after each event, ``[a, C]``, and the interests behind."""
        items = self.item(candidates)
        interests = self.interests(reading, items)
        logits = self.head(torch.cat([interests.blended, items.flatten(0, 1)], dim=1))
        return logits.view(candidates.shape), interests

    def _contrast(self, reading: Reading, short: Tensor) -> Tensor:
        """Return the mean of the four terms over the events in question with enough before them.

        Args:
            reading: With the long-term interest after each.
            short: The short-term interest; in mode ``"candidates"`` that which meets the target.
        """
        sessions, asked = reading.sessions, reading.asked
        first = sessions.since(self.config.num_sessions)
        kept = sessions.event - first + 1
        enough = ((kept >= self.config.min_events) & (sessions.nth > 0))[asked]
        long_proxy = sessions.running_mean(reading.x, first)
        short_proxy = sessions.running_mean(reading.x, sessions.since(1))
        return calibration(
            reading.long[enough],
            short[enough],
            long_proxy[asked[enough]],
            short_proxy[asked[enough]],
            self.config.contrast,
        )

    def _discrepancy(self, users: Tensor) -> Tensor:
        distinct = users.unique()
        apart = (self.user_long(distinct) - self.user_short(distinct)).square().mean()
        # Without a bound the two tables would run away from each other.
        return (-apart).clamp(min=-1)


def calibration(
    long: Tensor, short: Tensor, long_proxy: Tensor, short_proxy: Tensor, contrast: str
) -> Tensor:
    """Return the contrast of two interests with the means that stand for them.

    Each interest is drawn to its own proxy and away from the other's, and each proxy to its own
    interest and away from the other.

    Shapes:
        All ``[k, D]``; returns a scalar, a differentiable 0 where k is 0.

    Args:
        long: The long-term interest.
        short: The short-term interest.
        long_proxy: The mean item of all events.
        short_proxy: The mean item of the last session's.
        contrast: ``"bpr"`` or ``"triplet"``.

    Source:
        The code of Zheng et al., WWW 2022 (CLSR), with the last session for its last three events.
    """
    term = _CONTRASTS[contrast]
    of_interests = term(long, long_proxy, short_proxy) + term(short, short_proxy, long_proxy)
    return of_interests + term(long_proxy, long, short) + term(short_proxy, short, long)


def _of_first(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of the first of each row, a differentiable 0 without rows."""
    return -logits.log_softmax(1)[:, 0].sum() / max(len(logits), 1)


def _user_table(num_users: int, channels: int) -> nn.Embedding:
    table = nn.Embedding(num_users + 1, channels)
    nn.init.trunc_normal_(table.weight, std=0.01)
    return table
