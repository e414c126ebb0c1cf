"""How well a recommender ranks what a split holds out to test on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graphcl.datasets import InteractionSplit
from graphcl.metrics.ranking import group_ranks, hit_ratio, mrr, ndcg
from graphcl.recommend.recommender import Recommender
from graphcl.recommend.sequences import Histories

CUTOFFS = (5, 10, 20)


@dataclass(frozen=True)
class SplitFigures:
    """Metrics of full rankings of a split's test events, by the group of items a target is in.

    The groups are ``"all"`` and those of :meth:`Interactions.item_groups` in training, ``"head"``,
    ``"tail"`` and ``"cold"``; one without a test event is left out.

    Attributes:
        metrics: By group: ``"HR@5"``, ``"NDCG@5"`` and so on for each cutoff, and ``"MRR"``.
        events: Test events, by group.
        repeats: Test events whose item is in its history already; each is a miss.
    """

    metrics: dict[str, dict[str, float]]
    events: dict[str, int]
    repeats: int


def evaluate_split(
    model: Recommender, split: InteractionSplit, cutoffs: Sequence[int] = CUTOFFS
) -> SplitFigures:
    """Rank the whole catalogue for every test event and measure where its item stands.

    What is in the history, ``train`` and ``val`` included, is not recommended again.  A test item
    that is in it therefore counts as a miss, its rank as infinite.

    Args:
        model: Trained on ``split.train``.
        split: All events before a test event are its history.
        cutoffs: Where the lists of HR and NDCG end; MRR is of the whole list.

    Raises:
        GraphCLError: A score is NaN, or a cutoff is not positive.
    """
    asked = Histories.held_out(split.test, split.train, split.val)
    ranks = model.ranks(asked)
    everything = torch.ones(split.train.num_items + 1, dtype=torch.bool)
    groups = {"all": everything, **split.train.item_groups()._asdict()}
    chosen = group_ranks(ranks, asked.target, groups)
    metrics = {
        group: {
            **{f"HR@{k}": hit_ratio(of, k) for k in cutoffs},
            **{f"NDCG@{k}": ndcg(of, k) for k in cutoffs},
            "MRR": mrr(of),
        }
        for group, of in chosen.items()
    }
    events = {group: len(of) for group, of in chosen.items()}
    return SplitFigures(metrics, events, int(asked.repeats.sum()))
