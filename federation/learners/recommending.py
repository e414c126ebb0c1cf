"""The learner for what a platform's users take next: a recommender on its own interactions."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.learners.base import (
    Forward,
    LabelledLearner,
    Penalty,
    Predict,
    Projected,
    Projector,
    copied,
    drawn_for,
    is_named,
    optimizer_for,
)
from federation.learners.platforms import platform_of, platforms
from federation.learners.probe import fit_probe
from federation.scores import GROUPS
from federation.tables import AVERAGING_STRATEGIES, PROTOTYPE_STRATEGIES
from graphcl.datasets import Interactions
from graphcl.metrics.ranking import (
    group_ranks,
    hit_ratio,
    mrr,
    ndcg,
)
from graphcl.recommend import (
    RECOMMENDERS,
    Histories,
    Recommender,
    Sequences,
    SLSRecConfig,
    TrainingBatches,
)
from graphcl.recommend.evaluation import CUTOFFS
from graphcl.recommend.sequences import cut
from graphcl.training import clip_gradients, derive_seed, fit

_SPREAD = 512  # windows that stand for all
_PROBE_DECAY = 0.1
# A row per user, who is on one client alone.
_USER_TABLES = ("network.user_long", "network.user_short")
_ITEM_TABLES = ("network.item",)  # a row per item, which only one catalogue numbers for all


class RecommendNetwork(Projected):
    """A recommender and, behind its states, the projector of the algorithm."""

    network: Recommender

    def forward(self, batch: Sequences) -> Tensor:
        """Return what prototypes are compared with, ``[B, T, embedding_channels]``."""
        projected: Tensor = self.projector(self.network.states(batch))
        return projected


class RecommendLearner(LabelledLearner):
    """Recommendations to the users of one platform.

    A sample is an event with one after it.  Its class, of which prototype algorithms exchange the
    prototypes, is the category of the item that comes next, by its name over all clients; what has
    none is no sample.  Prototypes are compared with the state after the event, behind the
    projector, while items are ranked by the state itself, under every algorithm.

    Tables with a row per user never leave, and neither do those with a row per item where each
    client has a catalogue of its own.

    Args:
        experiment: The whole experiment.
        partition: Which client this is.
        projector: Put behind the states, if the algorithm has one.
    """

    model: RecommendNetwork

    def __init__(self, experiment: Experiment, partition: int, projector: Projector | None = None):
        self.config = experiment
        clients = platforms(experiment)
        self.platform = platform_of(experiment, partition)
        self.num_classes = max(1, clients.num_classes)
        self.embedding_channels = experiment.model.embedding_channels
        self.supervised = experiment.strategy.name in PROTOTYPE_STRATEGIES
        train = self.platform.train
        self.widths = {
            "item-channels": train.num_items if clients.one_catalogue else 1,
            "text-channels": 0 if train.text is None else train.text.size(1),
        }
        self.head = nn.Linear(self.embedding_channels, self.num_classes)
        if _keeps_nothing(experiment):
            super().__init__(*_scratch(experiment, *self.widths.values()))
        else:
            model = self.build(experiment, partition, self.widths, self.num_classes, projector)
            super().__init__(model)

    @staticmethod
    def own_names(experiment: Experiment) -> tuple[str, ...]:
        natural = experiment.partition.scheme == "natural"
        own = (*_USER_TABLES, *_ITEM_TABLES) if natural else _USER_TABLES
        # What the method lacks must not count, or clients would have to keep an empty state.
        weights = _weight_names(experiment)
        return tuple(name for name in own if any(is_named(weight, [name]) for weight in weights))

    def facts(self) -> dict[str, int]:
        train = self.platform.train
        pairs = int((train.user.diff() == 0).sum())
        return {
            "num-examples": self._num_described if self.supervised else pairs,
            "num-classes": self.num_classes,
            **self.widths,
        }

    def new_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        # An L2 penalty would pull rows to zero that no event of this client speaks for, and under
        # Adam as fast as others learn.
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if id(p) not in tables]},
            {"params": [p for p in model.parameters() if id(p) in tables], "weight_decay": 0.0},
        ]
        return clip_gradients(optimizer_for(groups, self.config.train))

    def fit(self, penalty: Penalty) -> dict[str, float]:
        network = self.model.network

        def loss(batch: Sequences) -> dict[str, Tensor]:
            return {**network.loss(batch), **penalty(self._labelled(batch))}

        # A shop's targets do not compete with what it does not sell.  Pooled training has it all.
        pooled = self.config.strategy.name == "pooled"
        network.offered = None if pooled else self.platform.offered
        self.model.train()
        order = int(torch.randint(2**31, ()))  # of the windows, from the round's own stream
        batches = self._batches(order)
        for _ in range(self.config.train.epochs):
            network.begin_epoch()
            terms = fit(loss, batches, self.optimizer, epochs=1)
        return terms

    def _batches(self, seed: int) -> TrainingBatches:
        table = self.config.recommend
        return TrainingBatches(self.platform.train, table.length, table.batch_size, seed)

    def _labelled(self, batch: Sequences) -> Forward:
        """Return what the algorithm may see of samples and their classes."""
        if not self.supervised:
            return self.no_samples()
        label = self.platform.label[batch.target]
        return self.unscored(self.model(batch)[label >= 0], label[label >= 0])

    @torch.no_grad()
    def features(self) -> Forward:
        self.model.eval()
        parts = [self._labelled(batch) for batch in self._described()]
        z, y = (torch.cat([part[i] for part in parts]) for i in (0, 2))
        fit_probe(self.head, z, y, _PROBE_DECAY)
        return Forward(z, self.head(z), y)

    def _described(self) -> list[Sequences]:
        """Return training windows that lie evenly over the users, few where there are many."""
        batches = self._batches(seed=0)
        bounds = batches.first, batches.end, batches.counted
        count = min(_SPREAD, len(batches.first))
        index = torch.arange(count) * len(batches.first) // count
        return [
            cut(batches.interactions, *(bound[part] for bound in bounds))
            for part in index.split(batches.batch_size)
        ]

    @cached_property
    def _num_described(self) -> int:
        label = self.platform.label
        return sum(int((label[batch.target] >= 0).sum()) for batch in self._described())

    @torch.no_grad()
    def evaluate(self, predict: Predict) -> dict[str, float]:
        val, test = self._histories
        network, offered = self.model.network, self.platform.offered
        ranks = network.ranks(test, offered)
        groups = dict(zip(GROUPS, self.platform.groups, strict=False))
        metrics = {
            "num-examples": len(test),
            "val-examples": len(val),
            "val-ndcg-10": _mean(ndcg, network.ranks(val, offered), 10),
            **{f"ndcg-{k}": _mean(ndcg, ranks, k) for k in CUTOFFS},
            **{f"hit-ratio-{k}": _mean(hit_ratio, ranks, k) for k in CUTOFFS},
            "mrr": _mean(mrr, ranks, None),
        }
        metrics["test-loss"] = 1 - metrics["ndcg-10"]
        for name, found in group_ranks(ranks, test.target, groups).items():
            metrics[f"hit-ratio-10-{name}"] = hit_ratio(found, 10)
            metrics[f"{name}-examples"] = len(found)
        return metrics

    @cached_property
    def _histories(self) -> tuple[Histories, Histories]:
        """The cases to validate and to test on."""
        train, val, test = self.platform.own
        return Histories.held_out(val, train), Histories.held_out(test, train, val)

    @staticmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> RecommendNetwork:
        """Build the network of one client, or the server's; see :meth:`Learner.build`.

        The server's knows no user and, where each client has a catalogue of its own, no item; all
        clients start from its weights, but for those that stay.  Under pooled training all have
        the network of the whole.  Nor does the server's know what is told of items: where their
        vectors cross, FAERec's are drawn at first; under pooled training they are the texts'
        components.
        """
        seed = experiment.run.seed
        items, text = (channels[f"{kind}-channels"] for kind in ("item", "text"))
        if experiment.strategy.name == "pooled":
            train = platform_of(experiment, 0).train
            network = _network(experiment, derive_seed(seed, "platform", "pooled"), train)
        elif client == "server":
            network = _network(experiment, seed, _nobody(items, text))
        else:
            train = platform_of(experiment, int(client)).train
            network = _network(experiment, derive_seed(seed, "platform", client), train)
            network.load_state_dict(_shared(experiment, items, text), strict=False)
        with drawn_for(experiment, client):
            width = experiment.model.embedding_channels
            return RecommendNetwork(network, None if projector is None else projector(width))


def _keeps_nothing(experiment: Experiment) -> bool:
    """Say whether all that a client knows comes with every message."""
    kind = RECOMMENDERS[experiment.recommend.method]
    return (
        experiment.strategy.name in AVERAGING_STRATEGIES
        and not experiment.strategy.personal_names
        and not RecommendLearner.own_names(experiment)
        and kind.features is Recommender.features
    )


@lru_cache(maxsize=1)
def _scratch(
    experiment: Experiment, num_items: int, text_channels: int
) -> tuple[RecommendNetwork, dict[str, Tensor]]:
    """Return a network, and its state, that all clients of this process take turns to fill.

    With a user per client, networks of their own would take a hundred times the data's room.
    """
    network = _network(experiment, experiment.run.seed, _nobody(num_items, text_channels))
    model = RecommendNetwork(network)
    return model, copied(model.state_dict())


@lru_cache(maxsize=4)
def _weight_names(experiment: Experiment) -> tuple[str, ...]:
    network = _network(experiment, experiment.run.seed, _nobody(1, 1))
    return tuple(f"network.{name}" for name in network.state_dict())


@lru_cache(maxsize=4)
def _shared(experiment: Experiment, num_items: int, text_channels: int) -> dict[str, Tensor]:
    """Return the weights that all clients begin with."""
    network = _network(experiment, experiment.run.seed, _nobody(num_items, text_channels))
    own, weights = RecommendLearner.own_names(experiment), network.state_dict()
    return {name: w for name, w in weights.items() if not is_named(f"network.{name}", own)}


def _network(experiment: Experiment, seed: int, train: Interactions) -> Recommender:
    """Return a recommender that has learned nothing yet."""
    table = experiment.recommend
    kind = RECOMMENDERS[table.method]
    config = kind.config_type(
        hidden_channels=experiment.model.embedding_channels,
        dropout=experiment.model.dropout,
        length=table.length,
        negatives=table.negatives,
        seed=seed,
        **({"gap": table.gap} if issubclass(kind.config_type, SLSRecConfig) else {}),
    )
    with torch.random.fork_rng(devices=[]):
        return kind(config).start(train)


def _nobody(num_items: int, text_channels: int) -> Interactions:
    """Return the interactions of one user who takes one item, for the server, which has none."""
    return Interactions(
        name="server",
        user=torch.zeros(2, dtype=torch.long),
        item=torch.ones(2, dtype=torch.long),
        num_users=1,
        num_items=num_items,
        time=torch.arange(2),
        text=torch.zeros(num_items + 1, text_channels) if text_channels else None,
    )


def _mean(metric: Any, ranks: Tensor, k: int | None) -> float:
    """Return a metric of ranking; 0 where there is no case."""
    return metric(ranks, k) if len(ranks) else 0.0
