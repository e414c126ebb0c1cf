"""SLSRec: what its vectors may see, its terms, its two modes and its files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphcl.datasets import Interactions, simulate_interactions
from graphcl.errors import GraphCLError
from graphcl.metrics.ranking import ItemScores, ndcg, rank_targets
from graphcl.recommend import Histories, Sequences, SLSRec, SLSRecConfig, TrainingBatches, slsrec
from graphcl.recommend.attention import PairScore, SessionAttention
from graphcl.recommend.sessions import Sessions
from graphcl.recommend.slsrec import calibration

CANDIDATES = {"mode": "candidates"}


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return simulate_interactions(120, 40, seed=1).interactions


def started(interactions: Interactions, **config: Any) -> SLSRec:
    """Return a model in double precision whose users' vectors and biases all matter."""
    settings = {"hidden_channels": 8, "gap": 1800, "num_sessions": 3, "length": 12, **config}
    model = SLSRec(SLSRecConfig(**settings)).start(interactions)
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 4)
        model.item.weight[0] = 0
    return model.double()


def batch_of(interactions: Interactions, length: int = 12) -> Sequences:
    return next(iter(TrainingBatches(interactions, length, 16, 0)))


def widened(batch: Sequences, by: int) -> Sequences:
    """Return the same rows with more padding before them."""

    def pad(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x.new_zeros(len(x), by), x], dim=1)

    item, target = pad(batch.item), pad(batch.target)
    assert item is not None
    assert target is not None
    time, target_time = pad(batch.time), pad(batch.target_time)
    return replace(batch, item=item, target=target, time=time, target_time=target_time)


def test_the_state_after_an_event_is_that_of_the_row_cut_after_it(
    interactions: Interactions,
) -> None:
    model, batch = started(interactions), batch_of(interactions)
    assert batch.time is not None
    assert batch.target_time is not None
    whole = model.states(batch)
    for row in range(4):
        for column in batch.mask[row].nonzero().flatten().tolist():
            first = int(batch.mask[row].nonzero()[0])
            cut = (slice(row, row + 1), slice(first, column + 1))
            alone = Sequences(
                batch.item[cut],
                batch.target[cut],
                batch.user[row : row + 1],
                batch.time[cut],
                batch.target_time[cut],
            )
            torch.testing.assert_close(model.states(alone)[0, -1], whole[row, column])


def test_a_later_event_changes_no_earlier_state(interactions: Interactions) -> None:
    model, batch = started(interactions), batch_of(interactions)
    assert batch.time is not None
    assert batch.target_time is not None
    item, time, until = batch.item.clone(), batch.time.clone(), batch.target_time.clone()
    item[:, -1] = item[:, -1] % 40 + 1
    time[:, -1] += 10_000
    until[:, -1] += 70_000
    before, after = (
        model.states(b) for b in (batch, replace(batch, item=item, time=time, target_time=until))
    )
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not before[:, -1].allclose(after[:, -1])


@pytest.mark.parametrize("timed", [True, False])
def test_more_padding_changes_nothing(interactions: Interactions, timed: bool) -> None:
    model, batch = started(interactions), batch_of(interactions)
    batch = batch if timed else replace(batch, time=None, target_time=None)
    wide = widened(batch, 3)
    torch.testing.assert_close(model.states(wide)[:, 3:], model.states(batch))
    found, wanted = model.loss(wide), model.loss(batch)
    for name, term in wanted.items():
        torch.testing.assert_close(found[name], term)


def test_a_row_of_padding_among_others_has_no_effect(interactions: Interactions) -> None:
    model, batch = started(interactions), batch_of(interactions)
    empty = replace(batch, item=batch.item.clone())
    empty.item[3] = 0
    states = model.states(empty)
    assert states[3].abs().max() == 0
    others = torch.arange(len(batch)) != 3
    torch.testing.assert_close(states[others], model.states(batch)[others])
    empty.item[:] = 0
    assert model.states(empty).abs().max() == 0


def test_ages_are_read_up_to_the_next_event(interactions: Interactions) -> None:
    model, batch = started(interactions), batch_of(interactions)
    assert batch.target_time is not None
    later = replace(batch, target_time=batch.target_time + 50_000)
    assert not model.states(later)[:, -1].allclose(model.states(batch)[:, -1])


