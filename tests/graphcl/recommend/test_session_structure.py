"""Sessions of a batch against loops over its rows."""

import torch

from graphcl.recommend import Sequences
from graphcl.recommend.sessions import BLOCK, Sessions


def timed(*rows: list[int]) -> Sequences:
    """Return left-padded rows with these times; item i + 1 is a row's i-th."""
    width = max(len(row) for row in rows)
    item, time = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for row, times in enumerate(rows):
        start = width - len(times)
        item[row, start:] = torch.arange(1, len(times) + 1)
        time[row, start:] = torch.tensor(times, dtype=torch.int64)
    return Sequences(item, torch.zeros_like(item), torch.zeros(len(rows), dtype=torch.int64), time)


TIMES = [[0, 100, 2000, 90_000, 90_010, 400_000], [7], [], [0, 9000, 9001, 20_000]]


def test_a_session_begins_after_a_pause_longer_than_the_gap_and_with_every_row() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    assert (sessions.nth[:6] + 1).tolist() == [1, 1, 2, 3, 3, 4]
    assert sessions.nth[6:].tolist() == [0, 0, 1, 1, 2]
    assert sessions.session.tolist() == [0, 0, 1, 2, 2, 3, 4, 5, 6, 6, 7]
    assert sessions.begin.tolist() == [0, 2, 3, 5, 6, 7, 8, 10]
    assert sessions.row.tolist() == [0] * 6 + [1] + [3] * 4
    assert sessions.last.tolist() == [5, 6, 10]
    same = Sessions.of(timed([0, 1800, 3601]), 1800)
    assert same.session.tolist() == [0, 0, 1]


def test_given_sessions_go_before_times_and_blocks_stand_in_for_both() -> None:
    batch = timed(list(range(25)), [0, 1, 2])
    given = Sequences(
        batch.item, batch.target, batch.user, batch.time, session=batch.mask * (batch.item // 9 + 4)
    )
    assert Sessions.of(given, 1).session.bincount().tolist() == [8, 9, 8, 3]
    bare = Sequences(batch.item, batch.target, batch.user)
    assert Sessions.of(bare, 1).session.bincount().tolist() == [BLOCK, BLOCK, 5, 3]


def test_attention_within_sessions_equals_a_loop() -> None:
    torch.manual_seed(0)
    sessions = Sessions.of(timed(*TIMES), 1800)
    values = torch.randn(11, 3, dtype=torch.float64)
    event = torch.tensor([1, 1, 4, 4, 4, 6, 9])
    look = sessions.lookback(event)
    # Far from 0, where a softmax that is not stable has overflown.
    scores = 1000 + 5 * torch.randn(len(look.key), dtype=torch.float64)
    found = look.attend(scores, sessions.dense(values))
    for question, at in enumerate(event.tolist()):
        own = look.query == question
        seen = [j for j in range(at + 1) if sessions.session[j] == sessions.session[at]]
        assert look.key[own].tolist() == seen
        weight = (scores[own] - scores[own].max()).exp()
        torch.testing.assert_close(found[question], weight @ values[seen] / weight.sum())


def test_attention_passes_finite_gradients_where_rows_are_padding() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    values = torch.randn(11, 2, requires_grad=True)
    look = sessions.lookback(sessions.event)
    scores = torch.randn(len(look.key), requires_grad=True)
    look.attend(scores, sessions.dense(values)).square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_means_run_from_where_the_last_sessions_begin() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    values = torch.randn(11, 3, dtype=torch.float64)
    first = sessions.since(2)
    assert first.tolist() == [0, 0, 0, 2, 2, 3, 6, 7, 7, 7, 8]
    found = sessions.running_mean(values, first)
    wanted = [values[start : at + 1].mean(0) for at, start in enumerate(first.tolist())]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_tokens_are_the_ends_of_the_last_sessions_and_the_event_itself() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    event = torch.tensor([1, 3, 5, 9])
    found = {
        int(at): token.tolist()
        for place, tokens in sessions.tokens(event, 3)
        for at, token in zip(event[place], tokens, strict=True)
    }
    assert found == {1: [1], 3: [1, 2, 3], 5: [2, 4, 5], 9: [7, 9]}


def test_packing_keeps_the_runs_that_go_on_in_front() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    order, sizes = sessions.packed()
    assert sorted(order.tolist()) == list(range(11))
    assert sizes == [8, 3]
    steps = order.split(sizes)
    assert (steps[1] - 1).tolist() == steps[0][:3].tolist()


def test_rows_padded_at_their_end_come_back_flat() -> None:
    sessions = Sessions.of(timed(*TIMES), 1800)
    values = torch.arange(11.0)[:, None]
    dense = sessions.dense(values)
    assert dense[3, :, 0].tolist() == [7, 8, 9, 10, 0, 0]
    assert sessions.flat(dense).equal(values)


def test_a_batch_of_padding_has_no_session() -> None:
    sessions = Sessions.of(timed([], []), 10)
    assert len(sessions) == 0
    assert sessions.last.tolist() == []
    assert sessions.packed()[1] == []
