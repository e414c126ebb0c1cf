"""BIPCL against its equations in double precision, and what views and intents must not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_item_graph import slow_adjacency, slow_normalized
from test_sequences import of_lists
from torch import Tensor

from graphcl.datasets import simulate_interactions
from graphcl.errors import DataError, GraphCLError
from graphcl.metrics.ranking import ndcg
from graphcl.recommend import BIPCL, BIPCLConfig, Histories, Sequences, TrainingBatches
from graphcl.recommend.bipcl import perturb, rows_of_distinct_targets
from graphcl.recommend.intents import Intents
from graphcl.training import load_weights, save_weights

LISTS = [[1, 2, 3, 4, 5], [2, 3, 1, 6], [7, 8, 9], [4, 9, 5, 6, 2, 5], [3, 10, 6], [11, 12]]


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def model_of(lists: list[list[int]] = LISTS, double: bool = True, **settings: Any) -> BIPCL:
    """Return a model with weights that are no longer small, in evaluation mode: no dropout."""
    config = BIPCLConfig(**{"hidden_channels": 8, "length": 6, "num_intents": 3, **settings})
    model = BIPCL(config).start(of_lists(lists))
    with torch.no_grad():
        model.item.weight.copy_(torch.randn_like(model.item.weight))
        model.item.weight[0] = 0
    return model.double() if double else model


def batch_of(lists: list[list[int]] = LISTS) -> Sequences:
    (batch,) = TrainingBatches(of_lists(lists), 6, 99, 0)
    return batch


def slow_nce(one: list[Tensor], other: list[Tensor], tau: float) -> Tensor:
    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b) / (a.norm() * b.norm())

    losses = []
    for place, anchor in enumerate(one):
        logits = torch.stack([cosine(anchor, candidate) / tau for candidate in other])
        losses.append(logits.exp().sum().log() - logits[place])
    return torch.stack(losses).mean()


def slow_intent(x: Tensor, prototypes: Tensor) -> Tensor:
    weights = (prototypes @ x).exp()
    weights = weights / weights.sum()
    return sum((w * c for w, c in zip(weights, prototypes, strict=True)), torch.zeros_like(x))


def slow_terms(model: BIPCL, batch: Sequences, seed: int) -> dict[str, Tensor]:
    """The loss as the method's description has it, a sequence at a time."""
    config, E = model.config, model.item.weight
    A = slow_normalized(slow_adjacency(LISTS, config.window, len(E)))
    S = (E + A @ E + A @ A @ E) / 3
    C_v, C_u = model.item_intent.prototype, model.user_intent.prototype

    def item(structural: Tensor) -> Tensor:
        return structural + slow_intent(structural, C_v)

    def states(row: int, vectors: dict[int, Tensor]) -> Tensor:
        ids = batch.item[row][batch.mask[row]]
        x = torch.stack([vectors[i] for i in ids.tolist()])
        return model.encoder(x[None], torch.ones(1, len(ids), dtype=torch.bool))[0]

    V = {i: item(S[i]) for i in range(1, len(S))}
    softmax, first = [], {}
    for row in range(len(batch)):
        targets = batch.target[row][batch.mask[row]].tolist()
        for h, y in zip(states(row, V), targets, strict=True):
            s = h + slow_intent(h, C_u)
            logits = torch.stack([s @ V[i] for i in sorted(V)])
            softmax.append(logits.exp().sum().log() - logits[y - 1])
        first.setdefault(targets[-1], row)
    read = sorted({*batch.item.flatten().tolist(), *first})
    torch.manual_seed(seed)
    views: list[list[list[Tensor]]] = []
    for _ in range(2):
        noise = torch.rand(len(read), config.hidden_channels, dtype=torch.float64)
        noisy = {
            i: S[i] + config.eps * S[i].sign() * u / u.norm()
            for i, u in zip(read, noise, strict=True)
        }
        vectors = {i: item(x) for i, x in noisy.items()}
        last = {y: states(row, vectors)[-1] for y, row in first.items()}
        views.append(
            [
                [h + slow_intent(h, C_u) for h in last.values()],
                [vectors[y] for y in last],
                [slow_intent(h, C_u) for h in last.values()],
                [slow_intent(noisy[y], C_v) for y in last],
            ]
        )
    L_s, L_i, L_iu, L_iv = (slow_nce(a, b, config.temperature) for a, b in zip(*views, strict=True))
    return {
        "softmax": torch.stack(softmax).mean(),
        "interaction": config.interaction_weight * (L_s + L_i),
        "intent": config.intent_weight * (L_iu + L_iv),
        "prototype": config.prototype_decay * ((C_u**2).sum() + (C_v**2).sum()),
    }


