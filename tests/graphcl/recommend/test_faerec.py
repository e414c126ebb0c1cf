"""FAERec against its equations in double precision, and what texts must and must not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, layer_norm

from graphcl.datasets import Interactions, simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics.ranking import ndcg
from graphcl.recommend import FAERec, FAERecConfig, Histories, Sequences, TrainingBatches
from graphcl.recommend.alignment import curriculum, feature_alignment, item_alignment
from graphcl.recommend.encoders import GRUEncoder, TransformerEncoder

CONFIG = FAERecConfig(
    hidden_channels=16, length=8, dropout=0.2, epochs=6, learning_rate=2e-2, floor=0.3
)


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return simulate_interactions(300, 60, num_clusters=5, seed=1).interactions


@pytest.fixture(scope="module")
def trained(interactions: Interactions) -> FAERec:
    return FAERec(CONFIG).fit(interactions)


def untrained(interactions: Interactions, **settings: Any) -> FAERec:
    """Return a model in double precision with weights that are no longer small, without dropout."""
    model = FAERec(replace(CONFIG, **settings)).start(interactions).double()
    with torch.no_grad():
        model.item.weight[1:] = torch.randn(model.item.weight[1:].shape, dtype=torch.float64)
        model.position.normal_()
    return model


def batch_of(interactions: Interactions, size: int = 40) -> Sequences:
    return next(iter(TrainingBatches(interactions, 8, size, 0)))


@pytest.mark.parametrize(
    ("period", "floor", "epochs", "wanted"),
    [
        (30, 0.9, (0, 5, 10, 15), (1, 0.975, 0.925, 0.9)),
        (20, 0.7, (5, 10), (0.85, 0.7)),
        (25, 0.3, (5, 10, 12), (0.758156, 0.366844, 0.302760)),
    ],
)
def test_the_curriculum_has_the_published_values_and_returns(
    period: int, floor: float, epochs: tuple[int, ...], wanted: tuple[float, ...]
) -> None:
    found = [curriculum(epoch, period, floor) for epoch in epochs]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert curriculum(epochs[0] + period, period, floor) == pytest.approx(found[0])


def test_the_alignment_of_items_has_the_published_value() -> None:
    own = torch.tensor([[1.0, 0], [0, 1], [1, 0]], dtype=torch.float64)
    text = torch.tensor([[1.0, 0], [1, 1], [1, 0]], dtype=torch.float64)
    found = item_alignment(own, text, torch.tensor([7, 8, 7]), 0.5)
    assert found.item() == pytest.approx(0.427113, abs=1e-6)


def slow_item_alignment(own: Tensor, text: Tensor, item: Tensor, tau: float) -> Tensor:
    own, text = (x / x.norm(dim=1, keepdim=True) for x in (own, text))
    losses = []
    for j in range(len(item)):
        rivals = [k for k in range(len(item)) if k == j or item[k] != item[j]]
        logits = torch.stack([own[j] @ text[k] / tau for k in rivals])
        losses.append(logits.exp().sum().log() - own[j] @ text[j] / tau)
    return torch.stack(losses).mean()


def slow_feature_alignment(own: Tensor, text: Tensor, count: Tensor, gamma: float) -> Tensor:
    middle = sorted(count.tolist())[(len(count) - 1) // 2]
    total = own.new_zeros(())
    for group in ([c >= middle for c in count.tolist()], [c < middle for c in count.tolist()]):
        a, b = own[torch.tensor(group)], text[torch.tensor(group)]
        a, b = ((x - x.mean(0)) / (x.std(0) + 1e-5) for x in (a, b))
        C = a.T @ b / len(a)
        for i in range(len(C)):
            for k in range(len(C)):
                total = total + ((C[i, i] - 1) ** 2 if i == k else gamma * C[i, k] ** 2)
    return total


def test_both_alignments_and_their_gradients_equal_the_equations() -> None:
    item = torch.tensor([4, 2, 4, 9, 1, 2, 7, 3])
    count = torch.tensor([5, 1, 5, 0, 8, 1, 2, 3])
    own, text = (torch.randn(8, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for found, wanted in (
        (item_alignment(own, text, item, 0.2), slow_item_alignment(own, text, item, 0.2)),
        (
            feature_alignment(own, text, count, 0.3),
            slow_feature_alignment(own, text, count, 0.3),
        ),
    ):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-9)
        for one, other in zip(
            torch.autograd.grad(found, (own, text)),
            torch.autograd.grad(wanted, (own, text)),
            strict=True,
        ):
            assert torch.allclose(one, other, atol=1e-9)


def test_the_order_of_a_batch_does_not_matter_to_the_alignments() -> None:
    item, order = torch.randint(1, 9, (20,)), torch.randperm(20)
    own, text = torch.randn(2, 20, 4, dtype=torch.float64)
    count = item * 3 % 7
    one = item_alignment(own, text, item, 0.1), feature_alignment(own, text, count, 0.1)
    own, text, item, count = (x[order] for x in (own, text, item, count))
    other = item_alignment(own, text, item, 0.1), feature_alignment(own, text, count, 0.1)
    assert torch.allclose(torch.stack(one), torch.stack(other))


def test_items_that_are_all_taken_alike_are_one_group() -> None:
    own, text = torch.randn(2, 6, 3)
    alike = feature_alignment(own, text, torch.full((6,), 4), 0.1)
    assert alike.isfinite()
    assert alike.equal(feature_alignment(own, text, torch.zeros(6), 0.1))


def test_inputs_and_item_vectors_equal_the_equations(interactions: Interactions) -> None:
    model, item = untrained(interactions), torch.tensor([[0, 0, 7, 3], [9, 7, 7, 1]])
    (W1, b1), (W2, b2) = ((model.mapper[i].weight, model.mapper[i].bias) for i in (0, 3))
    (V1, c1), (V2, c2) = ((model.gate.share[i].weight, model.gate.share[i].bias) for i in (0, 3))

    def mapped(i: int) -> Tensor:
        return W2 @ gelu(W1 @ model.text[i] + b1) + b2

    inputs = model.inputs(item)
    for row in range(2):
        for column in range(4):
            i, p = int(item[row, column]), model.position[column - 4]
            a, b = model.item.weight[i] + p, mapped(i) + p
            z = torch.sigmoid(V2 @ gelu(V1 @ torch.cat([a, b]) + c1) + c2)
            wanted = layer_norm(z * a + (1 - z) * b, (16,))
            assert torch.allclose(inputs[row, column], wanted, atol=1e-9)
    vectors = model.item_vectors()
    assert not vectors[0].any()
    for i in (1, 30, 60):
        assert torch.allclose(vectors[i], model.item.weight[i] + mapped(i), atol=1e-12)


def test_a_gate_that_is_all_open_leaves_what_a_model_without_texts_reads(
    interactions: Interactions,
) -> None:
    model = untrained(interactions)
    plain = TransformerEncoder(16, 8, 0.0).double().eval()
    plain.position, plain.norm, plain.layers = model.position, model.norm, model.encoder
    with torch.no_grad():
        model.gate.share[3].weight.zero_()
        model.gate.share[3].bias.fill_(1000)
    batch = batch_of(interactions)
    wanted = plain(model.item(batch.item), batch.mask)
    assert torch.allclose(model.states(batch)[batch.mask], wanted[batch.mask])


def test_training_and_ranking_read_the_same_item_vectors(interactions: Interactions) -> None:
    model, batch = untrained(interactions), batch_of(interactions)
    asked = batch.target > 0
    logits = model.states(batch)[asked] @ model.item_vectors()[1:].T
    wanted = cross_entropy(logits, batch.target[asked] - 1)
    assert model.loss(batch)["softmax"].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_the_levels_share_one_weight_that_the_epochs_move(interactions: Interactions) -> None:
    model, batch = untrained(interactions, floor=0.0, period=4), batch_of(interactions)
    found = []
    for _ in range(4):
        model.begin_epoch()
        torch.manual_seed(0)
        found.append(model.loss(batch))
    whole_item, whole_feature = found[0]["item"], found[2]["feature"]
    assert found[0]["feature"] == 0
    shares = [
        ((terms["item"] / whole_item).item(), (terms["feature"] / whole_feature).item())
        for terms in found
    ]
    assert [item for item, _ in shares] == pytest.approx([1, 0.5, 0, 0.5])
    assert [item + feature for item, feature in shares] == pytest.approx([1] * 4)
    model.start(interactions)
    model.begin_epoch()
    assert model.loss(batch)["feature"] == 0


def test_the_terms_are_weighted_alignments_of_the_batch_and_of_drawn_items(
    interactions: Interactions,
) -> None:
    model, batch = untrained(interactions, align_weight=0.5), batch_of(interactions, 10)
    model.begin_epoch()
    torch.manual_seed(3)
    terms = model.loss(batch)
    torch.manual_seed(3)
    item = model._aligned(batch)
    read = batch.item[batch.mask]
    assert len(item) == 2 * len(read)
    left = item.bincount(minlength=61) - read.bincount(minlength=61)
    assert left.min() >= 0
    assert (left[1:] > 0).sum() > 25
    own, text = model.item(item), model.mapper(model.text[item])
    wanted = 0.5 * slow_item_alignment(own, text, item, 0.05)
    assert terms["item"].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_large_batch_is_aligned_in_part(interactions: Interactions) -> None:
    model = untrained(interactions)
    (batch,) = TrainingBatches(interactions, 8, 9999, 0)
    assert 2 * batch.mask.sum() > 2048
    assert len(model._aligned(batch)) == 2048


def test_no_gradient_reaches_the_texts_or_padding(interactions: Interactions) -> None:
    model = FAERec(CONFIG).start(interactions).train()
    sum(model.loss(batch_of(interactions)).values(), torch.zeros(())).backward()
    assert not model.text.requires_grad
    assert "text" not in dict(model.named_parameters())
    assert model.item.weight.grad is not None
    assert not model.item.weight.grad[0].any()
    assert all(p.grad is not None for p in model.parameters())


def test_training_changes_neither_the_texts_nor_padding(
    trained: FAERec, interactions: Interactions
) -> None:
    assert interactions.text is not None
    assert trained.text.equal(interactions.text)
    assert not trained.item.weight[0].any()


def test_the_softmax_leaves_the_own_vectors_of_items_that_nobody_took(
    interactions: Interactions,
) -> None:
    rare = interactions.select(interactions.item != 9)
    model, batch = untrained(rare), batch_of(rare)
    (grad,) = torch.autograd.grad(model.loss(batch)["softmax"], model.item.weight)
    assert (grad.any(1) == (model.count > 0)).all()
    assert model.count[9] == 0


def test_the_first_vectors_are_the_principal_components_of_the_texts(
    interactions: Interactions,
) -> None:
    assert interactions.text is not None
    model = FAERec(replace(CONFIG, hidden_channels=6)).start(interactions)
    centred = (interactions.text[1:] - interactions.text[1:].mean(0)).double()
    _, _, V = torch.linalg.svd(centred)
    wanted = centred @ V[:6].T
    wanted = wanted * 0.02 / wanted.std(correction=0)
    found = model.item.weight[1:].double()
    assert torch.allclose(found.abs(), wanted.abs(), atol=1e-5)


def test_what_the_components_do_not_fill_is_drawn(interactions: Interactions) -> None:
    model = FAERec(replace(CONFIG, hidden_channels=40)).start(interactions)
    text = interactions.text
    assert text is not None
    rest = model.item.weight[1:, text.size(1) :]
    assert rest.std().item() == pytest.approx(0.02, rel=0.1)


def test_where_nothing_is_told_of_any_item_all_is_drawn(interactions: Interactions) -> None:
    """As for the server of a federation, whose first vectors all clients take."""
    assert interactions.text is not None
    silent = replace(interactions, text=torch.zeros_like(interactions.text))
    weight = FAERec(CONFIG).start(silent).item.weight[1:]
    assert weight.std(0).detach().numpy() == pytest.approx(0.02, rel=0.5)


def test_a_state_sees_no_later_event(trained: FAERec, interactions: Interactions) -> None:
    batch = Histories.of_users(interactions).batch(slice(0, 20), 8)
    before = trained.states(batch)
    batch.item[:, -1] = batch.item[:, -1] % 60 + 1
    after = trained.states(batch)
    full = batch.mask.all(1)
    assert torch.allclose(before[full, :-1], after[full, :-1], atol=1e-5)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-2)


def test_padding_changes_nothing(trained: FAERec, interactions: Interactions) -> None:
    short = interactions.sequence(0)[:3]
    item = torch.cat([short, torch.arange(1, 9)])
    users = Interactions("two", torch.tensor([0] * 3 + [1] * 8), item, 2, 60)
    alone, beside = trained.rank(short, 5), trained.rank(users, 5)
    assert alone[0].equal(beside[0][0])
    assert torch.allclose(alone[1], beside[1][0], atol=1e-4)


def test_a_saved_model_ranks_as_before(
    trained: FAERec, interactions: Interactions, tmp_path: Path
) -> None:
    trained.save(tmp_path / "model.safetensors")
    again = FAERec.load(tmp_path / "model.safetensors")
    assert again.config == trained.config
    for first, second in zip(
        trained.rank(interactions, 5), again.rank(interactions, 5), strict=True
    ):
        assert first.equal(second)


def test_training_ranks_what_was_held_out_better_than_popularity(
    interactions: Interactions,
) -> None:
    split = interactions.leave_one_out()
    model = FAERec(replace(CONFIG, epochs=8)).fit(split.train, split.val)
    test = Histories.held_out(split.test, split.train, split.val)
    counts = model.count.double()
    popular = (counts[1:] > counts[test.target][:, None]).sum(1) + 1.0
    assert ndcg(model.ranks(test), 10) > 1.5 * ndcg(popular, 10)


def test_a_text_tells_to_whom_an_item_goes_that_nobody_took() -> None:
    interactions = simulate_interactions(400, 60, num_clusters=5, seed=2).interactions
    cold = torch.arange(61) % 8 == 5
    split = interactions.leave_one_out()
    train = split.train.select(~cold[split.train.item])
    assert train.text is not None
    wrong = train.text.clone()
    wrong[cold] = torch.randn(int(cold.sum()), wrong.size(1))
    means = []
    for text in (train.text, wrong):
        model = FAERec(CONFIG).fit(replace(train, text=text))
        test = Histories.held_out(split.test, train)
        means.append(float(model.ranks(test)[cold[test.target]].mean()))
    unseen = 60 - float(test.seen.indptr.diff().double().mean())
    chance = (unseen + 1) / 2
    assert means[0] < 0.9 * chance
    assert means[1] > means[0] + 5


def test_another_encoder_may_read_the_fused_vectors(interactions: Interactions) -> None:
    class Recurrent(FAERec):
        def build_encoder(self) -> nn.Module:
            return GRUEncoder(self.config.hidden_channels, self.config.dropout)

    model = Recurrent(replace(CONFIG, epochs=1)).fit(interactions)
    assert model.rank([1, 2, 3], 4)[0].unique().numel() == 4


def test_items_without_texts_and_settings_out_of_range_are_refused(
    interactions: Interactions,
) -> None:
    with pytest.raises(DataError, match="simulated: the items have no text, which FAERec reads"):
        FAERec(CONFIG).fit(replace(interactions, text=None))
    for field, value in (
        ("mapper_dropout", 1.0),
        ("gate_dropout", -0.1),
        ("temperature", 0.0),
        ("redundancy", -1.0),
        ("align_weight", -1.0),
        ("period", 0),
        ("floor", 1.5),
    ):
        with pytest.raises(GraphCLError, match=f"{field} is {value}, must be"):
            FAERecConfig(**{field: value})  # type: ignore[arg-type]
