"""Label-free methods: what they promise to a user, on odd graphs too."""

import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from torch_geometric.data import Data

from graphcl.datasets import contextual_sbm
from graphcl.errors import DataError, GraphCLError
from graphcl.nodes import (
    ASPECT,
    BGRL,
    GRACE,
    ASPECTConfig,
    ASPECTSConfig,
    BGRLConfig,
    GRACEConfig,
    PolyGCL,
    PolyGCLConfig,
    linear_probe,
)
from graphcl.nodes.policy import SpectralPolicy, evidence_target, policy_divergence
from graphcl.nodes.prepared import prepare
from graphcl.spectral import sparse
from graphcl.spectral.sparse import building_csr
from graphcl.training import seed_everything

SMALL = {"hidden_channels": 16, "epochs": 3, "learning_rate": 0.01}
METHODS = [
    (ASPECT, ASPECTConfig(**SMALL)),
    *[(ASPECT, ASPECTConfig(**SMALL, policy=p)) for p in ("global", "low", "high", "mean")],
    (ASPECT, ASPECTConfig(**SMALL, fusion="concat", cutoff=1.0, input_scale=100.0)),
    (GRACE, GRACEConfig(**SMALL)),
    (BGRL, BGRLConfig(**SMALL)),
    (PolyGCL, PolyGCLConfig(**SMALL, batch_norm=True, unit_rows=True)),
]
IDS = ["aspect", "global", "low", "high", "mean", "concat", "grace", "bgrl", "polygcl"]


@pytest.mark.parametrize(
    ("config", "field", "value", "rule"),
    [
        (ASPECTConfig, "hidden_channels", 0, "at least 1"),
        (ASPECTConfig, "projection_channels", 0, "at least 1"),
        (ASPECTConfig, "num_anchors", -5, "at least 1"),
        (ASPECTConfig, "learning_rate", -1.0, "above 0"),
        (ASPECTConfig, "temperature", 0.0, "above 0"),
        (ASPECTConfig, "drop_features", 1.0, "0 to just under 1"),
        (ASPECTConfig, "weight_decay", float("nan"), "at least 0"),
        (ASPECTSConfig, "attack_every", 0, "at least 1"),
        (ASPECTSConfig, "attacked_nodes", 0, "at least 1"),
        (GRACEConfig, "drop_edges", 1.5, "0 to just under 1"),
        (BGRLConfig, "momentum", 3, "0 to 1"),
        (PolyGCLConfig, "dropout", 1.5, "0 to just under 1"),
        (PolyGCLConfig, "patience", 0, "at least 1"),
    ],
)
def test_a_hyper_parameter_out_of_its_range_is_refused_by_its_name(config, field, value, rule):
    with pytest.raises(GraphCLError, match=f"{field} is {value}, must be {rule}"):
        config(**{field: value})


@pytest.mark.parametrize(
    ("config", "field", "value", "choices"),
    [
        (ASPECTConfig, "fusion", "cat", "'sum', 'concat'"),
        (ASPECTConfig, "policy", "nodes", "'node', 'global', 'low', 'high', 'mean'"),
        (ASPECTSConfig, "row_norm", "L2", "'l1', 'l2'"),
        (PolyGCLConfig, "activation", "elu", "'relu', 'prelu'"),
    ],
)
def test_an_unknown_choice_is_refused_by_its_name(config, field, value, choices):
    with pytest.raises(GraphCLError, match=f"{field} is {value!r}, must be one of {choices}"):
        config(**{field: value})


def test_filters_without_a_band_are_told_which_fields_go_with_them(data):
    with pytest.raises(GraphCLError, match="set sharpness to 1 and cutoff to 2"):
        ASPECTConfig(filters="compat")
    config = ASPECTConfig(**SMALL, filters="compat", sharpness=1.0, cutoff=2.0)
    assert ASPECT(config).fit(data).embed(data).isfinite().all()