def test_every_term_and_its_gradients_equal_the_equations() -> None:
    settings = {"interaction_weight": 0.3, "intent_weight": 0.7, "prototype_decay": 0.1}
    model, batch = model_of(eps=0.5, **settings), batch_of()
    targets = batch.target[:, -1].tolist()
    assert len(set(targets)) < len(targets)
    wanted = slow_terms(model, batch, seed=3)
    torch.manual_seed(3)
    found = model.loss(batch)
    assert list(found) == list(wanted)
    names = [name for name, _ in model.named_parameters()]
    for term in wanted:
        torch.testing.assert_close(found[term], wanted[term], rtol=1e-6, atol=1e-9)
        grads = [
            torch.autograd.grad(
                loss[term], [*model.parameters()], retain_graph=True, allow_unused=True
            )
            for loss in (found, wanted)
        ]
        for name, grad, slow in zip(names, *grads, strict=True):
            if slow is None:
                assert grad is None or not grad.any(), (term, name)
            else:
                torch.testing.assert_close(grad, slow, rtol=1e-5, atol=1e-7)
    sum(found.values()).backward()
    assert not model.item.weight.grad[0].any()


def test_noise_is_that_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.tensor([[0.5, 0.1, 0.9, 0.3]]))
    x = torch.tensor([[0.3, -0.2, 0, 0.1]])
    view = perturb(x, 0.1)
    torch.testing.assert_close(view, torch.tensor([[0.346424, -0.209285, 0, 0.127854]]))
    torch.testing.assert_close((view - x).norm().item(), 0.054929, rtol=0, atol=1e-6)


def test_noise_is_bounded_keeps_every_sign_and_passes_no_gradient() -> None:
    x = torch.randn(200, 16, dtype=torch.float64)
    x[::2, :5] = 0
    x.requires_grad_()
    one, other = perturb(x, 3.0), perturb(x, 3.0)
    length = (one - x).norm(dim=1)
    torch.testing.assert_close(length[1::2], torch.full_like(length[1::2], 3.0))
    assert (length[::2] < 3).all()
    assert one.sign().equal(x.sign())
    assert (one.abs() >= x.abs()).all()
    assert not one.equal(other)
    (grad,) = torch.autograd.grad(one.sum(), x)
    assert grad.equal(torch.ones_like(x))


def test_intents_are_those_worked_out_by_hand() -> None:
    intents = Intents(2, 2)
    with torch.no_grad():
        intents.prototype.copy_(torch.eye(2))
    torch.testing.assert_close(
        intents(torch.tensor([[2.0, 0.0]])), torch.tensor([[0.880797, 0.119203]])
    )


def test_the_order_of_prototypes_means_nothing() -> None:
    model, batch = model_of(), batch_of()
    items, states = model.item_vectors(), model.states(batch)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        for intents in (model.item_intent, model.user_intent):
            intents.prototype.copy_(intents.prototype[order])
    torch.testing.assert_close(model.item_vectors(), items)
    torch.testing.assert_close(model.states(batch), states)


def test_intents_are_part_of_items_and_of_states_and_padding_has_none() -> None:
    model, without, batch = model_of(), model_of(num_intents=0), batch_of()
    without.load_state_dict(
        {**without.state_dict(), "item.weight": model.item.weight, **encoder_of(model)}
    )
    assert without.item_vectors().equal(without.structural_vectors())
    difference = model.item_vectors() - without.item_vectors()
    torch.testing.assert_close(
        difference[1:], model.item_intent(model.structural_vectors())[1:], rtol=1e-6, atol=1e-9
    )
    assert not model.item_vectors()[0].any()
    with torch.no_grad():
        model.item_intent.prototype.zero_()
    difference = model.states(batch) - without.states(batch)
    torch.testing.assert_close(difference, model.user_intent(without.states(batch)))