def test_the_long_term_interest_reads_the_last_sessions_alone(interactions: Interactions) -> None:
    model, batch = started(interactions, num_sessions=2), batch_of(interactions)
    sessions = Sessions.of(batch, 1800)
    last = sessions.last
    old = (sessions.nth[last[sessions.row[last]]] > 1)[sessions.row] & (sessions.nth == 0)
    assert old.any()
    item = batch.item.clone()
    changed = item[batch.mask]
    changed[old] = changed[old] % 40 + 1
    item[batch.mask] = changed
    before, after = (model.read(b, sessions, last).long for b in (batch, replace(batch, item=item)))
    far = sessions.nth[last] > 1
    torch.testing.assert_close(before[far], after[far])


def test_the_score_of_a_pair_is_the_perceptron_of_its_four_parts() -> None:
    torch.manual_seed(0)
    score = PairScore(3, 6).double()
    keys, queries = torch.randn(4, 3).double(), torch.randn(2, 6).double()
    key, query = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 0, 1, 1])
    k, q = score.key(keys)[key], queries[query]
    wanted = score.out(score.hidden(torch.cat([k, q, k - q, k * q], dim=1))).squeeze(1)
    torch.testing.assert_close(score(keys, queries, key, query), wanted)


def test_attention_among_sessions_equals_a_loop_over_events(interactions: Interactions) -> None:
    torch.manual_seed(0)
    batch = batch_of(interactions)
    sessions, most = Sessions.of(batch, 1800), 3
    across = SessionAttention(4, most).double()
    prefix, users = torch.randn(len(sessions), 4).double(), torch.randn(len(batch), 4).double()
    found = across(prefix, sessions, users, sessions.event)
    assert int(sessions.nth.max()) >= most
    for event in range(len(sessions)):
        number = int(sessions.session[event])
        start = number - int(sessions.nth[event].clamp(max=most - 1))
        ends = [int((sessions.session == s).nonzero()[-1]) for s in range(start, number)]
        v = prefix[[*ends, event]]
        parts = across.project(v).view(len(v), 3, 2, 2)
        heads = [
            (parts[:, 0, h] @ parts[:, 1, h].T / 2**0.5).softmax(1) @ parts[:, 2, h]
            for h in range(2)
        ]
        recent = across.recency[list(range(len(v)))[::-1]]
        read = across.norm(v + across.mix(torch.cat(heads, dim=1)) + recent)
        row = sessions.row[event].repeat(len(v))
        weight = across.score(read, users, None, row).softmax(0)
        torch.testing.assert_close(found[event], weight @ read)


@pytest.mark.parametrize(("contrast", "wanted"), [("bpr", 1.614961), ("triplet", 2.4)])
def test_contrast_has_the_values_of_the_four_terms(contrast: str, wanted: float) -> None:
    rows = ([1.0, 0.0], [0.0, 1.0], [0.8, 0.2], [0.1, 0.9])
    long, short, of_long, of_short = (torch.tensor([row]) for row in rows)
    found = calibration(long, short, of_long, of_short, contrast)
    assert found.item() == pytest.approx(wanted, abs=1e-6)
    swapped = calibration(short, long, of_short, of_long, contrast)
    assert swapped.item() == pytest.approx(wanted, abs=1e-6)


def test_sampled_softmax_has_the_value_of_its_logits() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, 0.0, -1.0]])
    assert slsrec._of_first(logits).item() == pytest.approx(0.523744, abs=1e-6)


def test_what_has_one_session_or_few_events_is_not_contrasted(interactions: Interactions) -> None:
    batch = batch_of(interactions)
    assert started(interactions).loss(batch)["contrast"] > 0
    assert started(interactions, gap=10**9).loss(batch)["contrast"] == 0
    assert started(interactions, min_events=13).loss(batch)["contrast"] == 0


def test_contrast_is_the_mean_over_the_events_that_are_asked_about(
    interactions: Interactions,
) -> None:
    model, batch = (
        started(interactions, contrast_weight=1.0, contrast="bpr"),
        batch_of(interactions),
    )
    sessions = Sessions.of(batch, 1800)
    reading = model.read(batch, sessions, sessions.event)
    interests = model.interests(reading, reading.x[:, None])
    target, terms = batch.target[batch.mask], []
    for event in range(len(sessions)):
        row = sessions.row == sessions.row[event]
        kept = row & (sessions.nth > sessions.nth[event] - 3) & (sessions.event <= event)
        recent = kept & (sessions.session == sessions.session[event])
        if target[event] and kept.sum() > 5 and sessions.nth[event] > 0:
            vectors = interests.long[event], interests.short[event]
            proxies = reading.x[kept].mean(0), reading.x[recent].mean(0)
            terms.append(calibration(*(v[None] for v in (*vectors, *proxies)), "bpr"))
    torch.testing.assert_close(model.loss(batch)["contrast"], torch.stack(terms).mean())


