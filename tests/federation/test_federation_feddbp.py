"""FedDBP: its branches, its Fisher information, its fusion, and what crosses the wire."""

from types import SimpleNamespace

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from federation.learners import Forward, NodeLearner
from federation.records import to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.feddbp import (
    DualBranchProjector,
    FedDBPExchange,
    channel_fisher,
    scale_rows,
    split_branches,
)
from federation.strategies.fedproto import FedProtoExchange
from federation.strategies.prototypes import PrototypeTable, Upload

CLASSES, WIDTH = 4, 6
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=CLASSES)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(4)


def upload(classes, rng, fisher=None) -> Upload:
    held = len(classes)
    return Upload(
        torch.tensor(classes),
        torch.randn(held, WIDTH, generator=rng),
        torch.randint(1, 9, (held,), generator=rng),
        torch.rand(held, WIDTH, generator=rng)
        if fisher is None
        else torch.full((held, WIDTH), fisher),
    )


def server(tiny, found, name="feddbp", **keys):
    experiment = tiny(name, **{f"strategy.{name}.{key}": value for key, value in keys.items()})
    strategy = ALGORITHMS[name].strategy(experiment, FACTS)
    strategy.load_state(RecordDict({str(p): u.to_arrays() for p, u in found.items()}))
    return strategy


def exchange(cls, experiment, table, head=None):
    learner = SimpleNamespace(num_classes=CLASSES, embedding_channels=WIDTH, head=head)
    made = cls(experiment, learner)
    made.table = table
    return made


def table(rng, known=(True, True, False, True)) -> PrototypeTable:
    known = torch.tensor(known)
    values = torch.randn(CLASSES, WIDTH, generator=rng)
    return PrototypeTable(torch.where(known[:, None], values, 0.0), known)


# Switched off, it is FedProto.


def test_switched_off_it_has_fedprotos_loss(tiny, rng):
    """Both branches still the identity, no contrast: the projected embedding is the embedding."""
    keys = {"fuse": "sum", "lambda_contrast": 0.0, "lambda_align": 0.7}
    ours = tiny(**{f"strategy.feddbp.{key}": value for key, value in keys.items()})
    theirs = tiny("fedproto", **{"strategy.fedproto.lambda_align": 0.7})
    projector = DualBranchProjector(WIDTH, "sum")
    h, y = torch.randn(9, WIDTH, generator=rng), torch.arange(9) % CLASSES
    head, prototypes = nn.Linear(WIDTH, CLASSES), table(rng)
    dbp, proto = Forward(projector(h), head(projector(h)), y), Forward(h, head(h), y)
    assert torch.equal(dbp.embedding, proto.embedding)
    one = exchange(FedDBPExchange, ours, prototypes).penalty(dbp)
    other = exchange(FedProtoExchange, theirs, prototypes).penalty(proto)
    assert list(one) == list(other) == ["align"]
    torch.testing.assert_close(one["align"], other["align"])


@pytest.mark.parametrize("weight", ["uniform", "count"])
def test_switched_off_its_server_is_fedprotos(tiny, rng, weight):
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng), 2: upload([1], rng)}
    ours = server(tiny, found, personal="off", global_weight=weight)
    theirs = server(tiny, found, "fedproto", global_weight=weight)
    for partition in range(3):
        one = to_tensors(ours.content_for(partition)["prototypes"])
        other = to_tensors(theirs.content_for(partition)["prototypes"])
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)


# The server's fusion.


def test_keep_nothing_gives_everybody_the_same_table(tiny, rng):
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng)}
    strategy = server(tiny, found, personal="soft", keep=0.0)
    tables = [strategy.table_for(partition) for partition in range(3)]
    assert all(torch.equal(t.values, strategy.table.values) for t in tables)


@pytest.mark.parametrize("personal", ["soft", "hard"])
def test_keep_everything_at_full_importance_returns_the_own_prototypes(tiny, rng, personal):
    found = {0: upload([0, 1], rng, fisher=1.0), 1: upload([1, 3], rng, fisher=1.0)}
    strategy = server(tiny, found, personal=personal, keep=1.0)
    for partition, own in found.items():
        mine = strategy.table_for(partition)
        assert torch.equal(mine.values[own.classes], own.values)
        others = [c for c in range(CLASSES) if c not in own.classes.tolist()]
        assert torch.equal(mine.values[others], strategy.table.values[others])
    assert torch.equal(strategy.table_for(2).values, strategy.table.values)  # it sent nothing yet


