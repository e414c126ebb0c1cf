"""What every sequential recommender shares: fit, rank, files."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from graphcl.datasets import Interactions
from graphcl.errors import DataError, GraphCLError, check_choices, check_fields
from graphcl.metrics.ranking import ItemScores, ndcg, rank_targets, top_k
from graphcl.recommend.sequences import Histories, Sequences, TrainingBatches, check_history
from graphcl.recommend.softmax import catalogue_cross_entropy, sampled_cross_entropy
from graphcl.training import (
    clip_gradients,
    fit_best,
    keeps_randomness,
    load_weights,
    save_weights,
    seed_everything,
)

_MALFORMED = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, GraphCLError)
_FEATURE = "catalogue/"  # what a file calls that which is no weight


@dataclass(frozen=True)
class RecommenderConfig:
    """What every recommender that is trained by gradients is told.

    Attributes:
        hidden_channels: Width of items and states, an even number.
        length: Events that are read at most, the latest.
        dropout: In the encoder.
        negatives: Items against which a target is compared, drawn anew for every batch and shared
            by it; 0, or as many as there are: the whole catalogue, which is exact and slower.
        batch_size: Windows of users' histories per step.
        learning_rate: Of Adam.
        epochs: At most.
        patience: Epochs without a better NDCG@10 on held-out events until training ends; what is
            kept is the best.
        val_events: Held-out events that this is told from, spread evenly; 0 = all.
        seed: Decides weights, batches and dropout.
    """

    hidden_channels: int = 64
    length: int = 50
    dropout: float = 0.5
    negatives: int = 1024
    batch_size: int = 256
    learning_rate: float = 3e-3
    epochs: int = 100
    patience: int = 5
    val_events: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        at_least_one = ("hidden_channels", "length", "batch_size", "epochs", "patience")
        check_fields(self, at_least_one, lambda v: v >= 1, "at least 1")
        check_fields(self, ("negatives", "val_events"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("learning_rate",), lambda v: v > 0, "above 0")
        check_fields(self, ("dropout",), lambda v: 0 <= v < 1, "at least 0 and below 1")
        even = "even, for the two heads of attention"
        check_fields(self, ("hidden_channels",), lambda v: v % 2 == 0, even)


class Recommender(nn.Module, ABC):
    """Ranks the items of a catalogue for a user by what the user took before, oldest first.

    A score is the inner product of the state after a history and an item's vector, so that
    :meth:`item_vectors` fill any vector index.  Who has no history is recommended what most users
    take.

    Args:
        config: The method's frozen configuration.

    Attributes:
        offered: The items that a target competes with in training, bool ``[num_items + 1]``; None,
            by default, for all of them.

    Example:
        >>> from graphcl.datasets import simulate_interactions
        >>> from graphcl.recommend import RecommenderConfig, SASRec
        >>> interactions = simulate_interactions(num_users=300, num_items=50).interactions
        >>> model = SASRec(RecommenderConfig(epochs=2)).fit(interactions)
        >>> items, scores = model.rank(interactions.sequence(0), k=5)
        >>> items.shape, scores.shape
        (torch.Size([5]), torch.Size([5]))
    """

    config_type: ClassVar[type] = RecommenderConfig
    reads_times: ClassVar[bool] = False
    config: RecommenderConfig
    count: Tensor  # [num_items + 1], how often each item was taken in training
    timed: Tensor  # whether the training data had times, bool

    def __init__(self, config: Any = None):
        super().__init__()
        self.config = self.config_type() if config is None else config
        self.num_users = self.num_items = 0
        self.item_name: tuple[str, ...] | None = None
        self.offered: Tensor | None = None
        self._frozen: Callable[[Sequences], Tensor] | None = None

    @abstractmethod
    def build(self, features: dict[str, Tensor]) -> None:
        """Create layers for :attr:`num_users` and :attr:`num_items`.

        Args:
            features: What :meth:`features` told of the catalogue.
        """

    def features(self, interactions: Interactions) -> dict[str, Tensor]:
        """Return what the model reads of a catalogue and of training data beside sequences.

        It is kept in the model's file, but it is no weight and no part of its state.

        Raises:
            DataError: The interactions lack something that the model reads.
        """
        return {}

    @abstractmethod
    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        """Return the vectors that scores are taken with, those of padding being zero.

        Shapes:
            - **items**: int64 ``[n]``, 0 for padding; by default all, 0 to ``num_items``.
            - Returns ``[n, D]``
        """

    @abstractmethod
    def states(self, batch: Sequences, last: bool = False) -> Tensor:
        """Return the state after each event, which sees no later one, ``[B, T, D]``.

        Args:
            batch: The events.
            last: Return that after the latest event alone, ``[B, 1, D]``.
        """

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        """Return the named terms of the loss on some sequences, at all positions at once."""
        return {"softmax": self.softmax(self.states(batch), batch.target)}

    def softmax(
        self,
        states: Tensor,
        target: Tensor,
        vectors: Callable[[Tensor | None], Tensor] | None = None,
    ) -> Tensor:
        """Return the cross-entropy of the targets over the catalogue, or over drawn negatives.

        Args:
            states: ``[..., D]``.
            target: int64 ``[...]``, 0 where none is asked for.
            vectors: What :meth:`item_vectors` would return, by default itself.
        """
        vectors = vectors or self.item_vectors
        hidden, y, rows = states.flatten(0, -2), target.flatten(), None
        if self.offered is not None:
            rows = torch.cat([y.new_zeros(1), self.offered[1:].nonzero().squeeze(1) + 1])
            place = torch.zeros_like(self.count).index_put((rows,), torch.arange(len(rows)))
            y = place[y]
        drawn, candidates = self.config.negatives, (len(self.count) if rows is None else len(rows))
        if not 0 < drawn < candidates - 1:
            return catalogue_cross_entropy(hidden, vectors(rows), y)
        negatives = torch.randint(1, candidates, (drawn,)).to(y.device)
        # The vectors of no others are computed; padding's row is there and is the first.
        read, place = torch.cat([y.new_zeros(1), negatives, y]).unique(return_inverse=True)
        _, negatives, y = place.split([1, drawn, len(y)])
        items = vectors(read if rows is None else rows[read])
        log_q = items.new_full((drawn,), 1 / (candidates - 1)).log()
        return sampled_cross_entropy(hidden, items, y, negatives, log_q)

    def begin_epoch(self) -> None:
        """Called before every epoch."""

    def start(self, interactions: Interactions) -> Self:
        """Draw the first weights for the users and items of some training data."""
        seed_everything(self.config.seed, "recommender")
        features = self.features(interactions)
        features["count"] = interactions.item.bincount(minlength=interactions.num_items + 1)
        features["timed"] = torch.tensor(interactions.time is not None)
        self._create(interactions.num_users, interactions.num_items, features)
        self.item_name = interactions.item_name
        return self.eval()

    def _create(self, num_users: int, num_items: int, features: dict[str, Tensor]) -> None:
        self.num_users, self.num_items = num_users, num_items
        for name, value in features.items():
            self.register_buffer(name, value, persistent=False)
        self._features = tuple(features)
        self.build(features)

    @keeps_randomness()
    def fit(
        self,
        train: Interactions,
        val: Interactions | None = None,
        on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Self:
        """Train; the epoch with the best NDCG@10 on held-out events is kept.

        Args:
            train: What to learn from.
            val: Events to hold out, of the same users and items; by default the last one of each
                user in ``train`` who has three, which is then not learned from.
            on_epoch: Called with the epoch (from 1) and the mean of every term of the loss; under
                ``"val"`` is 1 - NDCG@10.

        Raises:
            DataError: The interactions break a rule, or nobody has two events.
            GraphCLError: The loss or a gradient is not finite.
        """
        train.validate()
        if val is None:
            train, val = train.hold_out_last()
        elif val.num_items != train.num_items:
            raise DataError(
                f"{val.name}: num_items is {val.num_items}, but {train.name} has "
                f"{train.num_items}: number the items of both alike"
            )
        else:
            val.validate()
        config = self.config
        batches = TrainingBatches(train, config.length, config.batch_size, config.seed)
        held_out = Histories.held_out(val, train)
        if config.val_events:
            held_out = held_out.some(config.val_events)
        self.start(train)
        fit_best(
            self,
            self.loss,
            batches,
            self.optimizer(),
            lambda: 1 - ndcg(self.ranks(held_out), 10),
            epochs=config.epochs,
            patience=config.patience,
            before_epoch=self.begin_epoch,
            on_epoch=on_epoch,
        )
        return self

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser, which clips gradients."""
        # Not fused, the step of a large table of items reads and writes it several times.
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        return clip_gradients(optimizer)

    @torch.no_grad()
    def ranks(self, histories: Histories, offered: Tensor | None = None) -> Tensor:
        """Return the rank of what followed each history among all that is not in it.

        What is in the history is not recommended again: where it followed all the same, the rank
        is infinite.

        Args:
            histories: With what followed each.
            offered: The items that compete, bool ``[num_items + 1]``; by default all.

        Shapes:
            Returns float64 ``[n]``, from 1; see :func:`graphcl.metrics.ranking.rank_targets`.
        """
        # Histories of one length at a time, so that little is padding.
        order = (histories.end - histories.start).clamp(max=self.config.length).argsort(stable=True)
        by_length = histories.select(order)
        scores = self.scores(by_length, offered)
        ranks = rank_targets(scores, by_length.target, by_length.seen)
        ranks = ranks.masked_fill(by_length.repeats, torch.inf)
        return torch.empty_like(ranks).index_put((order,), ranks)

    def scores(self, histories: Histories, offered: Tensor | None = None) -> ItemScores:
        """Return the scores of all items after each history, a block of them at a time.

        What is not offered scores minus infinity; see :meth:`ranks`.
        """
        self.eval()
        score = self._frozen or self.scorer()

        def block(cases: slice) -> Tensor:
            batch = histories.batch(cases, self.config.length)
            scores = score(batch)
            scores = torch.where(batch.mask[:, -1:], scores, self.count.to(scores))
            return scores if offered is None else scores.masked_fill(~offered, -torch.inf)

        return ItemScores(block, len(histories), self.num_items + 1)

    @property
    def scores_by_product(self) -> bool:
        """Whether the score of an item is the product of its vector with a history's state."""
        return True

    def scorer(self) -> Callable[[Sequences], Tensor]:
        """Return what gives all items' scores ``[B, num_items + 1]`` after each row's last event.

        What a row without events gets is not read.
        """
        items = self.item_vectors()
        return lambda batch: self.states(batch, last=True)[:, 0] @ items.T

    @torch.no_grad()
    def freeze(self) -> Self:
        """Compute once what rankings read of the items, until the model is trained further.

        Where many histories are asked for one at a time, that is most of the work. Weights that
        are loaded into the model afterwards are not seen: freeze it again.
        """
        self.eval()
        self._frozen = self.scorer()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the mode; in that of training nothing is frozen."""
        if mode:
            self._frozen = None
        return super().train(mode)

    @torch.no_grad()
    def rank(
        self,
        history: Interactions | Tensor | Sequence[int],
        k: int = 10,
        *,
        time: Tensor | Sequence[int] | None = None,
        now: int | None = None,
        exclude_seen: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return the k best items to follow a history and their scores, the best first.

        Shapes:
            Of one history, its items in order: int64 ``[k]`` and float ``[k]``.  Of interactions:
            ``[num_users, k]`` each, a row for every user, who is taken for the same as in training.
            Where fewer are left, the rest is item 0 with a score of minus infinity.

        Args:
            history: Items, oldest first, any number of which the last ``length`` are read; or
                interactions with these items.
            k: How many.
            time: Seconds since 1970 of the events of one history, for a method that reads times and
                ranks worse without; interactions have their own.
            now: When the next item is asked for; by default right after the last event.
            exclude_seen: Whether to leave out what is in the history.

        Raises:
            GraphCLError: Nothing was trained yet, or an item is not in the catalogue.
            DataError: The times are not one per event or not in order, or now is before one or
                comes without them; or the interactions break a rule or number the items otherwise.
        """
        if not self.num_items:
            raise GraphCLError(f"{type(self).__name__} has no weights yet; call fit or load first")
        several = isinstance(history, Interactions)
        if isinstance(history, Interactions):
            if time is not None:
                raise DataError("rank: interactions have times of their own; leave out time")
            events = history.validate()
            self._check_names(events)
        else:
            events = _one_history(history, time)
        check_history("rank", events.item, self.num_items)
        if self.reads_times and self.timed and events.time is None and len(events.item):
            warnings.warn(
                f"{type(self).__name__} was trained with times and ranks worse without: pass the "
                "events' times",
                stacklevel=3,  # of whoever called, past torch.no_grad
            )
        asked = Histories.of_users(events, known=several)
        if now is not None and asked.time is None and len(events.item):
            raise DataError("rank: now tells nothing without times of the events; pass these, too")
        if now is not None and asked.time is not None:
            if len(events.item) and now < int(asked.time.max()):
                raise DataError(
                    f"rank: now is {now}, and the last event was at {int(asked.time.max())}; pass "
                    "a later time, or none for right after it"
                )
            asked = replace(asked, time=torch.full_like(asked.time, now))
        items, scores = top_k(self.scores(asked), k, asked.seen if exclude_seen else None)
        return (items, scores) if several else (items[0], scores[0])

    def _check_names(self, interactions: Interactions) -> None:
        """Refuse interactions whose items have other numbers than in training."""
        ours, theirs = self.item_name, interactions.item_name
        if ours is None or theirs is None or ours == theirs:
            return
        for item, (own, other) in enumerate(zip(ours, theirs, strict=False)):
            if own != other:
                raise DataError(
                    f"{interactions.name}: item {item} is {other!r}, and in training it was "
                    f"{own!r}: number the items alike, item_name.index gives a name's number"
                )

    def save(self, path: str | Path) -> None:
        """Write configuration, catalogue and weights to a ``.safetensors`` file."""
        header = {
            "method": type(self).__name__,
            "config": asdict(self.config),
            "num_users": self.num_users,
            "num_items": self.num_items,
            "item_name": self.item_name,
        }
        features = {f"{_FEATURE}{name}": getattr(self, name) for name in self._features}
        save_weights(path, {**self.state_dict(), **features}, header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Inverse of :meth:`save`.

        Raises:
            GraphCLError: The file is not one of this recommender.
        """
        weights, header = load_weights(path)
        features = {
            name.removeprefix(_FEATURE): weights.pop(name)
            for name in list(weights)
            if name.startswith(_FEATURE)
        }
        try:
            model = cls(cls.config_type(**header["config"]))
            if len(features["count"]) != int(header["num_items"]) + 1:
                raise GraphCLError("its counts are of another catalogue")
            model._create(int(header["num_users"]), int(header["num_items"]), features)
            names = header["item_name"]
            model.item_name = None if names is None else tuple(names)
            model.load_state_dict(weights)
        except _MALFORMED as error:
            raise GraphCLError(f"{path}: no saved {cls.__name__}: {error}") from None
        return model.eval()


def _one_history(
    history: Tensor | Sequence[int], time: Tensor | Sequence[int] | None
) -> Interactions:
    """Return the events of somebody unknown."""
    item = _integers("history", history, "items' numbers")
    seconds = None if time is None else _integers("time", time, "seconds since 1970")
    if seconds is not None and len(seconds) != len(item):
        raise DataError(
            f"rank: {len(seconds)} times of {len(item)} events; pass one for each, or none"
        )
    # How many items there are is for the model to check.
    highest = max(1, int(item.max())) if len(item) else 1
    if seconds is None or not len(item):
        return Interactions("history", torch.zeros_like(item), item, 1, highest)
    events = Interactions("history", torch.zeros_like(item), item, 1, highest, time=seconds)
    return events.validate()


def _integers(name: str, values: Tensor | Sequence[int], what: str) -> Tensor:
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise GraphCLError(f"rank: {name} is no list of integers; pass {what}") from None
    if found.dim() != 1:
        raise GraphCLError(
            f"rank: {name} has shape {list(found.shape)}; pass {what} of one history, or "
            "interactions for several"
        )
    if len(found) and (found.is_floating_point() or found.dtype == torch.bool):
        raise GraphCLError(f"rank: {name} holds {found.dtype}; pass {what} as integers")
    return found.long()
