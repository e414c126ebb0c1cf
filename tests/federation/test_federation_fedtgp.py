"""FedTGP: the margin and the loss of the code, a server that learns, and what survives of it."""

import math
from functools import partialmethod

import pytest
import torch
from flwr.app import Message, MessageType, RecordDict

from federation.learners import Forward
from federation.records import to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.fedtgp import FedTGP, adaptive_margin, margin_loss
from federation.strategies.pairs import Pairs, labelled_pairs
from federation.strategies.prototypes import Upload
from graphcl.training import num_threads

CLASSES, WIDTH = 4, 6
FACTS = Facts({1: 0, 2: 1, 3: 2}, channels={"in-channels": 5}, num_classes=CLASSES)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(4)


def upload(classes, rng, scale: float = 1.0) -> Upload:
    return Upload(
        torch.tensor(classes),
        scale * torch.randn(len(classes), WIDTH, generator=rng),
        torch.randint(1, 9, (len(classes),), generator=rng),
        torch.empty(0),
    )


@pytest.fixture
def found(rng):
    """Nobody holds class 2."""
    return {0: upload([0, 1], rng), 1: upload([1, 3], rng), 2: upload([0, 1, 3], rng)}


@pytest.fixture
def server(tiny, staged):
    """Build a server half; ``server(**{"epochs": 3})``."""
    staged(tiny())  # messages need a run

    def build(**keys) -> FedTGP:
        fixed = {f"strategy.fedtgp.{key}": value for key, value in keys.items() if "." not in key}
        other = {key: value for key, value in keys.items() if "." in key}
        return ALGORITHMS["fedtgp"].strategy(tiny("fedtgp", **fixed, **other), FACTS)

    return build


def take(strategy: FedTGP, server_round: int, found, order=(0, 1, 2)) -> None:
    replies = []
    for partition in order:
        if partition in found:
            asked = Message(RecordDict(), dst_node_id=partition + 1, message_type=MessageType.TRAIN)
            content = RecordDict({"prototypes": found[partition].to_arrays()})
            replies.append(Message(content, reply_to=asked))
    strategy.aggregate_train(server_round, replies)


# The margin.


def pairs_at(*points: tuple[int, float]) -> Pairs:
    classes = torch.tensor([label for label, _ in points])
    values = torch.zeros(len(points), WIDTH)
    values[:, 0] = torch.tensor([place for _, place in points])
    return Pairs(values, classes)


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize(("apart", "expected"), [(7.0, 7.0), (99.0, 99.0), (1000.0, 100.0)])
def test_margin_of_two_classes_is_their_distance_up_to_the_limit(form, apart, expected):
    assert adaptive_margin(pairs_at((0, 0.0), (2, apart)), form, 100.0) == expected


def test_code_and_paper_differ_in_the_margin():
    """Centres at 0, 1 and 10: the last one's nearest is 9 away, the outermost are 10 apart."""
    pairs = pairs_at((0, -1.0), (0, 1.0), (1, 1.0), (3, 10.0))
    assert adaptive_margin(pairs, "code", 100.0) == 9.0
    assert adaptive_margin(pairs, "paper", 100.0) == 10.0


@pytest.mark.parametrize("form", ["code", "paper"])
def test_margin_of_one_class_alone_is_the_limit(form):
    assert adaptive_margin(pairs_at((1, 3.0), (1, 5.0)), form, 40.0) == 40.0


@pytest.mark.parametrize("form", ["code", "paper"])
def test_margin_is_that_of_a_loop(form, found):
    pairs = labelled_pairs(found.values())
    centres = {
        label: sum(
            u.values[i].double()
            for u in found.values()
            for i, c in enumerate(u.classes)
            if c == label
        )
        / sum(label in u.classes for u in found.values())
        for label in (0, 1, 3)
    }
    apart = {
        a: [float((centres[a] - centres[b]).norm()) for b in centres if b != a] for a in centres
    }
    inner = min if form == "code" else max
    expected = max(inner(distances) for distances in apart.values())
    assert adaptive_margin(pairs, form, 100.0) == pytest.approx(expected, rel=1e-12)


# The loss.


