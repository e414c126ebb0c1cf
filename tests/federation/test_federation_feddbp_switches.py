"""FedDBP's switches: who judges the channels, bits on the wire, one branch, fusion by likeness."""

from types import SimpleNamespace

import pytest
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from torch import nn

from federation.experiment import Experiment
from federation.learners import Forward, NodeLearner
from federation.records import to_arrays, to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.feddbp import FedDBPExchange, similar_rows
from federation.strategies.fedproto import FedProtoExchange
from federation.strategies.fisher import channel_fisher, fit_server_head, scale_rows, server_head
from federation.strategies.prototypes import PrototypeTable, Upload
from graphcl.errors import ConfigError, ReplyError
from graphcl.prototypes import DualBranchProjector, split_branches

CLASSES, WIDTH = 4, 10  # a byte holds eight of the ten channels
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=CLASSES)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(4)


def upload(classes, rng, fisher: bool = True) -> Upload:
    held = len(classes)
    return Upload(
        torch.tensor(classes),
        torch.randn(held, WIDTH, generator=rng),
        torch.randint(1, 9, (held,), generator=rng),
        torch.rand(held, WIDTH, generator=rng) if fisher else torch.empty(0),
    )


@pytest.fixture
def configured(tiny):
    """Build an experiment by FedDBP's own keys."""

    def build(directory="", **keys) -> Experiment:
        fixed = {"model.embedding_channels": WIDTH}
        return tiny(
            "feddbp", directory, **fixed, **{f"strategy.feddbp.{k}": v for k, v in keys.items()}
        )

    return build


def replies(found) -> list[Message]:
    made = []
    for partition, one in found.items():
        asked = Message(RecordDict(), dst_node_id=partition + 1, message_type=MessageType.TRAIN)
        made.append(Message(RecordDict({"prototypes": one.to_arrays()}), reply_to=asked))
    return made


def served(experiment, found, server_round: int = 1):
    strategy = ALGORITHMS["feddbp"].strategy(experiment, FACTS)
    strategy.aggregate_train(server_round, replies(found))
    return strategy


def exchange(cls, experiment, table, head=None):
    made = cls(experiment, SimpleNamespace(num_classes=CLASSES, head=head))
    made.table = table
    return made


# A head that is not linear.


def test_importance_under_a_perceptron_is_the_squared_gradient_of_each_sample(rng):
    head = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    z, y = torch.randn(9, WIDTH, generator=rng), torch.arange(9) % CLASSES
    with torch.no_grad():
        fisher = channel_fisher(z, y, head)
    for row, value, label in zip(fisher, z, y, strict=True):
        leaf = value.clone().requires_grad_()
        [gradient] = torch.autograd.grad(head(leaf).log_softmax(-1)[label], leaf)
        torch.testing.assert_close(row, gradient.square())
    assert all(p.grad is None for p in head.parameters())


def test_both_ways_agree_on_a_linear_head(rng):
    head = nn.Linear(WIDTH, CLASSES)
    z, y = torch.randn(9, WIDTH, generator=rng), torch.arange(9) % CLASSES
    torch.testing.assert_close(
        channel_fisher(z, y, head), channel_fisher(z, y, nn.Sequential(head)), rtol=0, atol=1e-6
    )


# The server judges.


def test_server_judges_by_the_head_that_it_trained(configured, staged, rng):
    experiment = configured(fisher="server")
    staged(experiment)
    found = {0: upload([0, 1], rng, False), 1: upload([1, 3], rng, False)}
    strategy = served(experiment, found)
    for partition, one in found.items():
        leaf = one.values.double().requires_grad_()
        logits = strategy.head(leaf)
        likelihood = logits.log_softmax(-1)[range(2), one.classes].sum()
        [gradient] = torch.autograd.grad(likelihood, leaf)
        expected = scale_rows(gradient.square()).float()
        torch.testing.assert_close(strategy.uploads[partition].fisher, expected)
    weight = {
        p: u.support[:, None] * (u.fisher.double() + 0.1) for p, u in strategy.uploads.items()
    }
    shared = weight[0][1] * found[0].values[1] + weight[1][0] * found[1].values[0]
    torch.testing.assert_close(
        strategy.table.values[1].double(), shared / (weight[0][1] + weight[1][0])
    )


