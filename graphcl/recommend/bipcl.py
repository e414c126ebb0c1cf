"""BIPCL: intents on both sides, and contrast between perturbed views (Zhang et al., 2026).

From the paper (arXiv 2604.02833, of which the abstract and summaries could be read): vectors of
items that spread over several hops of a co-occurrence graph; prototypes of intents on the side of
items and on that of users, injected into the vectors of both; views by a bounded noise that follows
the direction of the items' vectors, without masking, cropping or dropped edges; contrast of
interactions and of intents; one training from end to end.

Completed: the graph's weights from GCL4SR and its propagation from LightGCN; the assignment to
prototypes and the pairs that are contrasted from BIGCF; the noise, added once after propagation,
from SimGCL; the encoder and the softmax over the catalogue from SASRec. Ours: targets stand for the
rows of a batch, so that equal targets are no negatives of each other, and the temperature of the
prototypes is 1. Left out: BIGCF's contrast of a sequence with its target, which a softmax over the
catalogue has already.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from graphcl.contrast import info_nce
from graphcl.datasets import Interactions
from graphcl.errors import check_fields
from graphcl.recommend.baselines import item_table
from graphcl.recommend.encoders import TransformerEncoder
from graphcl.recommend.intents import Intents
from graphcl.recommend.item_graph import co_occurrence, normalized_adjacency, propagate
from graphcl.recommend.recommender import Recommender, RecommenderConfig
from graphcl.recommend.sequences import Sequences


@dataclass(frozen=True)
class BIPCLConfig(RecommenderConfig):
    """Hyper-parameters of :class:`BIPCL`; the paper's own could not be read.

    Attributes:
        hops: How far items spread over the graph; 0 = not at all.
        window: Events between two items that the graph joins, see
            :func:`graphcl.recommend.item_graph.co_occurrence`.
        num_intents: Prototypes of items, and as many of users; 0 = without intents.
        eps: Length of the noise that makes a view.
        temperature: Of the contrast.
        interaction_weight: Of the contrast of sequences and of items.
        intent_weight: Of the contrast of their intents. If both weights are 0, no view is made.
        prototype_decay: Weight of the prototypes' squares.
    """

    hops: int = 2
    window: int = 3
    num_intents: int = 32
    eps: float = 0.1
    temperature: float = 0.2
    interaction_weight: float = 0.1
    intent_weight: float = 0.1
    prototype_decay: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero = ("hops", "num_intents", "eps", "interaction_weight", "intent_weight")
        check_fields(self, ("window",), lambda v: v >= 1, "at least 1")
        check_fields(self, (*at_least_zero, "prototype_decay"), lambda v: v >= 0, "at least 0")
        check_fields(self, ("temperature",), lambda v: v > 0, "above 0")


class BIPCL(Recommender):
    """Self-attention over items of a co-occurrence graph, with intents of items and of users.

    With S the items' vectors after propagation, an item is ``V = S + intent(S)`` and the state of a
    sequence ``s = h + intent(h)``, h being what the encoder says of the items before. A view has
    ``S + noise`` for S.

    Source:
        Zhang, Lin and Rao, arXiv 2604.02833; see the head of this file for what is completed.
    """

    config_type: ClassVar[type] = BIPCLConfig
    config: BIPCLConfig

    def features(self, interactions: Interactions) -> dict[str, Tensor]:
        edge_index, edge_weight = co_occurrence(interactions, self.config.window)
        return {"edge_index": edge_index, "edge_weight": edge_weight}

    def build(self, features: dict[str, Tensor]) -> None:
        config, channels = self.config, self.config.hidden_channels
        self.item = item_table(self.num_items, channels)
        self.item_intent = Intents(config.num_intents, channels)
        self.user_intent = Intents(config.num_intents, channels)
        self.encoder = TransformerEncoder(channels, config.length, config.dropout)
        edges, weights = features["edge_index"], features["edge_weight"]
        self.operator = normalized_adjacency(edges, weights, self.num_items + 1)

    def structural_vectors(self) -> Tensor:
        """Return the items' vectors after propagation, ``[num_items + 1, D]``."""
        table = self.item.weight
        if (self.operator.device, self.operator.dtype) != (table.device, table.dtype):
            self.operator = self.operator.to(table.device, table.dtype)
        return propagate(self.operator, table, self.config.hops)

    def item_vectors(self, items: Tensor | None = None) -> Tensor:
        return self._with_intents(self.structural_vectors(), items)

    def _with_intents(self, structural: Tensor, items: Tensor | None) -> Tensor:
        if items is None:
            items = torch.arange(len(structural), device=structural.device)
        else:
            structural = structural.index_select(0, items)
        # Padding has no intent, and nothing trains its row of the table.
        return (structural + self.item_intent(structural)) * (items > 0)[:, None]

    def states(self, batch: Sequences, last: bool = False) -> Tensor:
        return self._states(batch, self.structural_vectors(), last)

    def scorer(self) -> Callable[[Sequences], Tensor]:
        structural = self.structural_vectors()  # once for all blocks of a ranking
        items = self._with_intents(structural, None)
        return lambda batch: self._states(batch, structural, last=True)[:, 0] @ items.T

    def _states(self, batch: Sequences, structural: Tensor, last: bool = False) -> Tensor:
        ids, place = batch.item.unique(return_inverse=True)
        read = embedding(place, self._with_intents(structural, ids))
        hidden = self.encoder(read, batch.mask, last)
        states: Tensor = hidden + self.user_intent(hidden)
        return states

    def loss(self, batch: Sequences) -> dict[str, Tensor]:
        config, structural = self.config, self.structural_vectors()
        states = self._states(batch, structural)
        vectors = partial(self._with_intents, structural)
        terms = {"softmax": self.softmax(states, batch.target, vectors)}
        if config.interaction_weight or config.intent_weight:
            interaction, intent = self._contrast(batch, structural)
            terms["interaction"] = config.interaction_weight * interaction
            terms["intent"] = config.intent_weight * intent
        prototypes = (self.item_intent.prototype, self.user_intent.prototype)
        squares = torch.stack([prototype.square().sum() for prototype in prototypes])
        return {**terms, "prototype": config.prototype_decay * squares.sum()}

    def _contrast(self, batch: Sequences, structural: Tensor) -> tuple[Tensor, Tensor]:
        """Return the contrast of interactions and of intents between two views.

        Noise and intents act on each row alone, so a view needs no other items than the batch's.
        """
        read = torch.cat([batch.item, batch.target[:, -1:]], dim=1)
        ids, place = read.unique(return_inverse=True)
        structural = structural.index_select(0, ids)
        views = [self._view(structural, place, batch.mask) for _ in range(2)]
        rows = rows_of_distinct_targets(batch)
        sequence, item, user_intent, item_intent = (
            info_nce(
                one[rows],
                other[rows],
                temperature=self.config.temperature,
                intra_view_negatives=False,
                symmetric=False,
            )
            for one, other in zip(*views, strict=True)
        )
        return sequence + item, user_intent + item_intent

    def _view(self, structural: Tensor, place: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Return states, the items that follow them, and the intents of both, each ``[B, D]``.

        Shapes:
            structural: ``[M, D]``; place: int64 ``[B, T + 1]``, the rows in it of a sequence's
            items and then of its last target; mask: bool ``[B, T]``
        """
        structural = perturb(structural, self.config.eps)
        intent = self.item_intent(structural)
        item = embedding(place, structural + intent)
        hidden = self.encoder(item[:, :-1], mask, last=True)[:, 0]
        user_intent = self.user_intent(hidden)
        return hidden + user_intent, item[:, -1], user_intent, embedding(place[:, -1], intent)


def perturb(x: Tensor, eps: float) -> Tensor:
    """Move each vector by a random step of length ``eps``, away from 0 in every coordinate.

    Signs stay, and so does a coordinate that is 0, which shortens the step. No gradient passes the
    step.

    Shapes:
        x: ``[N, D]``, as is what is returned.

    Source:
        Yu et al., Are Graph Augmentations Necessary?, SIGIR 2022 (SimGCL), eq. 7.
    """
    return x + eps * x.sign() * normalize(torch.rand_like(x), dim=-1)


def rows_of_distinct_targets(batch: Sequences) -> Tensor:
    """Return the first row of each item that is the target after a sequence's last event.

    Shapes:
        Returns int64 ``[R]``.
    """
    target = batch.target[:, -1] * batch.mask[:, -1]
    target, order = target.sort(stable=True)
    return order[target.diff(prepend=target.new_zeros(1)) > 0]