def test_loss_is_that_of_a_loop(found, rng):
    pairs = labelled_pairs(found.values())
    prototypes = torch.randn(CLASSES, WIDTH, generator=rng)
    losses = []
    for value, label in zip(pairs.values.double(), pairs.classes.tolist(), strict=True):
        distance = [math.dist(value.tolist(), row) for row in prototypes.double().tolist()]
        distance[label] += 2.5
        losses.append(distance[label] + math.log(sum(math.exp(-d) for d in distance)))
    loss = margin_loss(pairs, prototypes, 2.5)
    assert float(loss) == pytest.approx(sum(losses) / len(losses), rel=1e-10)


def test_prototype_on_its_learned_one_has_a_finite_loss_and_gradient(found, rng):
    pairs = labelled_pairs(found.values())
    prototypes = torch.randn(CLASSES, WIDTH, generator=rng)
    prototypes[0] = pairs.values[0]
    prototypes.requires_grad_()
    loss = margin_loss(pairs, prototypes, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert prototypes.grad.isfinite().all()


def test_any_finite_prototype_can_be_learned_from(server, rng):
    """What a client sends must not end the federation."""
    strategy = server(epochs=2)
    take(strategy, 1, {0: upload([0, 1], rng, scale=1e38), 1: upload([1, 3], rng)})
    assert strategy.table.values.isfinite().all()


# The server.


def test_before_the_first_upload_nothing_is_known(server):
    strategy = server()
    assert not strategy.table.known.any()
    assert to_tensors(strategy.content_for(0)["prototypes"])["values"].shape == (0, WIDTH)


def test_uploads_that_withhold_every_class_teach_nothing_that_could_be_sent(server, rng, found):
    strategy = server(epochs=1)
    take(strategy, 1, {0: upload([], rng), 1: upload([], rng)})
    assert not strategy.table.known.any()
    take(strategy, 2, found)
    assert strategy.table.known.all()


def test_all_classes_are_sent_also_those_that_nobody_uploaded(server, found):
    strategy = server(epochs=1)
    take(strategy, 1, found)
    sent = to_tensors(strategy.content_for(0)["prototypes"])
    assert sent["classes"].tolist() == [0, 1, 2, 3]
    assert torch.equal(sent["values"], strategy.network().detach())


def test_learned_prototypes_tell_the_classes_of_the_uploads(server, rng):
    """Clusters of three classes; after training the nearest prototype is that of the class."""
    centres = 3 * torch.eye(WIDTH)[:CLASSES]
    found = {}
    for client in range(3):
        one = upload([0, 1, 3], rng, scale=0.3)
        found[client] = Upload(
            one.classes, one.values + centres[one.classes], one.support, one.fisher
        )
    strategy = server()
    pairs = labelled_pairs(found.values())

    def loss() -> float:
        margin = adaptive_margin(pairs, "code", 100.0)
        return float(margin_loss(pairs, strategy.network().detach(), margin))

    before = loss()
    for server_round in range(1, 4):
        take(strategy, server_round, found)
    nearest = torch.cdist(pairs.values, strategy.table.values).argmin(1)
    assert torch.equal(nearest, pairs.classes)
    assert loss() < before / 1.5


def test_neither_the_order_of_replies_nor_the_numbers_of_clients_matter(server, found):
    tables = []
    renamed = {0: found[2], 1: found[0], 2: found[1]}
    for given, order in ((found, (0, 1, 2)), (found, (2, 0, 1)), (renamed, (0, 1, 2))):
        strategy = server(epochs=3, batch_size=2)  # which pairs meet matters
        take(strategy, 1, given, order)
        tables.append(strategy.table.values)
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])


def test_counts_do_not_matter(server, found):
    tables = []
    for factor in (1, 7):
        strategy = server(epochs=3)
        scaled = {
            p: Upload(u.classes, u.values, u.support * factor, u.fisher) for p, u in found.items()
        }
        take(strategy, 1, scaled)
        tables.append(strategy.table.values)
    assert torch.equal(*tables)


def test_it_learns_from_the_prototypes_of_the_round_alone(server, found):
    both, alone = server(epochs=2), server(epochs=2)
    take(both, 1, found)
    take(alone, 1, found)
    alone.uploads = {0: alone.uploads[0]}  # what the others sent is forgotten
    for strategy in (both, alone):
        take(strategy, 2, {0: found[0]})
    assert torch.equal(both.table.values, alone.table.values)


