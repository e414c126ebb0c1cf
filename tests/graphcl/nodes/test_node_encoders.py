"""Encoders are PyTorch Geometric's networks, whatever form the graph comes in.

What ASPECT's is, is in test_aspect_encoder.py.
"""

import copy
import pickle

import pytest
import torch
from torch_geometric.nn import GAT, GCN, GIN, MLP, GraphSAGE, SGConv

from graphcl.nodes import ENCODERS, NodeClassifier, NodeEncoder

IN, HIDDEN, OUT = 5, 8, 6


def random_graph(num_nodes: int, num_edges: int, seed: int):
    """A directed graph with parallel edges and self-loops; the last two nodes are isolated."""
    rng = torch.Generator().manual_seed(seed)
    edge_index = torch.randint(num_nodes - 2, (2, num_edges), generator=rng)
    return torch.randn(num_nodes, IN, generator=rng), edge_index


def encoder(name: str, **options) -> NodeEncoder:
    torch.manual_seed(3)
    return NodeEncoder(name, IN, HIDDEN, OUT, **options).eval()


@pytest.fixture
def graph():
    return random_graph(14, 40, seed=1)


@pytest.fixture(params=sorted(ENCODERS))
def name(request):
    return request.param


def peer(net: NodeEncoder, layers: int):
    """PyTorch Geometric's own network with the weights of an encoder, and its forward."""
    weights = net.net.state_dict()
    if net.name == "mlp":
        module = MLP([IN, *[HIDDEN] * (layers - 1), OUT], norm=None)
        weights = {key.removeprefix("mlp."): value for key, value in weights.items()}
    elif net.name == "sgc":
        module = SGConv(IN, OUT, K=layers)
        weights = {f"lin.{key.removeprefix('linear.')}": v for key, v in weights.items()}
    else:
        module = {
            "gcn": lambda: GCN(IN, HIDDEN, layers, OUT, normalize=True),
            "sage": lambda: GraphSAGE(IN, HIDDEN, layers, OUT, aggr="mean"),
            "gin": lambda: GIN(IN, HIDDEN, layers, OUT),
            "gat": lambda: GAT(IN, HIDDEN, layers, OUT, heads=4),
        }[net.name]()
    module.load_state_dict(weights)
    module.eval()
    return module, (lambda x, e: module(x)) if net.name == "mlp" else module


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"aspect"}))
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_output_and_gradients_are_those_of_pytorch_geometric(name, layers, graph):
    x, edge_index = graph
    net = encoder(name, num_layers=layers)
    module, forward = peer(net, layers)
    ours, theirs = net(x, net.operator(edge_index, len(x))), forward(x, edge_index)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for mine, other in zip(net.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_edge_index_and_prepared_operator_give_the_same(name, graph):
    x, edge_index = graph
    net = encoder(name)
    torch.testing.assert_close(net(x, edge_index), net(x, net.operator(edge_index, len(x))))


def test_renumbered_nodes_give_renumbered_embeddings(name, graph):
    x, edge_index = graph
    net = encoder(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(x))
    torch.testing.assert_close(
        net(x[order], place[edge_index]), net(x, edge_index)[order], rtol=1e-4, atol=1e-5
    )


def test_messages_follow_the_direction_of_the_edges(name):
    x = torch.randn(3, IN)
    net = encoder(name, num_layers=1)
    changed = x.clone()
    changed[0] += 1
    edge_index = torch.tensor([[0], [1]])
    moved = (net(x, edge_index) - net(changed, edge_index)).abs().amax(1) > 1e-6
    assert moved.tolist() == [True, name != "mlp", False]


def test_isolated_nodes_and_no_edges_at_all_are_embedded_alike(name, graph):
    """An isolated node's embedding depends on its own features alone."""
    x, edge_index = graph
    net = encoder(name)
    nothing = torch.empty(2, 0, dtype=torch.long)
    alone = net(x, nothing)
    assert alone.isfinite().all()
    torch.testing.assert_close(alone, net(x, net.operator(nothing, len(x))))
    torch.testing.assert_close(net(x, edge_index)[-2:], alone[-2:])


def test_every_parameter_gets_a_gradient(name, graph):
    x, edge_index = graph
    net = NodeClassifier(encoder(name), OUT, 3).train()
    with torch.no_grad():  # ASPECT's policy starts at zero, where its hidden layer learns nothing
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    net(x, net.encoder.operator(edge_index, len(x))).logits.square().sum().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_gradient_reaches_features_through_a_graph_without_edges(name):
    x = torch.randn(4, IN, requires_grad=True)
    net = encoder(name)
    net(x, net.operator(torch.empty(2, 0, dtype=torch.long), 4)).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_weights_do_not_depend_on_the_graph(name, graph):
    """A model trained on one graph works on another: nothing of a graph stays in it."""
    net, fresh = encoder(name), encoder(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(*graph)
    after = net.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    other = random_graph(30, 70, seed=5)
    assert torch.equal(net(*other), fresh(*other))
    assert net(*other).shape == (30, OUT)


def test_dropout_acts_while_training_only(name, graph):
    net = encoder(name, dropout=0.5)
    assert torch.equal(net(*graph), net(*graph))
    net.train()
    assert not torch.equal(net(*graph), net(*graph))


def test_encoders_can_be_copied_and_sent_to_another_process(name, graph):
    net = encoder(name)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(*graph), net(*graph))


def test_encoders_run_in_double_precision(name, graph):
    x, edge_index = graph
    net = encoder(name).double()
    assert net(x.double(), edge_index).dtype == torch.float64


def test_hidden_width_that_four_heads_do_not_divide_still_builds(graph):
    assert NodeEncoder("gat", IN, 7, OUT)(*graph).shape == (14, OUT)


def test_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown encoder 'gnc' \(known: .*gcn.*mlp"):
        NodeEncoder("gnc", IN, HIDDEN, OUT)


def test_classifier_head_reads_the_projected_embedding(graph):
    net = NodeClassifier(encoder("gcn"), OUT, 3, projector=torch.nn.Linear(OUT, OUT)).eval()
    out = net(*graph)
    torch.testing.assert_close(out.embedding, net.projector(net.encoder(*graph)))
    torch.testing.assert_close(out.logits, net.head(out.embedding))
    assert out.logits.shape == (14, 3)


def test_classifier_without_projector_hands_on_the_encoders_embedding(graph):
    net = NodeClassifier(encoder("gcn"), OUT, 3).eval()
    assert torch.equal(net(*graph).embedding, net.encoder(*graph))
    assert not [key for key in net.state_dict() if key.startswith("projector")]
