"""What every recommender keeps to: causal, blind to padding, the same again from its file."""

import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from graphcl.datasets import Interactions, simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics.ranking import ndcg
from graphcl.recommend import (
    BIPCL,
    FAERec,
    GRU4Rec,
    Histories,
    Recommender,
    RecommenderConfig,
    SASRec,
    SLSRec,
    TrainingBatches,
)

METHODS: list[type[Recommender]] = [BIPCL, FAERec, GRU4Rec, SASRec, SLSRec]
SETTINGS = {
    "hidden_channels": 16,
    "length": 8,
    "dropout": 0.2,
    "epochs": 8,
    "learning_rate": 2e-2,
}
CONFIG = RecommenderConfig(**SETTINGS)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return simulate_interactions(300, 60, seed=1).interactions


@pytest.fixture(scope="module", params=METHODS, ids=lambda method: method.__name__)
def model(request: pytest.FixtureRequest, interactions: Interactions) -> Recommender:
    return small(request.param).fit(interactions)


def small(method: type[Recommender]) -> Recommender:
    """Return a small one of a method, to be trained in a second."""
    return method(method.config_type(**SETTINGS))


def test_training_beats_popularity_on_events_that_were_held_out(
    model: Recommender, interactions: Interactions
) -> None:
    split = interactions.leave_one_out()
    trained = small(type(model)).fit(split.train, split.val)
    test = Histories.held_out(split.test, split.train, split.val)
    ranks = trained.ranks(test)
    counts = trained.count.double()
    ahead = (counts[1:] > counts[test.target][:, None]).sum(1) + 1
    assert ndcg(ranks, 10) > 1.5 * ndcg(ahead.double(), 10)


def test_a_state_sees_no_later_event(model: Recommender, interactions: Interactions) -> None:
    batch = Histories.of_users(interactions).batch(slice(0, 20), 8)
    before = model.states(batch)
    batch.item[:, -1] = batch.item[:, -1] % model.num_items + 1
    after = model.states(batch)
    full = batch.mask.all(1)
    assert torch.allclose(before[full, :-1], after[full, :-1], atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-3)


@torch.no_grad()
def test_padding_changes_nothing(model: Recommender, interactions: Interactions) -> None:
    short = interactions.sequence(0)[:3]
    item = torch.cat([short, torch.arange(1, 9)])
    users = Interactions("two", torch.tensor([0] * 3 + [1] * 8), item, 2, 60)
    asked = Histories.of_users(users, known=False)
    beside, alone = (model.states(asked.batch(slice(0, n), 8)) for n in (2, 1))
    assert beside.shape[1] == 8
    assert alone.shape[1] == 3
    assert torch.allclose(beside[0, -3:], alone[0], atol=1e-5)


@torch.no_grad()
def test_a_part_of_what_a_model_says_is_that_part(
    model: Recommender, interactions: Interactions
) -> None:
    batch = Histories.of_users(interactions).batch(slice(0, 20), 8)
    last, states = model.states(batch, last=True), model.states(batch)
    torch.testing.assert_close(last, states[:, -1:], atol=1e-5, rtol=1e-5)
    some = torch.tensor([0, 7, 3, 60, 7])
    vectors = model.item_vectors()
    torch.testing.assert_close(model.item_vectors(some), vectors[some], atol=1e-6, rtol=1e-5)
    assert not vectors[0].any()


def test_ranks_come_in_the_order_of_the_histories(
    model: Recommender, interactions: Interactions
) -> None:
    split = interactions.leave_one_out()
    asked = Histories.held_out(split.test, split.train)
    some = torch.tensor([5, 0, 9])
    assert model.ranks(asked)[some].equal(model.ranks(asked.select(some)))


def test_only_the_latest_events_are_read_but_none_that_was_seen_is_recommended(
    model: Recommender,
) -> None:
    latest = list(range(20, 28))
    short, long = model.rank(latest, 60, exclude_seen=False), model.rank([1, 2, 3, *latest], 60)
    assert not set(long[0].tolist()) & {1, 2, 3, *latest}
    order = [item for item in short[0].tolist() if item not in {1, 2, 3, *latest, 0}]
    assert [item for item in long[0].tolist() if item] == order


def test_times_of_one_history_are_those_of_interactions(
    model: Recommender, interactions: Interactions
) -> None:
    assert interactions.time is not None
    rows = slice(0, int(interactions.indptr[1]))
    item, time = interactions.item[rows], interactions.time[rows]
    now = int(time[-1]) + 86_400
    told = model.rank(item, 5, time=time, now=now)[1]
    one = Interactions("one", torch.zeros_like(item), item, 1, 60, time=time)
    asked = replace(
        Histories.of_users(one, known=False), time=torch.tensor([now]), target=torch.tensor([1])
    )
    batch = asked.batch(slice(0, 1), 8)
    with torch.no_grad():
        wanted = model.states(batch)[0, -1] @ model.item_vectors().T
    wanted[[0, *item.tolist()]] = -torch.inf
    assert torch.allclose(told, wanted.topk(5).values, atol=1e-5)
    with pytest.raises(DataError, match="time"):
        model.rank(item, 5, time=time[1:])
    with pytest.raises(DataError, match="time"):
        model.rank(item, 5, time=time.flip(0))


