"""What must hold of every prototype algorithm: names of clients, splits, classes of one or none.

All numbers are small fractions of powers of two, so that sums are exact and equal means equal.
"""

import pytest
import torch
from flwr.app import Message, MessageType, RecordDict

from federation.learners import Forward
from federation.privacy.table import Privacy
from federation.records import to_tensors
from federation.strategies import ALGORITHMS, Facts
from federation.strategies.prototypes import Upload, local_upload

CLASSES, WIDTH = 4, 6
FACTS = Facts({p + 1: p for p in range(4)}, channels={"in-channels": 5}, num_classes=CLASSES)

# Strategy, its keys, and whether its global table weighs clients by their samples.
VARIANTS = {
    "fedproto-count": ("fedproto", {"global_weight": "count"}, True),
    "fedproto-uniform": ("fedproto", {"global_weight": "uniform"}, False),
    "fedtgp": ("fedtgp", {"epochs": 2, "batch_size": 2}, False),
    "feddbp-fisher": ("feddbp", {"global_weight": "fisher", "fisher_floor": 0.25}, True),
    "feddbp-count": ("feddbp", {"global_weight": "count"}, True),
    "feddbp-uniform": ("feddbp", {"global_weight": "uniform"}, False),
    "feddbp-hard": ("feddbp", {"personal": "hard", "fisher_floor": 0.25}, True),
    "feddbp-similar": ("feddbp", {"personal": "similar", "fisher_floor": 0.25}, True),
    "feddbp-server": ("feddbp", {"fisher": "server"}, True),
}
BY_COUNT = [name for name, (_, _, by_count) in VARIANTS.items() if by_count]
MEANS = [name for name in VARIANTS if name != "fedtgp"]  # the others' tables are means


def upload(classes, seed: int) -> Upload:
    rng = torch.Generator().manual_seed(seed)
    shape = (len(classes), WIDTH)
    return Upload(
        torch.tensor(classes),
        torch.randint(-8, 9, shape, generator=rng) / 4,
        torch.randint(1, 5, (len(classes),), generator=rng) * 2,
        torch.randint(0, 5, shape, generator=rng) / 4,
    )


FOUND = {0: upload([0, 1], 1), 1: upload([1, 3], 2), 2: upload([0, 1, 3], 3)}  # nobody holds 2


@pytest.fixture
def serve(tiny, staged):
    """Let a server take in uploads: ``serve(variant, uploads)``."""
    staged(tiny())  # messages need a run

    def build(variant: str, found):
        name, keys, _ = VARIANTS[variant]
        experiment = tiny(name, **{f"strategy.{name}.{key}": value for key, value in keys.items()})
        strategy = ALGORITHMS[name].strategy(experiment, FACTS)
        replies = []
        for partition, one in found.items():
            asked = Message(RecordDict(), dst_node_id=partition + 1, message_type=MessageType.TRAIN)
            replies.append(Message(RecordDict({"prototypes": one.to_arrays()}), reply_to=asked))
        strategy.aggregate_train(1, replies)
        return strategy

    return build


def alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the last bit but one: the division may round to either side."""
    return torch.allclose(one, other, rtol=2.5e-7, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_renamed_clients_get_what_they_would_have_got(serve, variant):
    renamed = {3: FOUND[0], 0: FOUND[1], 1: FOUND[2]}
    before, after = serve(variant, FOUND), serve(variant, renamed)
    assert torch.equal(before.table.known, after.table.known)
    assert alike(before.table.values, after.table.values)
    for old, new in {0: 3, 1: 0, 2: 1}.items():
        assert alike(before.table_for(old).values, after.table_for(new).values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_order_of_replies_does_not_matter(serve, variant):
    before, after = serve(variant, FOUND), serve(variant, dict(reversed(FOUND.items())))
    for partition in range(4):
        one, other = before.table_for(partition), after.table_for(partition)
        assert torch.equal(one.values, other.values)


def halves(one: Upload) -> tuple[Upload, Upload]:
    """Two clients with half the samples each, whose means differ and have the client's as mean."""
    shift = torch.arange(one.values.numel()).reshape(one.values.shape) / 8
    support = one.support // 2
    return tuple(
        Upload(one.classes, one.values + sign * shift, support, one.fisher) for sign in (1, -1)
    )