def test_servers_head_learns_and_goes_on_where_it_stood(configured, staged, rng):
    experiment = configured(fisher="server")
    staged(experiment)
    found = {0: upload([0, 1], rng, False), 1: upload([1, 3], rng, False)}
    strategy = served(experiment, found)
    values = torch.cat([u.values for u in found.values()]).double()
    classes = torch.cat([u.classes for u in found.values()])

    def loss(head) -> float:
        return float(nn.functional.cross_entropy(head(values), classes))

    start, first = loss(server_head(experiment, FACTS)), loss(strategy.head)
    strategy.aggregate_train(2, replies(found))
    assert loss(strategy.head) < first < start


def test_an_absent_clients_prototypes_are_judged_anew(configured, staged, rng):
    experiment = configured(fisher="server")
    staged(experiment)
    found = {0: upload([0, 1], rng, False), 1: upload([1, 3], rng, False)}
    strategy = served(experiment, found)
    before = strategy.uploads[1].fisher
    strategy.aggregate_train(2, replies({0: found[0]}))
    assert torch.equal(strategy.uploads[1].values, found[1].values)
    assert not torch.equal(strategy.uploads[1].fisher, before)


def test_state_restores_the_head_and_what_it_said(configured, staged, rng):
    experiment = configured(fisher="server")
    staged(experiment)
    found = {0: upload([0, 1], rng, False), 1: upload([1, 3], rng, False)}
    whole = served(experiment, found)
    resumed = ALGORITHMS["feddbp"].strategy(experiment, FACTS)
    resumed.load_state(whole.state())
    for server_round in (1, 2):
        for partition in range(3):
            one, other = whole.table_for(partition), resumed.table_for(partition)
            assert torch.equal(one.values, other.values)
        if server_round == 1:
            whole.aggregate_train(2, replies({1: found[1]}))
            resumed.aggregate_train(2, replies({1: found[1]}))


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e38])
def test_any_finite_prototype_can_be_judged(configured, rng, scale):
    """What a client sends must not end the federation."""
    one = upload([0, 1], rng, False)
    wild = Upload(one.classes, one.values * scale, one.support, one.fisher)
    head = server_head(configured(), FACTS)
    fit_server_head(head, [wild, upload([1, 3], rng, False)], rng)
    assert all(p.isfinite().all() for p in head.parameters())


def test_killed_run_of_a_judging_server_goes_on_to_the_same_end(
    configured, tmp_path, killed_and_resumed, summary_of, staged
):
    keys = {"fisher": "server"}
    whole = configured(tmp_path / "whole", **keys).override({"run.rounds": 3})
    staged(whole).serve()
    killed = configured(tmp_path / "killed", **keys).override({"run.rounds": 3})
    killed_and_resumed(killed, 2)
    assert summary_of(tmp_path / "killed")["digest"] == summary_of(tmp_path / "whole")["digest"]


# A bit for each channel.


def test_bits_return_as_they_went(rng):
    one = upload([0, 1, 3], rng)
    bits = Upload(one.classes, one.values, one.support, one.fisher >= 0.4)
    arrays = bits.to_arrays()
    packed = to_tensors(arrays)["fisher"]
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (3, 2))
    again = Upload.from_arrays(arrays)
    assert again.fisher.dtype == torch.bool
    assert torch.equal(again.fisher, bits.fisher)


