"""Prototypes: means that do not depend on who is counted how, and uploads that are checked."""

import pytest
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.learners import Forward, Owners
from federation.privacy.table import Privacy
from federation.records import to_arrays, to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.fedproto import FedProto, alignment, first
from federation.strategies.prototypes import (
    PrototypeTable,
    Upload,
    check_upload,
    class_means,
    local_upload,
    weighted_prototypes,
)
from graphcl.errors import ReplyError
from graphcl.prototypes import nearest

CLASSES, WIDTH = 4, 3
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=CLASSES)


@st.composite
def uploads(draw, clients: int = 3):
    """Uploads of some clients, each holding some classes."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    found = {}
    for partition in range(clients):
        held = draw(st.sets(st.integers(0, CLASSES - 1)))
        classes = torch.tensor(sorted(held), dtype=torch.long)
        found[partition] = Upload(
            classes,
            torch.randn(len(held), WIDTH, generator=rng) * draw(st.sampled_from([1e-3, 1.0, 1e4])),
            torch.randint(1, 1000, (len(held),), generator=rng),
            torch.rand(len(held), WIDTH, generator=rng),
        )
    return found


def by_support(found) -> PrototypeTable:
    weights = {partition: upload.support[:, None] for partition, upload in found.items()}
    return weighted_prototypes(found, weights, CLASSES, WIDTH)


EXAMPLES = settings(deadline=None, max_examples=60)


@EXAMPLES
@given(found=uploads())
def test_weighted_mean_is_that_of_a_loop(found):
    table = by_support(found)
    assert table.values.dtype == torch.float32
    for label in range(CLASSES):
        holders = [
            (u.values[i].double(), int(u.support[i]))
            for u in found.values()
            for i in (u.classes == label).nonzero().flatten().tolist()
        ]
        assert bool(table.known[label]) == bool(holders)
        total = sum(n for _, n in holders)
        mean = sum((v * n for v, n in holders), torch.zeros(WIDTH).double()) / max(total, 1)
        torch.testing.assert_close(table.values[label].double(), mean, rtol=1e-6, atol=1e-30)


@EXAMPLES
@given(found=uploads(), order=st.permutations(range(3)))
def test_arrival_order_changes_no_bit(found, order):
    one, other = by_support(found), by_support({partition: found[partition] for partition in order})
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.known, other.known)


@EXAMPLES
@given(found=uploads(), names=st.permutations(range(3)))
def test_names_of_the_clients_do_not_matter(found, names):
    renamed = {names[partition]: upload for partition, upload in found.items()}
    torch.testing.assert_close(
        by_support(found).values, by_support(renamed).values, rtol=1e-5, atol=1e-4
    )


@EXAMPLES
@given(found=uploads(), parts=st.integers(2, 5))
def test_one_client_or_several_with_its_mean_weigh_the_same(found, parts):
    whole = found[0]
    found[0] = Upload(whole.classes, whole.values, whole.support * parts, whole.fisher)
    split = {partition: upload for partition, upload in found.items() if partition}
    split |= {10 + part: whole for part in range(parts)}
    torch.testing.assert_close(
        by_support(found).values, by_support(split).values, rtol=1e-5, atol=1e-4
    )


@EXAMPLES
@given(found=uploads(clients=1))
def test_class_of_one_client_keeps_its_value(found):
    table = by_support(found)
    assert torch.equal(table.values[found[0].classes], found[0].values)
    assert table.known.nonzero().flatten().tolist() == found[0].classes.tolist()
    assert not table.values[~table.known].any()


def test_nobody_knows_anything_before_the_first_round():
    table = weighted_prototypes({}, {}, CLASSES, WIDTH)
    assert not table.known.any()
    assert not table.values.any()


@EXAMPLES
@given(found=uploads(clients=1))
def test_tables_and_uploads_cross_the_wire_unchanged(found):
    table = by_support(found)
    wire = table.to_arrays()
    assert to_tensors(wire)["values"].shape == (int(table.known.sum()), WIDTH)
    back = PrototypeTable.from_arrays(wire, CLASSES, WIDTH, torch.device("cpu"))
    assert torch.equal(back.values, table.values)
    assert torch.equal(back.known, table.known)
    upload = Upload.from_arrays(found[0].to_arrays())
    for name in ("classes", "values", "support"):
        assert torch.equal(getattr(upload, name), getattr(found[0], name))
    assert torch.equal(upload.fisher.flatten(), found[0].fisher.flatten())


@EXAMPLES
@given(labels=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30))
def test_class_means_are_those_of_a_loop(labels):
    y = torch.tensor(labels)
    values = torch.randn(len(y), WIDTH, generator=torch.Generator().manual_seed(len(y)))
    classes, means, support = class_means(values, y, CLASSES)
    assert classes.tolist() == sorted(set(labels))
    for label, mean, count in zip(classes.tolist(), means, support.tolist(), strict=True):
        torch.testing.assert_close(mean, values[y == label].mean(0))
        assert count == labels.count(label)


def test_local_upload_averages_embedding_and_fisher_by_class():
    out = Forward(torch.arange(12.0).reshape(4, 3), torch.zeros(4, 4), torch.tensor([3, 1, 3, 3]))
    upload = local_upload(out, CLASSES, Privacy(), out.embedding * 2)
    assert upload.classes.tolist() == [1, 3]
    assert upload.support.tolist() == [1, 3]
    assert upload.values.tolist() == [[3, 4, 5], [5, 6, 7]]
    assert torch.equal(upload.fisher, upload.values * 2)
    assert "fisher" not in local_upload(out, CLASSES, Privacy()).to_arrays()


def good(fisher: bool = True) -> dict[str, torch.Tensor]:
    tensors = {
        "classes": torch.tensor([0, 2]),
        "values": torch.ones(2, WIDTH),
        "support": torch.tensor([3, 1]),
    }
    return tensors | ({"fisher": torch.full((2, WIDTH), 0.5)} if fisher else {})


def checked(tensors, tiny, *, fisher: bool = True) -> None:
    told = MetricRecord({"num-examples": 4})
    content = RecordDict({"prototypes": to_arrays(tensors), "metrics": told})
    experiment = tiny(**{"model.embedding_channels": WIDTH, "strategy.feddbp.fuse": "sum"})
    check_upload(content, experiment, FACTS, fisher=fisher)


def test_good_uploads_pass(tiny):
    checked(good(), tiny)
    checked(good(fisher=False), tiny, fisher=False)


NAN = torch.full((2, WIDTH), float("nan"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": NAN}, r"'values' is not finite at \[0, 0\]"),
        ({"values": torch.full((2, WIDTH), float("inf"))}, "'values' is not finite"),
        ({"fisher": NAN}, "'fisher' is not finite"),
        ({"values": torch.ones(2, WIDTH + 1)}, r"'values' has shape \[2, 4\], not \[2, 3\]"),
        ({"values": torch.ones(3, WIDTH)}, r"'values' has shape \[3, 3\]"),
        ({"values": torch.ones(2)}, "'values' has shape"),
        ({"fisher": torch.ones(2, 1)}, "'fisher' has shape"),
        ({"support": torch.tensor([1])}, "'support' has shape"),
        ({"classes": torch.tensor([[0, 2]])}, "'classes' has shape"),
        ({"classes": torch.tensor([0, CLASSES])}, "class id lies outside 0..3"),
        ({"classes": torch.tensor([-1, 2])}, "class id lies outside 0..3"),
        ({"classes": torch.tensor([2, 2])}, "a class is named twice"),
        ({"support": torch.tensor([0, 3])}, "without a sample"),
        ({"support": torch.tensor([3, -2])}, "without a sample"),
        ({"fisher": torch.full((2, WIDTH), 1.5)}, r"'fisher' leaves \[0, 1\]"),
        ({"fisher": torch.full((2, WIDTH), -0.1)}, r"'fisher' leaves \[0, 1\]"),
        ({"extra": torch.ones(1)}, "expected the arrays"),
        ({"support": torch.tensor([3, 2])}, "claim 5 samples, the metrics 4"),
    ],
)
def test_malformed_uploads_are_refused(tiny, changed, message):
    with pytest.raises(ReplyError, match=message):
        checked(good() | changed, tiny)


@pytest.mark.parametrize("missing", sorted(good()))
def test_missing_arrays_are_refused(tiny, missing):
    tensors = {name: tensor for name, tensor in good().items() if name != missing}
    with pytest.raises(ReplyError, match="expected the arrays"):
        checked(tensors, tiny)


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": torch.tensor([0.0, 2.0])},
        {"classes": torch.tensor([True, False])},
        {"classes": torch.tensor(0)},
        {"support": torch.tensor([3.0, float("nan")])},
        {"support": torch.tensor([3.5, 1.0])},
        {"values": torch.ones(2, WIDTH, dtype=torch.complex64)},
        {"values": torch.ones(2, WIDTH, dtype=torch.bool)},
    ],
    ids=["float classes", "bool classes", "scalar", "nan support", "half", "complex", "bool"],
)
def test_arrays_of_the_wrong_type_are_refused(tiny, changed):
    """They would pass as numbers and raise inside the aggregate, where one client ends the run."""
    with pytest.raises(ReplyError):
        checked(good() | changed, tiny)


def test_reply_without_prototypes_is_refused(tiny):
    with pytest.raises(ReplyError, match=r"got \[\]"):
        check_upload(RecordDict(), tiny(), FACTS, fisher=False)


def test_the_first_of_several_faults_is_always_the_same(tiny):
    """Reasons are part of the digest; the order of a set is not the same in every process."""
    with pytest.raises(ReplyError, match="'values'"):
        checked(good() | {"values": NAN, "fisher": NAN}, tiny)


def table(known: list[bool]) -> PrototypeTable:
    values = torch.arange(CLASSES * WIDTH, dtype=torch.float32).reshape(CLASSES, WIDTH)
    known = torch.tensor(known)
    return PrototypeTable(torch.where(known[:, None], values, 0.0), known)


def mean_alignment(embedding: torch.Tensor, y: torch.Tensor, prototypes: PrototypeTable):
    (mean,) = alignment(embedding, y, prototypes, Owners.one(y))
    return mean


def test_alignment_is_the_mean_squared_distance_to_the_own_prototype():
    embedding = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1, 3, 2])
    full = table([True] * 4)
    expected = torch.nn.functional.mse_loss(embedding, full.values[y])
    torch.testing.assert_close(mean_alignment(embedding, y, full), expected)


def test_alignment_counts_unknown_classes_as_their_own_target():
    embedding = torch.randn(4, WIDTH, requires_grad=True)
    y = torch.tensor([0, 1, 1, 2])
    some = table([True, False, True, True])
    target = torch.where(some.known[y][:, None], some.values[y], embedding.detach())
    loss = mean_alignment(embedding, y, some)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(embedding, target))
    loss.backward()
    assert embedding.grad[[1, 2]].abs().max() == 0
    assert embedding.grad[[0, 3]].abs().min() > 0


def test_alignment_is_zero_where_nothing_is_known_or_nobody_there():
    assert mean_alignment(torch.ones(2, WIDTH), torch.tensor([0, 1]), table([False] * 4)) == 0
    empty = torch.empty(0, dtype=torch.long)
    assert mean_alignment(torch.empty(0, WIDTH), empty, table([True] * 4)) == 0


def test_nearest_never_names_an_unknown_class():
    distance = torch.tensor([[0.0, 3.0, 2.0, 5.0], [0.0, 1.0, 2.0, 0.5]])
    assert nearest(distance, torch.tensor([True] * 4)).tolist() == [0, 0]
    assert nearest(distance, torch.tensor([False, True, True, False])).tolist() == [2, 1]
    assert nearest(distance, torch.tensor([False] * 4)).tolist() == [-1, -1]


def test_the_inference_that_counts_comes_first():
    predictions = {"head": torch.tensor([0]), "prototype": torch.tensor([1])}
    assert list(first("prototype", predictions)) == ["prototype", "head"]
    assert list(first("head", predictions)) == ["head", "prototype"]


def server(tiny, name: str, found, **keys):
    """A server half that has taken in some uploads."""
    keys = {"model.embedding_channels": WIDTH, "strategy.feddbp.fuse": "sum"} | keys
    strategy = ALGORITHMS[name].strategy(tiny(name, **keys), FACTS)
    strategy.load_state(RecordDict({str(p): u.to_arrays() for p, u in found.items()}))
    return strategy


TWO = {
    0: Upload(
        torch.tensor([0, 1]),
        torch.tensor([[1.0] * 3, [5.0] * 3]),
        torch.tensor([3, 2]),
        torch.empty(0),
    ),
    1: Upload(torch.tensor([0]), torch.tensor([[9.0] * 3]), torch.tensor([1]), torch.empty(0)),
}


@pytest.mark.parametrize(("weight", "expected"), [("count", 3.0), ("uniform", 5.0)])
def test_fedproto_averages_by_count_or_plainly(tiny, weight, expected):
    strategy = server(tiny, "fedproto", TWO, **{"strategy.fedproto.global_weight": weight})
    assert strategy.table.values[0].tolist() == [expected] * 3
    assert strategy.table.values[1].tolist() == [5.0] * 3
    assert strategy.table.known.tolist() == [True, True, False, False]
    sent = strategy.content_for(2)["prototypes"]
    assert to_tensors(sent)["classes"].tolist() == [0, 1]


def reply_from(node: int, upload: Upload) -> Message:
    asked = Message(RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
    return Message(RecordDict({"prototypes": upload.to_arrays()}), reply_to=asked)


def test_last_upload_of_an_absent_client_stays(tiny, staged):
    staged(tiny())  # messages need a run
    strategy = server(tiny, "fedproto", TWO)
    newer = Upload(TWO[1].classes, TWO[1].values * 0 + 5, TWO[1].support, TWO[1].fisher)
    arrays, _ = strategy.aggregate_train(2, [reply_from(2, newer)])
    assert strategy.table.values[0].tolist() == [2.0] * 3  # (3 · 1 + 1 · 5) / 4
    assert to_tensors(arrays)["classes"].tolist() == [0, 1]


def test_client_that_lost_a_class_takes_it_along(tiny, staged):
    staged(tiny())
    strategy = server(tiny, "fedproto", TWO)
    strategy.aggregate_train(2, [reply_from(1, TWO[1])])
    assert strategy.table.known.tolist() == [True, False, False, False]


@pytest.mark.parametrize("name", ["fedproto", "feddbp"])
def test_server_state_returns_the_same_tables(tiny, name):
    found = {
        p: Upload(u.classes, u.values, u.support, torch.rand(len(u.classes), WIDTH))
        for p, u in TWO.items()
    }
    strategy = server(tiny, name, found)
    other = ALGORITHMS[name].strategy(strategy.experiment, FACTS)
    other.load_state(strategy.state())
    for partition in range(3):
        one, two = strategy.table_for(partition), other.table_for(partition)
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.known, two.known)


def test_empty_state_is_a_server_before_the_first_round(tiny):
    strategy = server(tiny, "fedproto", {})
    assert isinstance(strategy, FedProto)
    assert len(strategy.state()) == 0
    assert to_tensors(strategy.content_for(0)["prototypes"])["values"].shape == (0, 3)
