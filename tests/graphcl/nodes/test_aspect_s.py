"""ASPECT-S: what it adds to ASPECT, and that it adds nothing where it is switched off."""

from copy import deepcopy
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch_geometric.data import Data

from graphcl.datasets import contextual_sbm
from graphcl.nodes import (
    ASPECT,
    ASPECTS,
    ASPECTConfig,
    ASPECTSConfig,
    channel_sensitivity,
    evidence_target,
    reliability_target,
)
from graphcl.nodes.features import SparseRows, rows
from graphcl.nodes.prepared import PreparedGraph, prepare

SMALL = ASPECTSConfig(
    hidden_channels=16, epochs=6, learning_rate=0.01, warmup_steps=2, attack_every=2
)


@pytest.fixture(scope="module")
def data() -> Data:
    return contextual_sbm(90, 3, 12, homophily=0.9, seed=1)


def tiny(name: str) -> Data:
    edges = {"one node": [], "no edges": [], "pair": [[0, 1], [1, 0]]}[name]
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    return Data(x=torch.rand(1 if name == "one node" else 4, 5), edge_index=edge_index)


def test_a_fitted_method_holds_no_training_graph(data) -> None:
    method = ASPECTS(SMALL).fit(data)
    assert not any(isinstance(value, tuple) for value in vars(method).values())
    assert torch.equal(deepcopy(method).embed(data), method.embed(data))


def test_the_same_seed_gives_the_same_embedding_and_labels_are_never_read(data) -> None:
    blind = Data(x=data.x, edge_index=data.edge_index)
    first, second = ASPECTS(SMALL).fit(data).embed(data), ASPECTS(SMALL).fit(blind).embed(data)
    assert torch.equal(first, second)


def test_before_the_first_attack_it_is_aspect_and_afterwards_not(data) -> None:
    own = {name: getattr(SMALL, name) for name in asdict(ASPECTConfig())}
    plain = ASPECT(ASPECTConfig(**own)).fit(data).embed(data)
    never = replace(SMALL, warmup_steps=SMALL.epochs)
    assert torch.equal(ASPECTS(never).fit(data).embed(data), plain)
    assert not torch.equal(ASPECTS(SMALL).fit(data).embed(data), plain)