@pytest.fixture(scope="module")
def data() -> Data:
    return contextual_sbm(90, 3, 12, homophily=0.9, seed=1)


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_the_same_seed_gives_the_same_embedding_and_labels_are_never_read(data, method, config):
    first = method(config).fit(data).embed(data)
    blind = Data(x=data.x, edge_index=data.edge_index)
    assert torch.equal(method(config).fit(blind).embed(data), first)
    assert first.shape == (90, 16)
    torch.testing.assert_close(first.norm(dim=1), torch.full((90,), 4.0))


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_a_look_at_the_embedding_while_training_changes_nothing(data, method, config):
    fitted, looked = method(config).fit(data), method(config)

    def look(epoch, terms):
        mode = looked.training
        looked.embed(data)
        if isinstance(looked, ASPECT):
            looked.spectral_policy(data)
        assert looked.training == mode

    assert torch.equal(looked.fit(data, look).embed(data), fitted.embed(data))
    assert not looked.training


@pytest.mark.parametrize(("method", "config"), METHODS[-3:], ids=IDS[-3:])
def test_the_callers_own_random_numbers_stay(data, method, config):
    def drawn() -> list[float]:
        return [torch.rand(()).item(), np.random.random(), random.random()]

    drawings = []
    for train in (False, True):
        seed_everything(3, "caller")
        if train:
            method(config).start(data)
            method(config).fit(data)
        drawings.append(drawn())
    assert drawings[0] == drawings[1]


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_a_copy_of_a_fitted_method_is_one(data, method, config):
    fitted = method(config).fit(data)
    copied = deepcopy(fitted)
    assert torch.equal(copied.embed(data), fitted.embed(data))
    graph = fitted.prepare(data)
    assert torch.equal(deepcopy(graph).operator.to_dense(), graph.operator.to_dense())


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Data(edge_index=torch.tensor([[0], [1]]), num_nodes=2), "no x: give every node features"),
        (Data(x=torch.ones(2, 1)), r"no edge_index: give edges \[2, E\]"),
        (Data(x=csr_matrix(np.eye(2)), edge_index=torch.tensor([[0], [1]])), "matrix of SciPy"),
        (Data(x=torch.ones(2, 0), edge_index=torch.tensor([[0], [1]])), "at least one node and"),
    ],
)
def test_what_a_graph_lacks_is_said(graph, message):
    with pytest.raises(DataError, match=message):
        GRACE(GRACEConfig(**SMALL)).fit(graph)


def test_a_method_without_weights_is_not_saved(tmp_path):
    with pytest.raises(GraphCLError, match="no weights yet"):
        GRACE(GRACEConfig(**SMALL)).save(tmp_path / "g.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_a_saved_method_embeds_as_before_and_other_tools_read_it(data, tmp_path, method, config):
    fitted = method(config).fit(data)
    fitted.save(tmp_path / "m.safetensors")
    assert load_file(tmp_path / "m.safetensors").keys() == fitted.state_dict().keys()
    again = method.load(tmp_path / "m.safetensors")
    assert again.config == config
    assert torch.equal(again.embed(data), fitted.embed(data))


def test_a_file_of_another_method_is_refused(data, tmp_path):
    GRACE(GRACEConfig(**SMALL)).fit(data).save(tmp_path / "g.safetensors")
    with pytest.raises(GraphCLError, match="no saved ASPECT"):
        ASPECT.load(tmp_path / "g.safetensors")


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_node_permutation_carries_over(data, method, config):
    fitted = method(config).fit(data)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    moved = Data(x=data.x[order], edge_index=place[data.edge_index])
    torch.testing.assert_close(fitted.embed(moved), fitted.embed(data)[order], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_odd_graphs_have_defined_embeddings(method, config):
    x = torch.rand(6, 5)
    x[5] = 0  # an all-zero row on an isolated node
    edges = torch.tensor([[0, 0, 1, 1, 2, 3], [1, 1, 0, 1, 3, 2]])  # doubled, directed, a loop
    odd = Data(x=x, edge_index=edges)
    tidy = Data(x=x, edge_index=torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]]))
    embedding = method(config).fit(odd).embed(odd)
    assert torch.isfinite(embedding).all()
    assert torch.equal(method(config).fit(tidy).embed(tidy), embedding)
    single = Data(x=torch.rand(1, 5), edge_index=torch.empty(2, 0, dtype=torch.long))
    assert torch.isfinite(method(config).fit(single).embed(single)).all()


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_batches_of_nodes_train_and_repeat(data, method, config):
    batched = replace(config, batch_nodes=20)
    embedding = method(batched).fit(data).embed(data)
    assert torch.isfinite(embedding).all()
    assert torch.equal(method(batched).fit(data).embed(data), embedding)
    whole = method(config).fit(data).embed(data)
    assert not torch.equal(embedding, whole)
    assert torch.equal(method(replace(config, batch_nodes=90)).fit(data).embed(data), whole)