def encoder_of(model: BIPCL) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}


def test_without_noise_a_view_is_the_clean_pass() -> None:
    model, batch = model_of(eps=0.0), batch_of()
    read = torch.cat([batch.item, batch.target[:, -1:]], dim=1)
    structural = model.structural_vectors()
    state, item, user_intent, item_intent = model._view(structural, read, batch.mask)
    y = batch.target[:, -1]
    torch.testing.assert_close(state, model.states(batch)[:, -1])
    torch.testing.assert_close(item, model.item_vectors()[y])
    torch.testing.assert_close(item - item_intent, structural[y])
    torch.testing.assert_close(user_intent, model.user_intent(state - user_intent))
    terms, again = model.loss(batch), model.loss(batch)
    assert terms == again


def test_the_first_row_of_each_target_is_contrasted_and_none_without_a_target() -> None:
    item = torch.tensor([[0, 1], [2, 3], [0, 0], [1, 2], [4, 5], [0, 7]])
    target = torch.tensor([[0, 9], [3, 4], [0, 6], [2, 9], [5, 0], [0, 2]])
    rows = rows_of_distinct_targets(Sequences(item, target, torch.arange(6)))
    assert sorted(rows.tolist()) == [0, 1, 5]


def test_contrast_reaches_neighbours_through_the_graph_and_no_further_than_the_hops() -> None:
    chain = [[i, i + 1] for i in range(1, 10)]
    model = model_of(chain, window=1, hops=2)
    terms = model.loss(batch_of([[1, 2], [3, 1]]))
    (grad,) = torch.autograd.grad(terms["interaction"], model.item.weight, retain_graph=True)
    reached = grad.any(dim=1).nonzero().flatten().tolist()
    assert reached == [1, 2, 3, 4, 5]
    (grad,) = torch.autograd.grad(terms["intent"], model.item.weight, retain_graph=True)
    assert grad[1:6].any(dim=1).all()


def test_both_sides_prototypes_learn_from_the_softmax_and_from_the_contrast_of_intents() -> None:
    model = model_of()
    terms = model.loss(batch_of())
    sides = (model.item_intent.prototype, model.user_intent.prototype)
    for term in terms.values():
        for grad in torch.autograd.grad(term, sides, retain_graph=True):
            assert grad.any(dim=1).all()


def test_a_state_sees_no_later_event() -> None:
    model = model_of()
    item = torch.randint(1, 13, (4, 6))
    changed = item.clone()
    changed[:, 3:] = item[:, 3:] % 12 + 1
    blank = torch.zeros_like(item)
    one, other = (model.states(Sequences(i, blank, blank[:, 0])) for i in (item, changed))
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_padding_changes_no_state_and_no_term() -> None:
    model = model_of(eps=0.0)
    batch = batch_of()
    wide = replace(
        batch,
        **{
            name: torch.nn.functional.pad(getattr(batch, name), (1, 0))
            for name in ("item", "target")
        },
    )
    found, wanted = model.states(wide)[:, 1:], model.states(batch)
    torch.testing.assert_close(found[batch.mask], wanted[batch.mask])
    for term, value in model.loss(wide).items():
        torch.testing.assert_close(value, model.loss(batch)[term])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("others", [LISTS, []])