def test_fusion_is_the_formula(tiny, rng):
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng), 2: upload([1], rng)}
    soft = server(tiny, found, personal="soft", keep=0.5, fisher_floor=0.1)
    hard = server(tiny, found, personal="hard", threshold=0.4, fisher_floor=0.1)
    row = {0: 1, 1: 0, 2: 0}  # where each client's upload holds class 1
    weight = {p: found[p].support[i] * (found[p].fisher[i].double() + 0.1) for p, i in row.items()}
    own = {p: found[p].values[i] for p, i in row.items()}
    shared = sum(weight[p] * own[p].double() for p in range(3)) / sum(weight.values())
    for strategy in (soft, hard):
        torch.testing.assert_close(strategy.table.values[1].double(), shared, rtol=1e-5, atol=1e-6)
    importance = found[1].fisher[0]
    expected = 0.5 * importance * own[1] + (1 - 0.5 * importance) * shared
    torch.testing.assert_close(soft.table_for(1).values[1].double(), expected, rtol=1e-5, atol=1e-6)
    expected = torch.where(importance >= 0.4, own[1].double(), shared)
    torch.testing.assert_close(hard.table_for(1).values[1].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", ["fisher", "count", "uniform"])
def test_class_of_one_client_or_of_none(tiny, rng, weight):
    found = {0: upload([0, 1], rng), 1: upload([1], rng, fisher=0.0)}
    strategy = server(tiny, found, global_weight=weight, personal="soft")
    torch.testing.assert_close(strategy.table.values[0], found[0].values[0])
    assert strategy.table.known.tolist() == [True, True, False, False]
    for partition in range(3):
        sent = to_tensors(strategy.content_for(partition)["prototypes"])
        assert sent["classes"].tolist() == [0, 1]


def test_personal_tables_do_not_write_into_the_shared_one(tiny, rng):
    strategy = server(tiny, {0: upload([0, 1], rng), 1: upload([0, 1], rng)})
    before = strategy.table.values.clone()
    strategy.table_for(0), strategy.table_for(1)
    assert torch.equal(strategy.table.values, before)


# Fisher information.


def test_channel_fisher_is_autograds_squared_gradient(rng):
    head = nn.Linear(WIDTH, CLASSES)
    z, y = torch.randn(20, WIDTH, generator=rng), torch.arange(20) % CLASSES
    leaf = z.clone().requires_grad_()
    likelihood = head(leaf).log_softmax(-1)[torch.arange(20), y].sum()
    [gradient] = torch.autograd.grad(likelihood, leaf)
    torch.testing.assert_close(channel_fisher(z, y, head), gradient.square(), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.lists(st.floats(0, 2.0**127, width=32), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_scaled_rows_lie_between_zero_and_one(rows):
    fisher = torch.tensor(rows)
    scaled = scale_rows(fisher)
    assert scaled.isfinite().all()
    assert scaled.min() >= 0
    assert scaled.max() <= 1
    for row, result in zip(fisher, scaled, strict=True):
        if row.min() == row.max():
            assert result.tolist() == [0.5] * 4
        elif row.max() - row.min() > 1e-30:
            assert result[row.argmin()] == 0
            assert result[row.argmax()] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-20, 1.0, 3e38])
def test_constant_row_is_of_middling_importance(value):
    assert scale_rows(torch.full((2, WIDTH), value)).tolist() == [[0.5] * WIDTH] * 2


def test_rows_are_scaled_apart():
    scaled = scale_rows(torch.tensor([[0.0, 1.0, 2.0], [10.0, 10.0, 20.0]]))
    assert scaled.tolist() == [[0, 0.5, 1], [0, 0, 1]]


# The client's branches and losses.


@pytest.mark.parametrize("fuse", ["concat", "sum"])
def test_projector_keeps_the_width_and_its_branches_lie_where_they_are_split(fuse, rng):
    projector = trained(rng, fuse)
    h = torch.randn(7, WIDTH, generator=rng)
    z = projector(h)
    assert z.shape == (7, WIDTH)
    fidelity, discrimination = split_branches(z, fuse)
    if fuse == "concat":
        torch.testing.assert_close(fidelity, projector.align(h))
        torch.testing.assert_close(discrimination, projector.discriminate(h))
    else:
        torch.testing.assert_close(z, (projector.align(h) + projector.discriminate(h)) / 2)
        assert fidelity is discrimination is z


def trained(rng, fuse="concat") -> DualBranchProjector:
    """Return a projector that is no longer the identity."""
    projector = DualBranchProjector(WIDTH, fuse)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
    return projector


def penalties(tiny, table, projector, h, y, fuse="concat", **keys):
    keys = {f"strategy.feddbp.{key}": value for key, value in ({"fuse": fuse} | keys).items()}
    z = projector(h)
    return exchange(FedDBPExchange, tiny(**keys), table).penalty(Forward(z, z[:, :CLASSES], y))


@pytest.mark.parametrize("fuse", ["concat", "sum"])
def test_both_branches_get_a_gradient_and_prototypes_none(tiny, rng, fuse):
    known = table(rng)
    known = PrototypeTable(known.values.requires_grad_(), known.known)
    projector = trained(rng, fuse)
    h, y = torch.randn(8, WIDTH, generator=rng, requires_grad=True), torch.arange(8) % CLASSES
    sum(penalties(tiny, known, projector, h, y, fuse).values()).backward()
    assert [key for key, p in projector.named_parameters() if not p.grad.any()] == []
    assert h.grad.any()
    assert known.values.grad is None


def test_each_loss_reaches_its_own_branch_only(tiny, rng):
    known, projector = table(rng), trained(rng)
    h, y = torch.randn(8, WIDTH, generator=rng), torch.arange(8) % CLASSES
    terms = penalties(tiny, known, projector, h, y)
    assert list(terms) == ["align", "contrast"]
    terms["align"].backward()
    assert projector.align.weight.grad.any()
    assert (
        projector.discriminate.hidden.weight.grad is None
        or not projector.discriminate.hidden.weight.grad.any()
    )
    projector.zero_grad()
    penalties(tiny, known, projector, h, y)["contrast"].backward()
    assert projector.discriminate.hidden.weight.grad.any()
    assert projector.align.weight.grad is None or not projector.align.weight.grad.any()


def test_losses_are_the_formulas(tiny, rng):
    known, projector = table(rng), trained(rng)
    h, y = torch.randn(8, WIDTH, generator=rng), torch.arange(8) % CLASSES
    terms = penalties(
        tiny, known, projector, h, y, lambda_align=3.0, lambda_contrast=0.5, temperature=0.2
    )
    fidelity, discrimination = projector(h).split(WIDTH // 2, dim=1)
    p_align, p_discriminate = known.values.split(WIDTH // 2, dim=1)
    has = known.known[y]
    square = (fidelity - p_align[y]).square().mean(1)[has].sum() / len(y)
    torch.testing.assert_close(terms["align"], 3 * square)
    among = known.known.nonzero().flatten().tolist()
    cosine = nn.functional.cosine_similarity(discrimination[:, None], p_discriminate[None], dim=-1)
    losses = [
        -torch.log_softmax(cosine[i, among] / 0.2, 0)[among.index(int(y[i]))]
        for i in has.nonzero().flatten().tolist()
    ]
    torch.testing.assert_close(terms["contrast"], 0.5 * torch.stack(losses).mean())


def test_unknown_class_is_neither_target_nor_negative(tiny, rng):
    """Whatever the row of an unknown class holds, no loss and no gradient changes."""
    known, projector = table(rng), trained(rng)
    h, y = torch.randn(8, WIDTH, generator=rng), torch.arange(8) % CLASSES
    wild = PrototypeTable(torch.where(known.known[:, None], known.values, 1e3), known.known)
    results = []
    for prototypes in (known, wild):
        projector.zero_grad()
        terms = penalties(tiny, prototypes, projector, h, y)
        sum(terms.values()).backward()
        results.append([*terms.values(), *(p.grad.clone() for p in projector.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_before_the_first_prototypes_the_terms_are_zero_and_differentiable(tiny, rng):
    nothing = PrototypeTable.empty(CLASSES, WIDTH)
    h, y = torch.randn(5, WIDTH, generator=rng, requires_grad=True), torch.arange(5) % CLASSES
    terms = penalties(tiny, nothing, trained(rng), h, y)
    assert [term.item() for term in terms.values()] == [0.0, 0.0]
    sum(terms.values()).backward()
    assert h.grad.isfinite().all()


def test_terms_can_be_switched_off(tiny, rng):
    known, projector = table(rng), trained(rng)
    h, y = torch.randn(5, WIDTH, generator=rng), torch.arange(5) % CLASSES
    assert list(penalties(tiny, known, projector, h, y, lambda_align=0.0)) == ["contrast"]
    assert list(penalties(tiny, known, projector, h, y, lambda_contrast=0.0)) == ["align"]


@pytest.mark.parametrize("fuse", ["concat", "sum"])
@pytest.mark.parametrize("inference", ["head", "prototype"])
def test_prediction_by_prototype_is_the_score_of_the_losses(tiny, rng, inference, fuse):
    known = table(rng)
    keys = {"lambda_align": 2.0, "temperature": 0.3, "inference": inference, "fuse": fuse}
    experiment = tiny(**{f"strategy.feddbp.{key}": value for key, value in keys.items()})
    z, logits = torch.randn(30, WIDTH, generator=rng), torch.randn(30, CLASSES, generator=rng)
    predicted = exchange(FedDBPExchange, experiment, known).predict(
        Forward(z, logits, torch.zeros(30, dtype=torch.long))
    )
    assert next(iter(predicted)) == inference
    assert torch.equal(predicted["head"], logits.argmax(1))
    half = WIDTH // 2
    align = slice(half) if fuse == "concat" else slice(None)
    contrast = slice(half, None) if fuse == "concat" else slice(None)
    for row, label in zip(z, predicted["prototype"].tolist(), strict=True):
        score = {
            c: -2 * (row[align] - known.values[c, align]).square().mean()
            + nn.functional.cosine_similarity(row[contrast], known.values[c, contrast], dim=0) / 0.3
            for c in (0, 1, 3)
        }
        assert label == max(score, key=score.get)


# The wire.


def test_unlike_encoders_share_prototypes_and_no_weight_leaves_a_client(tiny, staged, tmp_path):
    experiment = tiny("feddbp", tmp_path, **{"model.encoders": "gcn, gat, mlp"})
    grid = staged(experiment)
    grid.serve()
    weights = [
        {
            tuple(p.shape)
            for p in NodeLearner.build(experiment, c, {"in-channels": 5}, 3).state_dict().values()
        }
        for c in range(3)
    ]
    assert weights[0] != weights[1] != weights[2]
    floats = 0
    for (kind, server_round, _), reply in grid.replies.items():
        if kind == "train":
            assert set(reply.content) == {"prototypes", "metrics"}
            arrays = to_tensors(reply.content.array_records["prototypes"])
            held = len(arrays["classes"])
            assert {name: tuple(a.shape) for name, a in arrays.items()} == {
                "classes": (held,),
                "support": (held,),
                "values": (held, WIDTH),
                "fisher": (held, WIDTH),
            }
            floats += sum(a.numel() for a in arrays.values() if a.is_floating_point())
        else:
            assert len(reply.content.array_records) == 0, (kind, server_round)
    held = [
        len(to_tensors(grid.replies["train", 1, c].content["prototypes"])["classes"])
        for c in range(3)
    ]
    assert floats == 2 * sum(WIDTH * 2 * count for count in held)  # two rounds of K · 2 C_i
    for (kind, server_round, _), message in grid.sent.items():
        if kind != "query.hello":
            arrays = to_tensors(message.content.array_records["prototypes"])
            known = 0 if (kind, server_round) == ("train", 1) else 3
            assert {name: tuple(a.shape) for name, a in arrays.items()} == {
                "classes": (known,),
                "values": (known, WIDTH),
            }


def test_first_aggregate_is_the_fusion_of_what_the_clients_sent(tiny, staged, tmp_path):
    grid = staged(tiny("feddbp", tmp_path, **{"run.rounds": 1}))
    grid.serve()
    found = {
        c: Upload.from_arrays(grid.replies["train", 1, c].content["prototypes"]) for c in range(3)
    }
    facts = Facts({1: 0, 2: 1, 3: 2}, {"in-channels": 5}, 3)
    strategy = ALGORITHMS["feddbp"].strategy(tiny(), facts)
    strategy.load_state(RecordDict({str(c): u.to_arrays() for c, u in found.items()}))
    for c in range(3):
        sent = to_tensors(grid.sent["evaluate", 1, c].content["prototypes"])
        assert torch.equal(sent["values"], strategy.table_for(c).values)