@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_batches_of_graphs_without_edges_are_defined(method, config, num_nodes):
    """Three nodes in batches of two leave one node alone in its batch."""
    lonely = Data(x=torch.rand(num_nodes, 5), edge_index=torch.empty(2, 0, dtype=torch.long))
    fitted = method(replace(config, batch_nodes=2)).fit(lonely)
    assert torch.isfinite(fitted.embed(lonely)).all()


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize(("method", "config"), METHODS, ids=IDS)
def test_rows_are_scaled_as_configured(method, config, norm, order, data):
    read = method(replace(config, row_norm=norm)).prepare(data).x
    torch.testing.assert_close(read.norm(order, dim=1), torch.ones(len(read)))


def test_channels_are_the_same_a_few_columns_at_a_time(data, monkeypatch):
    x = torch.where(torch.rand(data.x.shape) < 0.05, data.x, 0)
    method = ASPECT(ASPECTConfig(**SMALL)).start(Data(x=x, edge_index=data.edge_index))
    graph = method.prepare(Data(x=x, edge_index=data.edge_index))
    weights = [method.low.weight, method.high.weight, method.filters.theta]
    found = []
    for columns in (64, 6):
        monkeypatch.setattr(sparse, "CACHED", 1)
        monkeypatch.setattr(sparse, "LEAST_COLUMNS", columns)
        method.eval()
        z = method.embedding(graph)
        found.append((z, *torch.autograd.grad(z.square().sum(0).cos().sum(), weights)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = method.embedding(graph).float()
    torch.testing.assert_close(rounded, found[0][0], rtol=0.1, atol=0.02)


def test_sparse_features_are_read_as_the_dense_ones(data):
    x = torch.where(torch.rand(data.x.shape, generator=torch.Generator()) < 0.05, data.x, 0)
    dense, config = Data(x=x, edge_index=data.edge_index), GRACEConfig(**SMALL)
    fitted = GRACE(config).fit(dense)
    with building_csr():
        layouts = [x.to_sparse_csr(), x.to_sparse_coo()]
    for stored in layouts:
        sparse = Data(x=stored, edge_index=data.edge_index)
        assert torch.equal(GRACE(config).fit(sparse).embed(sparse), fitted.embed(dense))
    x[4, 3] = torch.inf
    with pytest.raises(DataError, match=r"x\[4, 3\] is inf"), building_csr():
        prepare(Data(x=x.to_sparse_csr(), edge_index=data.edge_index))


def test_fusion_adds_up_what_a_node_takes_or_puts_it_side_by_side(data):
    graph = prepare(data)
    for fusion in ("sum", "concat"):
        method = ASPECT(ASPECTConfig(**SMALL, fusion=fusion)).start(data)
        view = method.channels(graph.x, graph.operator)
        shares = torch.rand(90, 1)
        shares = torch.cat([shares, 1 - shares], 1)
        low, high = shares[:, :1] * view.low, shares[:, 1:] * view.high
        wanted = low + high if fusion == "sum" else torch.cat([low, high], 1)
        torch.testing.assert_close(method.fuse(view, shares), wanted)
        assert wanted.shape == (90, 16)
    with pytest.raises(GraphCLError, match="5 cannot be halved"):
        ASPECT(ASPECTConfig(hidden_channels=5, fusion="concat")).start(data)


def test_input_scale_multiplies_the_features_and_not_the_biases(data):
    graph = prepare(data)
    one, many = (
        ASPECT(ASPECTConfig(**SMALL, input_scale=scale)).start(data) for scale in (1.0, 40.0)
    )
    for method in (one, many):
        torch.nn.init.constant_(method.low.bias, 0.3)
    scaled = type(graph)(40 * graph.x, graph.pattern)
    expected = one.channels(scaled.x, graph.operator)
    found = many.channels(graph.x, graph.operator)
    torch.testing.assert_close(found.low, expected.low)
    torch.testing.assert_close(found.high, expected.high)


def test_misuse_is_a_clear_error(data):
    with pytest.raises(GraphCLError, match="no weights yet"):
        ASPECT().embed(data)
    fitted = ASPECT(ASPECTConfig(**SMALL)).fit(data)
    with pytest.raises(GraphCLError, match="fitted on 12 features, the graph has 3"):
        fitted.embed(Data(x=torch.rand(4, 3), edge_index=data.edge_index[:, :0]))
    with pytest.raises(DataError, match=r"x\[1, 0\] is nan"):
        prepare(Data(x=torch.tensor([[1.0], [torch.nan]]), edge_index=data.edge_index[:, :0]))
    for size in (1, -5):
        with pytest.raises(GraphCLError, match=f"batch_nodes is {size}, must be at least 2, or 0"):
            GRACEConfig(**SMALL, batch_nodes=size)


def test_memory_of_a_step_is_bounded_by_the_anchors(data):
    few = ASPECT(ASPECTConfig(**SMALL, num_anchors=10)).fit(data)
    assert torch.isfinite(few.embed(data)).all()


def test_anchors_are_seen_as_they_are_among_all_nodes(data):
    """The rows of a view are those of the whole, and so is what they teach."""
    method = ASPECT(ASPECTConfig(**SMALL, drop_features=0.0, drop_edges=0.0)).start(data)
    graph, anchors = prepare(data), torch.tensor([40, 3, 77])
    views, whole = method.draw_views(graph, anchors), method.draw_views(graph, None)
    found = method.contrast_views(views, anchors)
    wanted = method.contrast_views(tuple(view.at(anchors) for view in whole), anchors)
    torch.testing.assert_close(found, wanted)
    gradients = [
        torch.autograd.grad(sum(terms.values()), list(method.parameters()))
        for terms in (found, wanted)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["node", "global"])
def test_every_parameter_of_aspect_learns(data, policy):
    config = ASPECTConfig(**{**SMALL, "epochs": 2}, policy=policy)  # the policy's last layer is 0
    start = {n: p.clone() for n, p in ASPECT(config).start(data).named_parameters()}
    fitted = dict(ASPECT(config).fit(data).named_parameters())
    still = [name for name, value in start.items() if torch.equal(fitted[name], value)]
    assert still == []


def test_policy_starts_undecided_and_rows_sum_to_one(data):
    policy = ASPECT(ASPECTConfig(**SMALL)).start(data).spectral_policy(data)
    assert torch.equal(policy, torch.full((90, 2), 0.5))
    trained = ASPECT(ASPECTConfig(**{**SMALL, "epochs": 30})).fit(data).spectral_policy(data)
    torch.testing.assert_close(trained.sum(1), torch.ones(90))
    assert trained[:, 0].std() > 0
    assert SpectralPolicy(4)(torch.zeros(2, 4), torch.ones(2, 4)).tolist() == [[0.5, 0.5]] * 2


def test_a_policy_asks_for_directions_and_not_for_lengths():
    policy = SpectralPolicy(4)
    torch.nn.init.normal_(policy.shares.weight)
    low, high = torch.randn(6, 4), torch.randn(6, 4)
    shares = policy(low, high)
    assert (shares - 0.5).abs().max() > 0.01
    torch.testing.assert_close(policy(30 * low, high / 70), shares)


def test_evidence_prefers_the_channel_with_the_smaller_loss():
    evidence = torch.tensor([[1.0, 2.0], [3.0, 3.0]], requires_grad=True)
    target = evidence_target(evidence, 0.5)
    assert not target.requires_grad
    assert target[0, 0] > 0.85
    assert target[1].tolist() == [0.5, 0.5]
    assert policy_divergence(target, target).item() == pytest.approx(0.0, abs=1e-7)
    assert policy_divergence(target, target.flip(1)) > 0
    sure = torch.tensor([[1.0, 0.0]])
    assert torch.isfinite(policy_divergence(sure, sure.flip(1)))


def test_training_beats_the_features_where_the_graph_helps():
    data = contextual_sbm(400, 2, 16, homophily=0.9, signal=0.6, seed=0)
    mask = torch.arange(400) % 5
    masks = (mask < 2, mask == 2, mask > 2)
    config = ASPECTConfig(hidden_channels=32, epochs=60, learning_rate=0.01)
    z = ASPECT(config).fit(data).embed(data)
    trained = linear_probe(z, data.y, *masks, epochs=300).mean
    features = linear_probe(data.x, data.y, *masks, epochs=300).mean
    assert trained > features + 0.05
