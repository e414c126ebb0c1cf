"""Figures of a split against a loop, what popularity ranks, and models by their files."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graphcl.datasets import Interactions, InteractionSplit, simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics.ranking import ItemScores, rank_targets
from graphcl.recommend import (
    RECOMMENDERS,
    Histories,
    Popularity,
    PopularityConfig,
    Recommender,
    RecommenderConfig,
    SASRec,
    evaluate_split,
    load_recommender,
)
from graphcl.training import save_weights

CONFIG = RecommenderConfig(hidden_channels=16, length=8, dropout=0.2, epochs=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    """Simulated interactions in which every third user takes the first item once more."""
    found = simulate_interactions(90, 40, num_clusters=4, seed=3).interactions
    item, start, end = found.item.clone(), found.indptr[:-1], found.indptr[1:]
    item[end[::3] - 1] = item[start[::3]]
    return replace(found, item=item).validate()


def slow_figures(
    model: Recommender, split: InteractionSplit
) -> tuple[dict[str, dict[str, float]], dict[str, int], int]:
    """Return metrics, events and repeats by the words of the protocol, an event at a time."""
    taken: dict[int, list[int]] = {}
    for part in (split.train, split.val):
        for user, item in zip(part.user.tolist(), part.item.tolist(), strict=True):
            taken.setdefault(user, []).append(item)
    counts = {i: split.train.item.tolist().count(i) for i in range(1, model.num_items + 1)}
    seen_items = sorted((i for i in counts if counts[i]), key=lambda i: (-counts[i], i))
    head = set(seen_items[: round(0.2 * len(seen_items))])
    ranks: dict[str, list[float]] = {"all": [], "head": [], "tail": [], "cold": []}
    repeats = 0
    for user, item in zip(split.test.user.tolist(), split.test.item.tolist(), strict=True):
        history = taken.setdefault(user, [])
        rank = math.inf
        if item in history:
            repeats += 1
        else:
            items, scores = (found.tolist() for found in model.rank(history, model.num_items))
            own = scores[items.index(item)]
            rank = 1 + sum(score > own for score in scores) + (scores.count(own) - 1) / 2
        group = "head" if item in head else "tail" if counts[item] else "cold"
        for name in ("all", group):
            ranks[name].append(rank)
        history.append(item)
    metrics = {
        group: {
            **{f"HR@{k}": sum(r <= k for r in of) / len(of) for k in (5, 10, 20)},
            **{
                f"NDCG@{k}": sum(1 / math.log2(r + 1) for r in of if r <= k) / len(of)
                for k in (5, 10, 20)
            },
            "MRR": sum(1 / r for r in of) / len(of),
        }
        for group, of in ranks.items()
        if of
    }
    return metrics, {group: len(of) for group, of in ranks.items() if of}, repeats


@pytest.mark.parametrize("kind", ["leave-one-out", "time"])
def test_figures_are_those_of_a_loop_and_a_repeated_item_is_a_miss(
    interactions: Interactions, kind: str
) -> None:
    split = interactions.leave_one_out()
    if kind == "time":
        split = interactions.split_by_time(0.1, 0.1)
        # An item that training has not seen, and a user who has no history.
        cold, new = split.test.item[-1], split.test.user[0]
        train, val = (
            part.select((part.item != cold) & (part.user != new))
            for part in (split.train, split.val)
        )
        split = InteractionSplit(train, val, split.test)
    model = SASRec(CONFIG).start(split.train)
    found = evaluate_split(model, split)
    metrics, events, repeats = slow_figures(model, split)
    assert repeats > 5
    assert ("cold" in events) == (kind == "time")
    assert found.repeats == repeats
    assert found.events == events
    assert found.metrics.keys() == metrics.keys()
    for group, values in metrics.items():
        assert found.metrics[group] == pytest.approx(values)


def test_a_list_of_all_items_hits_all_but_the_repeats(interactions: Interactions) -> None:
    split = interactions.leave_one_out()
    found = evaluate_split(SASRec(CONFIG).start(split.train), split, cutoffs=[40])
    assert list(found.metrics["all"]) == ["HR@40", "NDCG@40", "MRR"]
    assert found.metrics["all"]["HR@40"] == pytest.approx(1 - found.repeats / found.events["all"])


def test_training_beats_popularity_and_stays_below_the_best_there_can_be() -> None:
    simulation = simulate_interactions(500, 80, num_clusters=8, seed=2)
    split = simulation.interactions.leave_one_out()
    asked = Histories.held_out(split.test, split.train, split.val)
    last = asked.interactions.item[asked.end - 1]
    chance = simulation.next_item(last)
    truth = ItemScores(lambda users: chance[users], len(asked), 81)
    model = SASRec(replace(CONFIG, epochs=15)).fit(split.train, split.val)
    best, reached, popular = (
        gains(ranks)
        for ranks in (
            rank_targets(truth, asked.target, asked.seen),
            model.ranks(asked),
            Popularity().fit(split.train).ranks(asked),
        )
    )
    assert reached.mean() > 1.5 * popular.mean()
    beyond = reached - best
    assert beyond.mean() < 2 * beyond.std() / len(beyond) ** 0.5
    assert evaluate_split(model, split).metrics["all"]["NDCG@10"] == pytest.approx(
        float(reached.mean())
    )


def gains(ranks: Tensor) -> Tensor:
    return (ranks <= 10) / (ranks + 1).log2()


def test_popularity_ranks_by_counts_whoever_asks(interactions: Interactions) -> None:
    model = Popularity().fit(interactions)
    counts = [interactions.item.tolist().count(i) for i in range(1, 41)]
    order = sorted(range(1, 41), key=lambda i: (-counts[i - 1], i))
    for history in ([], [order[0]], [3, 7, order[2]]):
        items, scores = model.rank(history, 40)
        left = [i for i in order if i not in history]
        assert items.tolist()[: len(left)] == left
        assert scores.tolist()[: len(left)] == [counts[i - 1] for i in left]


def test_popularity_has_nothing_to_set_and_holds_nothing_out(interactions: Interactions) -> None:
    assert fields(PopularityConfig) == ()
    assert list(Popularity().fit(interactions).parameters()) == []
    assert int(Popularity().fit(interactions).count.sum()) == len(interactions)
    with pytest.raises(DataError, match="num_users"):
        Popularity().fit(replace(interactions, num_users=0))


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_a_file_tells_which_recommender_it_holds(
    name: str, interactions: Interactions, tmp_path: Path
) -> None:
    split = interactions.leave_one_out()
    model = RECOMMENDERS[name]().start(split.train)
    model.save(tmp_path / "model.safetensors")
    again = load_recommender(tmp_path / "model.safetensors")
    assert type(again) is RECOMMENDERS[name]
    assert again.config == model.config
    assert evaluate_split(again, split) == evaluate_split(model, split)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, {"config": {}})
    with pytest.raises(
        GraphCLError, match=r"other.safetensors: no saved recommender: .* names the method"
    ):
        load_recommender(tmp_path / "other.safetensors")
    with pytest.raises(GraphCLError, match=r"none.safetensors: no saved model"):
        load_recommender(tmp_path / "none.safetensors")