def test_without_a_history_what_most_users_take_comes_first(model: Recommender) -> None:
    items, _ = model.rank([], 3)
    assert items.tolist() == model.count.argsort(descending=True, stable=True)[:3].tolist()


def test_a_saved_model_ranks_as_before(
    model: Recommender, interactions: Interactions, tmp_path: Path
) -> None:
    model.save(tmp_path / "model.safetensors")
    again = type(model).load(tmp_path / "model.safetensors")
    assert again.config == model.config
    assert again.item_name == interactions.item_name
    for first, second in zip(model.rank(interactions, 5), again.rank(interactions, 5), strict=True):
        assert first.equal(second)


def test_the_seed_decides_everything(interactions: Interactions) -> None:
    one, two = (SASRec(CONFIG).fit(interactions).item_vectors() for _ in range(2))
    assert one.equal(two)


def test_the_callers_own_random_numbers_stay(interactions: Interactions) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    small(SASRec).fit(interactions)
    assert torch.rand(4).equal(expected)


def test_shared_negatives_learn_too(interactions: Interactions) -> None:
    config = RecommenderConfig(hidden_channels=16, epochs=4, learning_rate=1e-2, negatives=30)
    split = interactions.leave_one_out()
    test = Histories.held_out(split.test, split.train, split.val)
    sampled = SASRec(config).fit(split.train, split.val).ranks(test)
    untrained = SASRec(config).start(split.train).ranks(test)
    assert ndcg(sampled, 10) > 2 * ndcg(untrained, 10)


@pytest.mark.parametrize("negatives", [0, 10])
def test_what_is_not_offered_is_not_competed_with(
    interactions: Interactions, negatives: int
) -> None:
    model = SASRec(RecommenderConfig(hidden_channels=16, negatives=negatives, dropout=0.0))
    model.start(interactions)
    (batch,) = TrainingBatches(interactions, 50, 1000, 0)
    offered = torch.arange(61) <= 30
    batch.target[batch.target > 30] = 0
    model.offered = offered
    torch.manual_seed(0)
    (loss,) = model.loss(batch).values()
    loss.backward()
    taken = torch.cat([batch.item.unique(), batch.target.unique()]).unique()
    others = torch.ones(61, dtype=torch.bool).index_fill(0, taken, False) & ~offered
    gradient = model.item.weight.grad.abs().sum(1)
    assert gradient[others].sum() == 0
    if not negatives:
        states = model.states(batch)[batch.target > 0]
        logits = states @ model.item_vectors()[1:31].T
        wanted = torch.nn.functional.cross_entropy(logits, batch.target[batch.target > 0] - 1)
        assert torch.allclose(loss, wanted, atol=1e-5)


def test_padding_keeps_its_row_of_zeros(model: Recommender) -> None:
    assert model.item_vectors()[0].abs().max() == 0


def test_bad_input_is_refused_by_its_place(model: Recommender, interactions: Interactions) -> None:
    with pytest.raises(GraphCLError, match=r"history\[1\] is 61"):
        model.rank([1, 61])
    with pytest.raises(GraphCLError, match=r"history holds torch\.float32; pass items' numbers"):
        model.rank([1.0, 2.5])  # type: ignore[list-item]
    for history, time in (([], [5]), ([1, 2], [5]), ([1], [])):
        with pytest.raises(DataError, match=f"{len(time)} times of {len(history)} events"):
            model.rank(history, time=time)
    with pytest.raises(DataError, match="now is 89, and the last event was at 90"):
        model.rank([1, 2], time=[60, 90], now=89)
    with pytest.raises(DataError, match="now tells nothing without times"):
        model.rank([1, 2], now=90)
    with pytest.raises(GraphCLError, match="no weights yet; call fit or load first"):
        small(type(model)).rank([1])
    other = simulate_interactions(50, 40).interactions
    with pytest.raises(DataError, match=r"num_items is 40, but .* has 60"):
        small(type(model)).fit(interactions, other)
    with pytest.raises(GraphCLError, match="dropout is 1"):
        RecommenderConfig(dropout=1)
    with pytest.raises(GraphCLError, match="hidden_channels is 5, must be even"):
        RecommenderConfig(hidden_channels=5)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([[1, 2], [3, 4]], r"shape \[2, 2\]; pass items' numbers of one history"),
        ([[1, 2], [3]], "no list of integers"),
        (["a"], "no list of integers"),
        ([10**30], "no list of integers"),
        (None, "no list of integers"),
        (3, r"shape \[\]"),
    ],
)
def test_what_is_no_history_is_refused(history, message) -> None:
    model = small(SASRec).start(simulate_interactions(30, 40).interactions)
    with pytest.raises(GraphCLError, match=message):
        model.rank(history)
    with pytest.raises(GraphCLError, match=r"time holds torch\.float32"):
        model.rank([1, 2], time=[1.5, 2.9])  # type: ignore[list-item]


