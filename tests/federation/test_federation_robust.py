"""Few hostile clients move a robust fusion no further than honest values lie apart."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg, Krum
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.fault_tables import RobustTable
from federation.records import to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.prototypes import Upload, weighted_prototypes
from federation.strategies.robust import (
    bound_weights,
    central_rows,
    fuse_class,
    trimmed_mean,
    weighted_mean,
    weighted_median,
)

WIDTH = 4
ROBUST = ("median", "trimmed", "krum")
EXAMPLES = settings(deadline=None, max_examples=50)


@st.composite
def classes(draw, least: int = 1):
    """Rows and whole weights of the holders of one class."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows = draw(st.integers(least, 11))
    values = torch.randn(rows, WIDTH, generator=rng).double()
    if draw(st.booleans()):
        values = values.round()  # with ties
    weights = torch.randint(1, 9, (rows, 1), generator=rng).double().expand(-1, WIDTH).clone()
    return values, weights


def copies(values, weights, channel):
    """One channel with every value as often as it weighs, sorted."""
    return np.sort(np.repeat(values[:, channel].numpy(), weights[:, channel].long().numpy()))


@EXAMPLES
@given(held=classes())
def test_weighted_median_is_the_median_of_copies(held):
    values, weights = held
    expected = [np.median(copies(values, weights, channel)) for channel in range(WIDTH)]
    assert weighted_median(values, weights).tolist() == expected


@EXAMPLES
@given(held=classes(), cut=st.sampled_from([0.0, 0.1, 0.25, 0.4]))
def test_trimmed_mean_is_that_of_copies_with_parts_at_the_edge(held, cut):
    values, weights = held
    expected = []
    for channel in range(WIDTH):
        many = np.repeat(copies(values, weights, channel), 20)  # so that every cut is whole
        off = round(cut * len(many))
        expected.append(many[off : len(many) - off].mean())
    torch.testing.assert_close(trimmed_mean(values, weights, cut), torch.tensor(expected).double())


@EXAMPLES
@given(held=classes(least=3), hostile=st.integers(0, 6))
def test_krum_keeps_what_a_slow_reference_keeps(held, hostile):
    values, _ = held
    rows = len(values)
    assumed = hostile if 2 * hostile < rows else (rows - 1) // 2
    scores = []
    for i in range(rows):
        away = sorted(
            sum((float(a) - float(b)) ** 2 for a, b in zip(values[i], values[j], strict=True))
            for j in range(rows)
            if j != i
        )
        scores.append(sum(away[: max(1, rows - assumed - 2)]))
    limit = sorted(scores)[rows - assumed - 1]
    kept = central_rows(values, hostile)
    assert int(kept.sum()) >= rows - assumed
    for i, score in enumerate(scores):
        if abs(score - limit) > 1e-9:
            assert bool(kept[i]) == (score < limit)


@EXAMPLES
@given(held=classes(), rule=st.sampled_from(ROBUST), data=st.data())
def test_order_of_the_holders_does_not_matter(held, rule, data):
    values, weights = held
    order = data.draw(st.permutations(range(len(values))))
    table = RobustTable(rule=rule)
    torch.testing.assert_close(
        fuse_class(values, weights, table), fuse_class(values[order], weights[order], table)
    )


@EXAMPLES
@given(
    held=classes(),
    rule=st.sampled_from(ROBUST),
    shift=st.integers(-20, 20).map(lambda n: n / 4),  # exact, so that ties stay ties for Krum
)
def test_moving_and_turning_all_values_moves_and_turns_the_result(held, rule, shift):
    values, weights = held
    table = RobustTable(rule=rule)
    there = fuse_class(shift - values, weights, table)
    torch.testing.assert_close(there, shift - fuse_class(values, weights, table))


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("lie", [1e30, -1e30, 50.0])
def test_one_in_five_that_lies_cannot_leave_the_honest_range(rule, lie):
    rng = torch.Generator().manual_seed(0)
    honest = torch.randn(8, WIDTH, generator=rng).double()
    values = torch.cat((honest, torch.full((2, WIDTH), lie).double()))
    fused = fuse_class(values, torch.ones(10, WIDTH), RobustTable(rule=rule, hostile=2))
    assert bool((fused >= honest.amin(0)).all())
    assert bool((fused <= honest.amax(0)).all())
    mean = weighted_mean(values, torch.ones(10, WIDTH).double())
    assert not bool(((mean >= honest.amin(0)) & (mean <= honest.amax(0))).any())


@pytest.mark.parametrize("rule", ["median", "krum"])
def test_a_claimed_crowd_does_not_help_a_liar(rule):
    """Without a bound, the weight of one would be more than half of all."""
    values = torch.tensor([[0.0], [1.0], [2.0], [3.0], [900.0]])
    weights = torch.tensor([[5.0], [6.0], [5.0], [6.0], [1e9]])
    bounded = fuse_class(values, weights, RobustTable(rule=rule, hostile=1))
    assert 0 <= bounded.item() <= 3
    if rule == "median":
        unbounded = fuse_class(values, weights, RobustTable(rule=rule, max_weight=1e12))
        assert unbounded.item() == 900


def test_weights_are_bounded_by_medians_of_their_channel():
    weights = torch.tensor([[1.0, 10.0], [2.0, 30.0], [9.0, 20.0], [3.0, 100.0]])
    expected = torch.tensor([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0], [3.0, 30.0]])
    assert torch.equal(bound_weights(weights, 1.5), expected)  # lower medians 2 and 20