def test_a_row_of_padding_is_finite_and_counts_nowhere(
    training: bool, others: list[list[int]]
) -> None:
    model = model_of(eps=0.0, dropout=0.0).train(training)
    batch = batch_of(others) if others else None
    none = torch.zeros(1, 5 if batch is None else batch.item.shape[1], dtype=torch.int64)
    parts = [none] if batch is None else [batch.item, none]
    targets = [none] if batch is None else [batch.target, none]
    users = torch.zeros(sum(map(len, parts)), dtype=torch.int64)
    padded = Sequences(torch.cat(parts), torch.cat(targets), users)
    assert model.states(padded).isfinite().all()
    terms = model.loss(padded)
    sum(terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for name, term in terms.items():
        if batch is not None:
            torch.testing.assert_close(term, model.loss(batch)[name])
        elif name != "prototype":
            assert term == 0


def test_evaluation_has_no_noise_and_reads_no_eps() -> None:
    quiet, loud = model_of(eps=0.0), model_of(eps=9.0)
    loud.load_state_dict(quiet.state_dict())
    histories = Histories.of_users(of_lists(LISTS))
    histories = replace(histories, target=torch.full((len(histories),), 12))
    ranks = loud.ranks(histories)
    assert loud.ranks(histories).equal(ranks)
    assert quiet.ranks(histories).equal(ranks)
    assert loud.loss(batch_of())["interaction"] != quiet.loss(batch_of())["interaction"]


def test_without_weights_no_view_is_made() -> None:
    model = model_of(interaction_weight=0.0, intent_weight=0.0)
    torch.manual_seed(5)
    terms = model.loss(batch_of())
    assert list(terms) == ["softmax", "prototype"]
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)


def test_events_that_are_held_out_leave_no_trace_in_the_graph() -> None:
    model = BIPCL(BIPCLConfig(hidden_channels=4, num_intents=2, epochs=1))
    changed = [[*items[:-1], 13 + u] if len(items) > 2 else items for u, items in enumerate(LISTS)]
    one, other = (model.fit(of_lists(lists)).operator.to_dense() for lists in (LISTS, changed))
    assert one.any()
    assert one.equal(other)


def test_what_a_federation_averages_are_items_intents_and_encoder_but_not_the_graph() -> None:
    state = model_of().state_dict()
    assert {name.split(".")[0] for name in state} == {
        "item",
        "item_intent",
        "user_intent",
        "encoder",
    }


def test_a_saved_model_ranks_alike(tmp_path: Path) -> None:
    model = model_of(double=False)
    model.save(tmp_path / "model.safetensors")
    loaded = BIPCL.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.operator.to_dense().equal(model.operator.to_dense())
    for found, wanted in zip(loaded.rank([3, 1], 5), model.rank([3, 1], 5), strict=True):
        assert found.equal(wanted)


def test_a_file_whose_graph_is_broken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model_of(double=False).save(path)
    weights, header = load_weights(path)
    weights["catalogue/edge_index"][1, 0] = 99
    save_weights(path, weights, header)
    with pytest.raises(GraphCLError, match=r"model.safetensors: no saved BIPCL: .*joins 1 and 99"):
        BIPCL.load(path)


def test_training_repeats() -> None:
    config = BIPCLConfig(hidden_channels=4, num_intents=2, epochs=2, batch_size=2)
    one, other = (BIPCL(config).fit(of_lists(LISTS)) for _ in range(2))
    assert one.item_vectors().equal(other.item_vectors())


def test_it_ranks_far_better_than_popularity() -> None:
    split = simulate_interactions(300, 80, num_clusters=5).interactions.leave_one_out()
    config = BIPCLConfig(hidden_channels=32, dropout=0.2, epochs=6, learning_rate=5e-3)
    model = BIPCL(config).fit(split.train, split.val)
    held_out = Histories.held_out(split.test, split.train, split.val)
    popular = replace(held_out, end=held_out.start)
    assert ndcg(model.ranks(held_out), 10) > 1.8 * ndcg(model.ranks(popular), 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": -1}, "hops is -1, must be at least 0"),
        ({"window": 0}, "window is 0, must be at least 1"),
        ({"num_intents": -1}, "num_intents is -1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"temperature": 0.0}, "temperature is 0.0, must be above 0"),
        ({"interaction_weight": -0.1}, "interaction_weight is -0.1"),
        ({"intent_weight": -0.1}, "intent_weight is -0.1"),
        ({"prototype_decay": -1.0}, "prototype_decay is -1.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphCLError, match=message):
        BIPCLConfig(**settings)


def test_interactions_that_break_a_rule_are_refused_before_the_graph_is_built() -> None:
    bad = replace(of_lists(LISTS), item=torch.full((sum(map(len, LISTS)),), 21))
    with pytest.raises(DataError, match=r"item\[0\] is 21"):
        BIPCL().fit(bad)