def test_bits_are_the_hard_mask_and_the_weights_of_the_mean(configured, staged, rng):
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng)}
    one_bit = {p: Upload(u.classes, u.values, u.support, u.fisher >= 0.4) for p, u in found.items()}
    experiment = configured(fisher_bits=1, personal="hard")
    staged(experiment)
    strategy = served(experiment, one_bit)
    weight = {p: u.support[:, None] * (u.fisher.double() + 0.1) for p, u in one_bit.items()}
    shared = weight[0][1] * found[0].values[1] + weight[1][0] * found[1].values[0]
    shared = shared / (weight[0][1] + weight[1][0])
    torch.testing.assert_close(strategy.table.values[1].double(), shared)
    expected = torch.where(found[0].fisher[1] >= 0.4, found[0].values[1].double(), shared)
    torch.testing.assert_close(strategy.table_for(0).values[1].double(), expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fisher": torch.rand(2, WIDTH)}, "'fisher' holds torch.float32, not torch.uint8"),
        ({"fisher": torch.zeros(2, 1, dtype=torch.uint8)}, r"'fisher' has shape \[2, 1\]"),
        ({"fisher": torch.zeros(2, WIDTH, dtype=torch.uint8)}, r"'fisher' has shape \[2, 10\]"),
        ({"fisher": None}, "expected the arrays"),
    ],
)
def test_malformed_bits_are_refused(configured, rng, changed, message):
    one = upload([0, 1], rng)
    good = to_tensors(Upload(one.classes, one.values, one.support, one.fisher > 0.5).to_arrays())
    metrics = MetricRecord({"num-examples": int(one.support.sum())})
    experiment = configured(fisher_bits=1, personal="hard")

    def check(tensors) -> None:
        content = RecordDict({"prototypes": to_arrays(tensors), "metrics": metrics})
        ALGORITHMS["feddbp"].check_reply(content, None, experiment, FACTS)

    check(good)
    with pytest.raises(ReplyError, match=message):
        check({k: v for k, v in (good | changed).items() if v is not None})


def test_importance_that_nobody_asked_for_is_refused(configured, rng):
    one = upload([0, 1], rng)
    metrics = MetricRecord({"num-examples": int(one.support.sum())})
    content = RecordDict({"prototypes": one.to_arrays(), "metrics": metrics})
    with pytest.raises(ReplyError, match="expected the arrays"):
        ALGORITHMS["feddbp"].check_reply(content, None, configured(fisher="server"), FACTS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fisher": "server", "personal": "hard"}, "strategy.feddbp.fisher_bits: 1 bit is what a"),
        ({"personal": "soft"}, "strategy.feddbp.fisher_bits: 1 bit says whether a channel matters"),
    ],
)
def test_bits_that_mean_nothing_are_refused(configured, keys, message):
    with pytest.raises(ConfigError, match=message):
        configured(fisher_bits=1, **keys)


# What crosses the wire, by variant.


@pytest.mark.parametrize(
    ("keys", "extra"),
    [
        ({"fisher": "client"}, 4 * WIDTH),
        ({"fisher": "client", "fisher_bits": 1, "personal": "hard"}, 2),
        ({"fisher": "server"}, 0),
    ],
    ids=["client-32", "client-1", "server"],
)
def test_payload_is_that_of_the_table(configured, staged, tmp_path, keys, extra):
    """Per class that a client holds: K floats and a count, and the importance of the channels."""
    experiment = configured(tmp_path, **keys).override({"model.encoders": "gcn, gat, mlp"})
    grid = staged(experiment)
    grid.serve()
    models = [NodeLearner.build(experiment, c, {"in-channels": 5}, 3) for c in range(3)]
    assert len({tuple(model.state_dict()) for model in models}) == 3
    for server_round in (1, 2):
        for client in range(3):
            content = grid.replies["train", server_round, client].content
            assert set(content) == {"prototypes", "metrics"}
            arrays = to_tensors(content["prototypes"])
            held = len(arrays["classes"])
            size = sum(a.numel() * a.element_size() for a in arrays.values())
            assert size == held * (8 + 8 + 4 * WIDTH + extra)
            down = to_tensors(grid.sent["evaluate", server_round, client].content["prototypes"])
            assert {name: tuple(a.shape) for name, a in down.items()} == {
                "classes": (3,),
                "values": (3, WIDTH),
            }


# One branch.