def test_a_saved_method_embeds_as_before_and_other_tools_read_it(data, tmp_path) -> None:
    fitted = ASPECTS(SMALL).fit(data)
    fitted.save(tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors").keys() == fitted.state_dict().keys()
    again = ASPECTS.load(tmp_path / "m.safetensors")
    assert again.config == SMALL
    assert torch.equal(again.embed(data), fitted.embed(data))


@pytest.mark.parametrize("name", ["one node", "no edges", "pair"])
@pytest.mark.parametrize("policy", ["node", "global"])
def test_tiny_graphs_train(name, policy) -> None:
    graph = tiny(name)
    embedding = ASPECTS(replace(SMALL, policy=policy)).fit(graph).embed(graph)
    assert torch.isfinite(embedding).all()


def test_an_attack_leaves_weights_gradients_and_mode_alone(data) -> None:
    method, graph = ASPECTS(SMALL).start(data), prepare(data)
    weights = [p.clone() for p in method.parameters()]
    for training in (True, False):
        method.train(training)
        method.attack(graph)
        assert {m.training for m in method.modules()} == {training}
    assert all(p.grad is None and p.requires_grad for p in method.parameters())
    assert all(torch.equal(p, w) for p, w in zip(method.parameters(), weights, strict=True))


def test_an_attack_without_budget_finds_no_sensitivity(data) -> None:
    method = ASPECTS(replace(SMALL, edge_budget=0.0, feature_bound=0.0)).start(data)
    assert (method.attack(prepare(data)).sensitivity == 0).all()


def test_an_attack_covers_its_sample_only(data) -> None:
    graph = prepare(data)
    attacked = ASPECTS(replace(SMALL, attacked_nodes=20)).start(data).attack(graph)
    assert attacked.x.shape == (20, 12)
    others = torch.ones(90, dtype=torch.bool)
    others[attacked.nodes] = False
    assert others.sum() == 70
    assert (attacked.sensitivity[others] == 0).all()
    assert attacked.sensitivity[attacked.nodes].max() > 0
    change = (attacked.x - rows(graph.x, attacked.nodes)).abs()
    spread = rows(graph.x, attacked.nodes).std(0, correction=0)
    assert (change <= 0.5 * spread + 1e-6).all()
    assert change.max() > 0


def test_an_attack_serves_its_epochs_and_its_graph(data) -> None:
    method, graph = ASPECTS(SMALL).start(data).train(), prepare(data)
    seen = []
    for _ in range(6):
        method.loss(graph)
        seen.append(method._attacked)
        method.after_step(0.0)
    assert seen[0] is seen[1] is None
    assert seen[2] is seen[3] is not None
    assert seen[4] is seen[5] is not seen[3]
    method._steps = 3  # within the steps of an attack, but another graph
    other = prepare(contextual_sbm(30, 3, 12, seed=2))
    assert torch.isfinite(sum(method.loss(other).values()))
    assert method._attacked.graph is other


def test_the_terms_of_the_loss_are_named_and_the_adversarial_one_trains_the_encoder(data) -> None:
    config = replace(SMALL, warmup_steps=0)
    method, graph = ASPECTS(config).start(data).train(), prepare(data)
    terms = method.loss(graph)
    assert list(terms) == ["fused", "channels", "evidence", "adversarial"]
    terms["adversarial"].backward()
    for parameter in (method.low.weight, method.high.weight, method.filters.theta):
        assert parameter.grad.abs().max() > 0
    off = ASPECTS(replace(config, adversarial_weight=0.0)).start(data).train()
    assert "adversarial" not in off.loss(graph)


def test_a_stability_weight_moves_the_policy_from_the_sensitive_channel(data) -> None:
    base = replace(SMALL, epochs=25, warmup_steps=0, adversarial_weight=0.0, evidence_weight=2.0)
    base = replace(base, feature_bound=0.5)  # an attack that turns the channels visibly

    def leaning(weight: float) -> float:
        method = ASPECTS(replace(base, stability_weight=weight)).fit(data)
        sensitivity = method.attack(prepare(data)).sensitivity
        sturdy = sensitivity.argmin(1, keepdim=True)
        return float(method.spectral_policy(data).gather(1, sturdy).mean())

    assert leaning(100.0) > leaning(0.0) + 0.02


def test_sensitivity_is_one_minus_the_cosine() -> None:
    clean = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    moved = torch.randn(9, 4, dtype=torch.float64), 3 * clean[1]
    found = channel_sensitivity(clean, moved)
    torch.testing.assert_close(found[:, 0], 1 - F.cosine_similarity(clean[0], moved[0]))
    torch.testing.assert_close(found[:, 1], torch.zeros(9, dtype=torch.float64))
    zero = torch.zeros(2, 4)
    assert (channel_sensitivity((zero, zero), (zero, zero)) == 0).all()


def test_reliability_is_evidence_where_all_is_stable_and_avoids_what_is_not() -> None:
    evidence = torch.tensor([[1.0, 2.0], [1.0, 1.0]], requires_grad=True)
    none = torch.zeros(2, 2)
    target = reliability_target(evidence, none, 0.5, 10.0)
    assert torch.equal(target, evidence_target(evidence, 0.5))
    assert not target.requires_grad
    shaky = torch.tensor([[0.5, 0.0], [0.2, 0.0]])
    expected = torch.softmax(torch.tensor([[-2.0 - 5.0, -4.0], [-2.0 - 2.0, -2.0]]), 1)
    torch.testing.assert_close(reliability_target(evidence, shaky, 0.5, 10.0).detach(), expected)


def test_rows_of_sparse_features_are_the_dense_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 40, generator=generator)
    x[torch.rand(30, 40, generator=generator) < 0.95] = 0
    x[3] = 0
    for index in (torch.tensor([3, 29, 0, 7]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(rows(SparseRows.from_dense(x), index), x[index])
        assert torch.equal(rows(x, index), x[index])


def test_sparse_features_are_attacked_as_dense_ones(data) -> None:
    x = torch.zeros(90, 60)
    x[torch.arange(90), torch.arange(90) % 60] = 1
    graph = prepare(Data(x=x, edge_index=data.edge_index))
    assert isinstance(graph.x, SparseRows)
    method = ASPECTS(SMALL).start(Data(x=x, edge_index=data.edge_index))
    torch.manual_seed(0)
    sparse = method.attack(graph)
    torch.manual_seed(0)
    dense = method.attack(PreparedGraph(x, graph.pattern))
    torch.testing.assert_close(sparse.x, dense.x)
    torch.testing.assert_close(sparse.sensitivity, dense.sensitivity)


def test_the_attacked_nodes_are_seen_whatever_the_anchors(data) -> None:
    still = replace(SMALL, warmup_steps=0, drop_edges=0.0, drop_features=0.0, attacked_nodes=30)
    found = []
    for anchors in (len(data.x), 20):  # all of them, and a sample
        method = ASPECTS(replace(still, num_anchors=anchors)).start(data)
        torch.manual_seed(0)
        found.append(method.loss(prepare(data))["adversarial"])
    torch.testing.assert_close(found[0], found[1])