def test_the_tables_of_users_are_driven_apart_up_to_a_bound(interactions: Interactions) -> None:
    model, batch = started(interactions, discrepancy_weight=1.0), batch_of(interactions)
    users = batch.user.unique()
    apart = (model.user_long.weight - model.user_short.weight)[users].square().mean()
    torch.testing.assert_close(model.loss(batch)["discrepancy"], -apart)
    with torch.no_grad():
        model.user_long.weight.add_(5)
    assert model.loss(batch)["discrepancy"] == -1


def test_the_blend_is_between_the_interests_and_its_share_can_be_fixed(
    interactions: Interactions,
) -> None:
    batch = batch_of(interactions)
    sessions = Sessions.of(batch, 1800)
    model = started(interactions)
    reading = model.read(batch, sessions, sessions.event)
    interests = model.interests(reading, reading.x[:, None])
    assert ((interests.share > 0) & (interests.share < 1)).all()
    assert interests.share.std() > 0
    fixed = started(interactions, blend=1.0)
    reading = fixed.read(batch, sessions, sessions.event)
    interests = fixed.interests(reading, reading.x[:, None])
    torch.testing.assert_close(interests.blended, interests.long)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_neither_interest_goes_silent_however_sure_the_blend_is(
    interactions: Interactions, bias: float
) -> None:
    model, batch = started(interactions).float(), batch_of(interactions)
    with torch.no_grad():
        model.fusion[-1].bias.fill_(bias)
    sessions = Sessions.of(batch, 1800)
    reading = model.read(batch, sessions, sessions.event)
    interests = model.interests(reading, reading.x[:, None])
    assert ((interests.share > 0.1) & (interests.share < 0.9)).all()
    model.loss(batch)["softmax"].backward()
    for name in ("time_lstm.input.weight", "across.project.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-6, name


def test_both_interests_come_at_one_scale(interactions: Interactions) -> None:
    config = SLSRecConfig(hidden_channels=32, length=12, gap=1800)
    model, batch = SLSRec(config).start(interactions), batch_of(interactions)
    sessions = Sessions.of(batch, 1800)
    reading = model.read(batch, sessions, sessions.event)
    interests = model.interests(reading, reading.x[:, None])
    ratio = interests.long.norm(dim=1).mean() / interests.short.norm(dim=1).mean()
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize("mode", [{}, CANDIDATES])
def test_every_weight_learns(interactions: Interactions, mode: dict[str, Any]) -> None:
    model, batch = started(interactions, **mode).train(), batch_of(interactions)
    torch.manual_seed(0)
    torch.stack(tuple(model.loss(batch).values())).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 1e-12, name
    assert model.user_long.weight.grad[0].abs().max() > 0
    assert model.item.weight.grad[0].abs().max() == 0


def test_somebody_unknown_is_row_zero_and_so_is_a_number_beyond_the_training_data(
    interactions: Interactions,
) -> None:
    model, batch = started(interactions), batch_of(interactions)
    nobody = model.states(replace(batch, user=torch.zeros_like(batch.user)))
    newcomers = model.states(replace(batch, user=batch.user + interactions.num_users))
    assert newcomers.equal(nobody)
    assert not nobody.allclose(model.states(batch))
    history = interactions.sequence(0)
    item, score = model.rank(history, k=3)
    one = Sequences(history[None, -12:], history[None, -12:], torch.zeros(1, dtype=torch.int64))
    scores = model.states(one)[0, -1] @ model.item_vectors()[item].T
    torch.testing.assert_close(score, scores)


def test_who_gave_nothing_to_learn_from_is_row_zero_too() -> None:
    """A user with one event in training has a row that no step has moved."""
    item = torch.tensor([1, 2, 3, 4, 2, 3])
    user = torch.tensor([0, 0, 0, 1, 2, 2])
    events = Interactions("few", user, item, 3, 5, time=torch.arange(6))
    model = SLSRec(SLSRecConfig(hidden_channels=8, gap=10)).start(events)
    items, scores = model.rank(events, k=4)
    with torch.no_grad():
        model.user_long.weight[2] += 1
        model.user_short.weight[2] += 1
    again = model.rank(events, k=4)
    assert torch.equal(again[0], items)
    assert torch.equal(again[1], scores)
    with torch.no_grad():
        model.user_long.weight[1] += 1
        model.user_short.weight[1] += 1
    assert not torch.equal(model.rank(events, k=4)[1][0], scores[0])


@pytest.mark.parametrize("mode", [{}, CANDIDATES])
def test_a_file_gives_the_same_ranks(
    interactions: Interactions, mode: dict[str, Any], tmp_path: Path
) -> None:
    model = SLSRec(SLSRecConfig(hidden_channels=8, length=12, **mode)).start(interactions)
    model.save(tmp_path / "model.safetensors")
    again = SLSRec.load(tmp_path / "model.safetensors")
    asked = Histories.of_users(interactions.select(interactions.user < 30))
    asked = replace(asked, target=asked.target.clamp(min=1))
    assert again.ranks(asked).equal(model.ranks(asked))
    assert again.config == model.config


def test_candidates_score_as_they_rank(interactions: Interactions) -> None:
    model, batch = started(interactions), batch_of(interactions)
    candidates = torch.randint(1, 41, (len(batch), 5))
    wanted = (model.states(batch)[:, -1:] * model.item(candidates)).sum(2)
    torch.testing.assert_close(model.score_candidates(batch, candidates), wanted)


def test_a_candidate_scores_the_same_whatever_others_there_are(
    interactions: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = started(interactions, **CANDIDATES), batch_of(interactions)
    batch.item[2] = 0
    candidates = torch.randint(1, 41, (len(batch), 5))
    together = model.score_candidates(batch, candidates)
    assert together[2].abs().max() == 0
    assert together[0].std() > 0
    for column in range(5):
        alone = model.score_candidates(batch, candidates[:, column : column + 1])
        torch.testing.assert_close(alone[:, 0], together[:, column])
    monkeypatch.setattr(slsrec, "_PAIRS", 1)
    torch.testing.assert_close(model.score_candidates(batch, candidates), together)


def test_drawn_candidates_that_the_window_has_do_not_count(interactions: Interactions) -> None:
    model, batch = started(interactions, **CANDIDATES), batch_of(interactions)
    asked = batch.target[batch.mask].nonzero().squeeze(1)
    target = batch.target[batch.mask][asked]
    reading = model.read(batch, Sessions.of(batch, 1800), asked)
    candidates, known = model._draw(batch, reading, target)
    assert candidates[:, 0].equal(target)
    assert not known[:, 0].any()
    assert known.any()
    row = reading.sessions.row[asked]
    for place in range(0, len(asked), 7):
        taken = {*batch.item[row[place]].tolist(), int(target[place])}
        wanted = [item in taken for item in candidates[place, 1:].tolist()]
        assert known[place, 1:].tolist() == wanted


def test_without_an_event_to_ask_about_every_term_is_zero(interactions: Interactions) -> None:
    batch = batch_of(interactions)
    batch = replace(batch, target=torch.zeros_like(batch.target))
    for mode in ({}, CANDIDATES):
        terms = started(interactions, **mode).loss(batch)
        assert terms["softmax"] == 0
        assert terms["contrast"] == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gap": 0}, "gap is 0, must be at least 1"),
        ({"hidden_channels": 7}, "hidden_channels is 7, must be even"),
        ({"time_unit": 0.0}, r"time_unit is 0\.0, must be above 0"),
        ({"blend": 1.5}, r"blend is 1\.5, must be 0 to 1"),
        ({"contrast": "cosine"}, "contrast is 'cosine', must be one of 'bpr', 'triplet'"),
        ({"mode": "rank"}, "mode is 'rank', must be one of 'retrieval', 'candidates'"),
        ({"num_candidates": 0}, "num_candidates is 0, must be at least 1"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphCLError, match=message):
        SLSRecConfig(**config)


@pytest.mark.parametrize(
    ("mode", "times"),  # measured over several seeds: 3.0 to 3.2, and 2.9 to 3.3
    [
        ({"batch_size": 32, "epochs": 5}, 2.2),
        (
            {
                "mode": "candidates",
                "num_candidates": 12,
                "val_events": 40,
                "batch_size": 16,
                "epochs": 12,
            },
            2.0,
        ),
    ],
)
def test_it_ranks_better_than_popularity(mode: dict[str, Any], times: float) -> None:
    split = simulate_interactions(300, 50, seed=2).interactions.leave_one_out()
    config = SLSRecConfig(hidden_channels=16, length=12, gap=1800, learning_rate=1e-2, **mode)
    model = SLSRec(config).fit(split.train, split.val)
    test = Histories.held_out(split.test, split.train, split.val).some(150)
    count = split.train.item.bincount(minlength=51).float()
    popularity = ItemScores(lambda cases: count.expand(cases.stop - cases.start, -1), 150, 51)
    popular = rank_targets(popularity, test.target, test.seen)
    assert ndcg(model.ranks(test), 10) > times * ndcg(popular, 10)