def test_single_branch_has_no_projector_and_both_losses_on_the_embedding(configured, rng):
    experiment = configured(fuse="none", lambda_align=0.7, lambda_contrast=0.5, temperature=0.3)
    assert FedDBPExchange.projector(experiment) is None
    assert FedDBPExchange.projector(configured(fuse="sum")) is not None
    z, y = torch.randn(8, WIDTH, generator=rng), torch.arange(8) % CLASSES
    assert all(part is z for part in split_branches(z, "none"))
    table = PrototypeTable(
        torch.randn(CLASSES, WIDTH, generator=rng), torch.ones(CLASSES, dtype=torch.bool)
    )
    terms = exchange(FedDBPExchange, experiment, table).penalty(Forward(z, z[:, :CLASSES], y))
    torch.testing.assert_close(terms["align"], 0.7 * (z - table.values[y]).square().mean())
    cosine = nn.functional.cosine_similarity(z[:, None], table.values[None], dim=-1)
    expected = 0.5 * nn.functional.cross_entropy(cosine / 0.3, y)
    torch.testing.assert_close(terms["contrast"], expected)


def test_single_branch_without_contrast_and_fusion_is_fedproto(configured, tiny, staged, rng):
    """Test 1 of the specification, with the projector gone instead of set to the identity."""
    experiment = configured(
        fuse="none", lambda_contrast=0.0, personal="off", global_weight="uniform", lambda_align=0.7
    )
    staged(experiment)
    keys = {"strategy.fedproto.global_weight": "uniform", "strategy.fedproto.lambda_align": 0.7}
    theirs = tiny("fedproto", **{"model.embedding_channels": WIDTH}, **keys)
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng), 2: upload([1], rng)}
    ours, other = served(experiment, found), ALGORITHMS["fedproto"].strategy(theirs, FACTS)
    other.aggregate_train(1, replies(found))
    assert torch.equal(ours.table_for(0).values, other.table.values)
    z, y = torch.randn(8, WIDTH, generator=rng), torch.arange(8) % CLASSES
    out = Forward(z, z[:, :CLASSES], y)
    one = exchange(FedDBPExchange, experiment, ours.table).penalty(out)
    two = exchange(FedProtoExchange, theirs, ours.table).penalty(out)
    assert list(one) == list(two) == ["align"]
    assert torch.equal(one["align"], two["align"])


# Fusion by likeness.


def test_likeness_is_the_softmax_of_cosines_over_the_holders(configured, staged, rng):
    found = {0: upload([0, 1], rng), 1: upload([1, 3], rng), 2: upload([1], rng)}
    experiment = configured(personal="similar", similarity_temperature=0.3)
    staged(experiment)
    strategy = served(experiment, found)
    holders = torch.stack([found[0].values[1], found[1].values[0], found[2].values[0]]).double()
    for partition in range(3):
        cosine = nn.functional.cosine_similarity(holders, holders[partition, None])
        expected = (cosine / 0.3).softmax(0) @ holders
        mine = strategy.table_for(partition).values
        torch.testing.assert_close(mine[1].double(), expected, rtol=1e-5, atol=1e-6)
        others = [c for c in range(CLASSES) if c not in found[partition].classes]
        assert torch.equal(mine[others], strategy.table.values[others])


def test_the_colder_the_likeness_the_nearer_to_the_own_prototype(rng):
    found = {0: upload([0, 1], rng), 1: upload([0, 1], rng)}
    cold = similar_rows(found[0], found, CLASSES, 1e-3)
    torch.testing.assert_close(cold, found[0].values)
    hot = similar_rows(found[0], found, CLASSES, 1e6)
    torch.testing.assert_close(hot, (found[0].values + found[1].values) / 2, rtol=1e-4, atol=1e-4)


def test_a_zero_prototype_is_like_nothing_and_breaks_nothing(rng):
    found = {0: upload([0], rng), 1: upload([0], rng)}
    found[0].values.zero_()
    assert similar_rows(found[0], found, CLASSES, 1.0).isfinite().all()


@pytest.mark.parametrize("fuse", ["concat", "sum"])
def test_the_projector_starts_as_the_identity_whose_branches_all_learn(fuse, rng):
    projector = DualBranchProjector(WIDTH, fuse)
    h = torch.randn(5, WIDTH, generator=rng)
    assert projector(h).equal(h)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    for _ in range(2):  # in the first step, a last layer of zeros lets nothing through
        optimizer.zero_grad()
        (projector(h) - 1).square().mean().backward()
        optimizer.step()
    assert all(not value.equal(before[name]) for name, value in projector.state_dict().items())