def test_interactions_are_those_that_the_model_knows(
    model: Recommender, interactions: Interactions
) -> None:
    with pytest.raises(DataError, match="have times of their own; leave out time"):
        model.rank(interactions, time=[1])
    item, user = interactions.item.flip(0), interactions.user.flip(0)
    backwards = replace(interactions, item=item, user=user)
    with pytest.raises(DataError, match="user"):
        model.rank(backwards)
    nothing = replace(
        interactions, user=interactions.user[:0], item=interactions.item[:0], time=torch.arange(0)
    )
    with pytest.raises(DataError, match="there is no interaction"):
        model.rank(nothing, k=3)
    with pytest.raises(DataError, match="there is no interaction"):
        small(type(model)).fit(interactions, nothing)


def test_a_frozen_model_ranks_as_before_until_it_is_trained_further(
    model: Recommender, interactions: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deepcopy(model)
    before = model.rank(interactions, k=5)
    calls, scorer = [], type(model).scorer
    monkeypatch.setattr(type(model), "scorer", lambda own: calls.append(own) or scorer(own))
    assert model.freeze() is model
    frozen = [model.rank(interactions, k=5) for _ in range(3)][-1]
    assert len(calls) == 1
    assert frozen[0].equal(before[0])
    assert frozen[1].equal(before[1])
    model.train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    assert not model.rank(interactions, k=5)[1].equal(before[1])
    assert len(calls) == 2


@pytest.mark.parametrize("method", [SASRec, SLSRec])
def test_who_reads_times_asks_for_them(interactions: Interactions, method, tmp_path: Path) -> None:
    """Alone where the training data had times, and a saved model asks, too."""
    small(method).start(interactions).save(tmp_path / "model.safetensors")
    timed, timeless = method.load(tmp_path / "model.safetensors"), small(method)
    timeless.start(replace(interactions, time=None))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        timed.rank([1, 2], time=[60, 90])
        timed.rank([])
        timeless.rank([1, 2])
        assert not told
        timed.rank([1, 2])
    assert len(told) == (method is SLSRec)
    assert all("pass the events' times" in str(one.message) for one in told)
    assert all(one.filename == __file__ for one in told)


def test_items_with_other_numbers_are_refused_by_the_first(interactions: Interactions) -> None:
    names = ("", *(f"i{item}" for item in range(1, 61)))
    model = small(SASRec).start(replace(interactions, item_name=names))
    assert model.rank(interactions, k=2)[0].shape == (300, 2)  # without names there is nothing
    moved = replace(interactions, name="today", item_name=("", "i2", "i1", *names[3:]))
    with pytest.raises(DataError, match="today: item 1 is 'i2', and in training it was 'i1'"):
        model.rank(moved)


def test_an_empty_history_may_have_no_times_either(model: Recommender) -> None:
    for now in (None, 90):
        items, scores = model.rank([], k=4, time=[], now=now)
        assert items.equal(model.rank([], k=4)[0])
        assert scores.isfinite().all()


@pytest.mark.parametrize("change", ["absent", "short"])
def test_a_file_without_its_catalogue_is_refused(
    model: Recommender, tmp_path: Path, change: str
) -> None:
    model.save(tmp_path / "whole.safetensors")
    with safe_open(tmp_path / "whole.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "whole.safetensors")
    counts = tensors.pop("catalogue/count")
    if change == "short":
        tensors["catalogue/count"] = counts[:-1].clone()
    save_file(tensors, tmp_path / "less.safetensors", metadata)
    with pytest.raises(GraphCLError, match=f"no saved {type(model).__name__}: .*count"):
        type(model).load(tmp_path / "less.safetensors")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(GraphCLError, match="no saved model"):
        SASRec.load(tmp_path / "model.safetensors")


def test_what_is_not_offered_does_not_compete_and_what_was_had_before_is_a_miss(
    model: Recommender, interactions: Interactions
) -> None:
    split = interactions.leave_one_out()
    test = Histories.held_out(split.test, split.train, split.val)
    own = torch.zeros(len(test), dtype=torch.bool)
    own[: len(test) // 2] = True
    first = test.interactions.item[test.start]
    again = replace(test, target=torch.where(own, first, test.target))
    everything = model.ranks(again)
    assert everything[own].isinf().all()
    assert everything[~own].isinf().equal(test.repeats[~own])
    offered = torch.zeros(model.num_items + 1, dtype=torch.bool)
    offered[1::2] = True
    ranks = model.ranks(test, offered)
    sold = offered[test.target] & ~test.repeats
    assert (ranks[sold] < model.ranks(test)[sold]).any()
    assert (ranks[sold] <= model.ranks(test)[sold]).all()
    assert ranks[sold].max() <= int(offered.sum())
    scores = model.scores(test, offered).function(slice(0, 5))
    assert scores[:, ~offered].isinf().all()
    assert scores[:, offered].isfinite().all()