@pytest.mark.parametrize("variant", [v for v in BY_COUNT if v != "feddbp-server"])
def test_client_split_in_two_leaves_the_global_table_as_it_is(serve, variant):
    """By count, and where Fisher information weighs too, if both halves have the same."""
    first, second = halves(FOUND[2])
    whole = serve(variant, FOUND)
    split = serve(variant, {0: FOUND[0], 1: FOUND[1], 2: first, 3: second})
    assert torch.equal(whole.table.known, split.table.known)
    assert alike(whole.table.values, split.table.values)


def test_samples_split_over_two_clients_leave_the_count_weighted_table_as_it_is(serve):
    """From the samples on: classes of unequal size, one of them on one half alone."""
    rng = torch.Generator().manual_seed(7)
    embedding = torch.randint(-8, 9, (9, WIDTH), generator=rng) / 4
    y = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3])
    first = torch.tensor([True, False, False, True, True, True, True, True, False])

    def sent(mask: torch.Tensor) -> Upload:
        out = Forward(embedding, torch.zeros(9, CLASSES), y).of(mask)
        return local_upload(out, CLASSES, Privacy())

    whole = serve("fedproto-count", {0: FOUND[0], 1: sent(torch.ones_like(first))})
    split = serve("fedproto-count", {0: FOUND[0], 1: sent(first), 2: sent(~first)})
    torch.testing.assert_close(whole.table.values, split.table.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["fedproto-uniform", "feddbp-uniform"])
def test_client_split_in_two_counts_twice_in_a_plain_mean(serve, variant):
    one, other = upload([1], 5), upload([1], 6)
    same = Upload(one.classes, one.values, one.support // 2, one.fisher)
    split = serve(variant, {0: same, 1: same, 2: other})
    assert alike(split.table.values[1], (2 * one.values[0] + other.values[0]) / 3)


@pytest.mark.parametrize("variant", MEANS)
def test_class_that_nobody_holds_is_not_sent(serve, variant):
    strategy = serve(variant, FOUND)
    for partition in range(4):
        sent = to_tensors(strategy.content_for(partition)["prototypes"])
        assert sent["classes"].tolist() == [0, 1, 3]
        assert strategy.table_for(partition).values[2].tolist() == [0.0] * WIDTH


def test_fedtgp_has_learned_something_of_a_class_that_nobody_holds(serve):
    strategy = serve("fedtgp", FOUND)
    sent = to_tensors(strategy.content_for(3)["prototypes"])
    assert sent["classes"].tolist() == [0, 1, 2, 3]
    assert sent["values"][2].any()


@pytest.mark.parametrize("name", ["fedproto", "feddbp"])
def test_class_that_nobody_holds_is_never_predicted(tiny, serve, name):
    strategy = serve({"fedproto": "fedproto-count", "feddbp": "feddbp-fisher"}[name], FOUND)
    exchange = ALGORITHMS[name].exchange(strategy.experiment, None)
    exchange.table = strategy.table_for(0)
    z = torch.zeros(5, WIDTH)  # where the empty row of the class lies
    out = Forward(z, torch.zeros(5, CLASSES), torch.zeros(5, dtype=torch.long))
    assert 2 not in exchange.predict(out)["prototype"].tolist()


@pytest.mark.parametrize("variant", MEANS)
def test_class_of_one_client_is_that_clients_prototype_for_all(serve, variant):
    alone = {0: upload([0, 1], 1), 1: upload([1, 3], 2)}
    strategy = serve(variant, alone)
    for partition in range(4):
        values = strategy.table_for(partition).values
        assert alike(values[0], alone[0].values[0])
        assert alike(values[3], alone[1].values[1])