def test_round_without_a_reply_leaves_it_as_it_is(server, found):
    strategy = server(epochs=2)
    take(strategy, 1, found)
    before = strategy.table.values.clone()
    take(strategy, 2, {})
    assert torch.equal(strategy.table.values, before)


def test_rounds_and_seeds_have_draws_of_their_own(server, found):
    def learned(server_round: int, seed: int) -> torch.Tensor:
        strategy = server(epochs=2, batch_size=2, **{"run.seed": seed})
        start = strategy.network().detach()
        take(strategy, server_round, found)
        return strategy.table.values, start

    (one, start), (two, same), (three, other) = learned(1, 0), learned(2, 0), learned(1, 1)
    assert torch.equal(start, same)
    assert not torch.equal(one, two)
    assert not torch.equal(start, other)
    assert not torch.equal(one, three)


def test_its_draws_leave_those_of_others_alone(server, found):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    strategy = server(epochs=2)
    take(strategy, 1, found)
    assert torch.equal(torch.rand(3), expected)


def test_state_restores_a_server_that_goes_on_as_it_would_have(server, found):
    whole = server(epochs=2)
    take(whole, 1, found)
    resumed = server(epochs=2)
    resumed.load_state(whole.state())
    assert torch.equal(resumed.table.values, whole.table.values)
    for strategy in (whole, resumed):
        take(strategy, 2, {1: found[1]})
    assert torch.equal(resumed.table.values, whole.table.values)
    fresh = server(epochs=2)
    fresh.load_state(server(epochs=2).state())
    assert not fresh.table.known.any()


# The client.


def test_client_has_fedprotos_loss_and_the_nearest_prototype(tiny, rng):
    y, z = torch.arange(8) % CLASSES, torch.randn(8, WIDTH, generator=rng)
    out = Forward(z, torch.randn(8, CLASSES, generator=rng), y)
    values = torch.randn(CLASSES, WIDTH, generator=rng)
    halves = {}
    for name in ("fedproto", "fedtgp"):
        keys = {f"strategy.{name}.lambda_align": 2.0, f"strategy.{name}.inference": "prototype"}
        halves[name] = ALGORITHMS[name].exchange(tiny(name, **keys), None)
        halves[name].table = table = ALGORITHMS["fedtgp"].strategy(tiny("fedtgp"), FACTS).table
        halves[name].table = type(table)(values, torch.ones(CLASSES, dtype=torch.bool))
    one, other = halves["fedproto"].penalty(out), halves["fedtgp"].penalty(out)
    assert torch.equal(one["align"], other["align"])
    torch.testing.assert_close(one["align"], 2 * (z - values[y]).square().mean())
    predicted = halves["fedtgp"].predict(out)
    assert next(iter(predicted)) == "prototype"
    assert torch.equal(predicted["prototype"], torch.cdist(z, values).argmin(1))


def test_unlike_encoders_learn_and_uploads_are_those_of_fedproto(tiny, staged, tmp_path):
    grid = staged(tiny("fedtgp", tmp_path, **{"model.encoders": "gcn, gat, mlp"}))
    grid.serve()
    for client in range(3):
        up = to_tensors(grid.replies["train", 1, client].content["prototypes"])
        assert set(up) == {"classes", "support", "values"}
        first = to_tensors(grid.sent["train", 1, client].content["prototypes"])
        second = to_tensors(grid.sent["train", 2, client].content["prototypes"])
        assert first["values"].shape == (0, WIDTH)
        assert second["values"].shape == (3, WIDTH)


def test_server_sums_in_one_order_whatever_the_threads_of_its_process(
    tiny, staged, tmp_path, monkeypatch
):
    seen: set[int] = set()
    learn, fuse = FedTGP.learn, FedTGP.fuse

    def note(*arguments, method):
        seen.add(torch.get_num_threads())
        return method(*arguments)

    monkeypatch.setattr(FedTGP, "learn", partialmethod(note, method=learn))
    monkeypatch.setattr(FedTGP, "fuse", partialmethod(note, method=fuse))
    with num_threads(3):
        staged(tiny("fedtgp", tmp_path, **{"simulation.cpus_per_client": 2})).serve()
        assert torch.get_num_threads() == 3
    assert seen == {1}
