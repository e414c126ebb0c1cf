"""Batches of sequences against loops over users."""

import pytest
import torch

from graphcl.datasets import Interactions, simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.recommend import Histories, TrainingBatches
from graphcl.recommend.sequences import check_history, pad_left, pad_right


def of_lists(sequences: list[list[int]], timed: bool = True) -> Interactions:
    """Return interactions with these items of each user, a minute apart."""
    user = torch.tensor([u for u, items in enumerate(sequences) for _ in items])
    item = torch.tensor([i for items in sequences for i in items])
    time = torch.arange(len(item)) * 60 if timed else None
    return Interactions("lists", user, item, len(sequences), 20, time=time)


def pairs(batches: TrainingBatches) -> list[tuple[int, tuple[int, ...], int]]:
    """Return user, what stands before a position, and its target, of an epoch."""
    found = []
    for batch in batches:
        for row, column in (batch.target > 0).nonzero().tolist():
            before = batch.item[row, : column + 1]
            found.append(
                (
                    int(batch.user[row]) - 1,
                    tuple(before[before > 0].tolist()),
                    int(batch.target[row, column]),
                )
            )
    return found


def test_every_next_item_is_asked_for_once_an_epoch_after_at_least_half_a_window() -> None:
    sequences = [
        list(range(1, n + 1)) if n < 20 else [1 + i % 20 for i in range(n)]
        for n in (1, 2, 3, 5, 6, 7, 10, 11, 12, 40)
    ]
    length = 5
    batches = TrainingBatches(of_lists(sequences), length, 3, 0)
    for _ in range(2):
        found = sorted(pairs(batches))
        wanted = [(u, i) for u, items in enumerate(sequences) for i in range(1, len(items))]
        assert len(found) == len(wanted)
        # After a longest-suffix match the whole multiset of (user, target) must be there.
        assert sorted((u, y) for u, _, y in found) == sorted(
            (u, sequences[u][i]) for u, i in wanted
        )
        for u, before, y in found:
            text, run = sequences[u], len(before)
            places = [i for i in range(1, len(text)) if text[i] == y]
            assert any(
                tuple(text[i - run : i]) == before and run >= min(i, length // 2)
                for i in places
                if i >= run
            )


def test_rows_are_left_padded_and_times_are_those_of_the_events_and_of_what_followed() -> None:
    (batch,) = TrainingBatches(of_lists([[3, 4, 5], [7, 8]]), 4, 9, 0)
    row = int((batch.user == 1).nonzero())
    other = 1 - row
    assert batch.item[row].tolist() == [3, 4]
    assert batch.target[row].tolist() == [4, 5]
    assert batch.item[other].tolist() == [0, 7]
    assert batch.target[other].tolist() == [0, 8]
    assert batch.time is not None
    assert batch.target_time is not None
    assert batch.time[row].tolist() == [0, 60]
    assert batch.target_time[row].tolist() == [60, 120]
    assert batch.time[other].tolist() == [0, 180]
    assert batch.target_time[other].tolist() == [0, 240]


def test_epochs_differ_and_the_seed_decides_them() -> None:
    interactions = simulate_interactions(60, 40).interactions

    def users(seed: int, epochs: int) -> list[list[int]]:
        batches = TrainingBatches(interactions, 8, 16, seed)
        return [[u for batch in batches for u in batch.user.tolist()] for _ in range(epochs)]

    first, second = users(1, 2)
    assert first != second
    assert sorted(first) == sorted(second)
    assert users(1, 2) == [first, second]
    assert users(2, 1) != [first]


def test_held_out_events_follow_all_that_their_users_did_before() -> None:
    interactions = of_lists([[1, 2, 3, 4], [5, 6], [7, 8, 9, 7]])
    split = interactions.leave_one_out()
    test = Histories.held_out(split.test, split.train, split.val)
    assert test.target.tolist() == [4, 7]
    assert test.user.tolist() == [1, 3]
    batch = test.batch(slice(0, 2), 2)
    assert batch.item.tolist() == [[2, 3], [8, 9]]
    assert batch.target.tolist() == [[0, 4], [0, 7]]
    assert test.time is not None
    assert batch.target_time is not None
    assert batch.target_time[:, -1].tolist() == test.time.tolist()
    seen = test.seen
    assert seen.indptr.tolist() == [0, 3, 6]
    assert seen.indices.tolist() == [1, 2, 3, 7, 8, 9]
    assert test.repeats.tolist() == [False, True]


def test_of_several_held_out_events_the_earlier_are_known_to_the_later() -> None:
    interactions = of_lists([[1, 2, 3, 4]])
    train, rest = (interactions.select(torch.tensor(rows)) for rows in ([0], [1, 2, 3]))
    held_out = Histories.held_out(rest, train)
    assert held_out.batch(slice(0, 3), 9).item.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert held_out.some(2).target.tolist() == [2, 3]


def test_an_empty_history_is_a_row_of_padding_and_still_has_its_target() -> None:
    interactions = of_lists([[1, 2], [3]])
    train, cold = interactions.select(torch.tensor([0, 1])), interactions.select(torch.tensor([2]))
    batch = Histories.held_out(cold, train).batch(slice(0, 1), 5)
    assert batch.item.tolist() == [[0]]
    assert batch.target.tolist() == [[3]]
    asked = Histories.of_users(train)
    assert asked.batch(slice(0, 2), 5).item.tolist() == [[1, 2], [0, 0]]


def test_padding_moves_from_left_to_right_and_back() -> None:
    x = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6], [0, 0, 0, 0]])
    right = pad_right(x, x > 0)
    assert right.tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [0, 0, 0, 0]]
    assert pad_left(right, x > 0).equal(x)


def test_without_a_second_event_there_is_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="no user has two events"):
        TrainingBatches(of_lists([[1], [2]]), 5, 4, 0)


def test_an_item_that_is_not_in_the_catalogue_is_refused_by_its_place() -> None:
    with pytest.raises(GraphCLError, match=r"history\[1\] is 21 \(1 such\), must be an item, 1 to"):
        check_history("rank", torch.tensor([3, 21]), 20)