@pytest.mark.parametrize("rule", ROBUST)
def test_below_three_holders_every_rule_is_the_mean_with_bounded_weights(rule):
    table = RobustTable(rule=rule, max_weight=2.0)
    one = torch.tensor([[3.0, -1.0]])
    assert fuse_class(one, torch.full((1, 2), 7.0), table).tolist() == [3, -1]
    two = torch.tensor([[0.0, 0.0], [3.0, 6.0]])
    assert fuse_class(two, torch.ones(2, 2), table).tolist() == [1.5, 3]  # the median of two
    crowd = fuse_class(two, torch.tensor([[1.0, 1.0], [1e6, 1e6]]), table)
    assert crowd.tolist() == [2, 4]  # the million counts as twice the other


def found(clients: int = 6) -> dict[int, Upload]:
    rng = torch.Generator().manual_seed(3)
    held = {p: torch.tensor([c for c in range(5) if (p + c) % 3 or c == 4]) for p in range(clients)}
    held[0] = torch.tensor([0, 4])
    return {
        p: Upload(
            labels,
            torch.randn(len(labels), WIDTH, generator=rng),
            torch.randint(1, 40, (len(labels),), generator=rng),
            torch.rand(len(labels), WIDTH, generator=rng),
        )
        for p, labels in held.items()
    }


@pytest.mark.parametrize("rule", ROBUST)
def test_every_class_is_joined_on_its_own_over_its_holders(rule):
    uploads, table = found(), RobustTable(rule=rule, hostile=1)
    weights = {p: upload.support[:, None] for p, upload in uploads.items()}
    joined = weighted_prototypes(uploads, weights, 7, WIDTH, table)
    assert joined.values.dtype == torch.float32
    for label in range(7):
        rows = [(u, i) for u in uploads.values() for i in (u.classes == label).nonzero().flatten()]
        assert bool(joined.known[label]) == bool(rows)
        if not rows:
            assert not joined.values[label].any()
            continue
        values = torch.stack([u.values[i] for u, i in rows])
        weight = torch.stack([u.support[i].expand(WIDTH) for u, i in rows])
        torch.testing.assert_close(joined.values[label], fuse_class(values, weight, table).float())


def test_the_mean_is_the_mean_bit_by_bit():
    uploads = found()
    weights = {p: upload.support[:, None] * upload.fisher for p, upload in uploads.items()}
    plain = weighted_prototypes(uploads, weights, 7, WIDTH)
    ruled = weighted_prototypes(uploads, weights, 7, WIDTH, RobustTable(max_weight=0.1))
    assert torch.equal(plain.values, ruled.values)
    assert torch.equal(plain.known, ruled.known)


@pytest.mark.parametrize("name", ["fedproto", "feddbp"])
@pytest.mark.parametrize("rule", ROBUST)
def test_both_prototype_algorithms_join_by_the_rule_with_their_weights(tiny, name, rule):
    facts = Facts({p + 1: p for p in range(6)}, channels={"in-channels": 5}, num_classes=5)
    keys = {"model.embedding_channels": WIDTH, "strategy.robust.rule": rule}
    strategy = ALGORITHMS[name].strategy(tiny(name, **keys), facts)
    strategy.uploads = found()
    floor = strategy.experiment.strategy.feddbp.fisher_floor
    weights = {
        p: u.support[:, None].float() * (u.fisher + floor if name == "feddbp" else 1)
        for p, u in strategy.uploads.items()
    }
    expected = weighted_prototypes(
        strategy.uploads, weights, 5, WIDTH, strategy.experiment.strategy.robust
    )
    mean = weighted_prototypes(strategy.uploads, weights, 5, WIDTH)
    assert torch.equal(strategy.fuse().values, expected.values)
    assert not torch.allclose(expected.values, mean.values)


@pytest.mark.parametrize("name", ["fedproto", "feddbp"])
def test_a_rule_stays_in_force_after_nobody_has_answered(tiny, name):
    strategy = ALGORITHMS[name].strategy(
        tiny(name, **{"strategy.robust.rule": "krum"}), Facts({1: 0}, {"in-channels": 5}, 3)
    )
    assert not strategy.table.known.any()


def test_weights_are_joined_by_flowers_own_strategies(tiny):
    facts = Facts({1: 0}, {"in-channels": 5}, 3)
    keys = {"strategy.robust.trim": 0.3, "strategy.robust.hostile": 1}
    made = {
        name: ALGORITHMS[name].strategy(tiny(name, **keys), facts)
        for name in ("fedmedian", "fedtrimmedavg", "krum")
    }
    assert type(made["fedmedian"]) is FedMedian
    assert type(made["fedtrimmedavg"]) is FedTrimmedAvg
    assert made["fedtrimmedavg"].beta == 0.3
    assert type(made["krum"]) is Krum
    assert made["krum"].num_malicious_nodes == 1


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum"])
def test_joined_weights_go_down_in_the_next_round(tiny, staged, tmp_path, name):
    keys = {"strategy.robust.trim": 0.34, "strategy.robust.hostile": 0}
    grid = staged(tiny(name, tmp_path, **keys))
    taken = {}  # the strategies take the arrays out of the replies

    def keep(partition):
        def read(content):
            taken[partition] = to_tensors(content.array_records["arrays"])

        return read

    grid.tamper = {("train", 1, p): keep(p) for p in range(3)}
    grid.serve()
    down = to_tensors(grid.sent["train", 2, 0].content.array_records["arrays"])
    for key, value in down.items():
        rows = torch.stack([taken[p][key] for p in range(3)])
        if name == "krum":
            assert any(torch.equal(value, row) for row in rows)
        else:  # the middle of three, trimmed or not
            torch.testing.assert_close(value, rows.median(0).values)
            assert value.dtype == rows.dtype
