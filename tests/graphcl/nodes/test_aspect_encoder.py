"""The encoder "aspect" is what ASPECT embeds nodes with, and no more than that."""

import pytest
import torch
from torch_geometric.data import Data

from graphcl.nodes import ASPECT, ASPECTConfig, NodeEncoder
from graphcl.nodes.prepared import prepare
from graphcl.spectral import EdgePattern, SymmetricOperator

NODES, IN, OUT = 12, 5, 6
HEADS = ("projection.", "channel_projection.")


@pytest.fixture
def graph() -> Data:
    rng = torch.Generator().manual_seed(1)
    edge_index = torch.randint(NODES - 1, (2, 30), generator=rng)  # the last node is isolated
    return Data(x=torch.rand(NODES, IN, generator=rng), edge_index=edge_index)


def encoder(seed: int = 3) -> NodeEncoder:
    torch.manual_seed(seed)
    net = NodeEncoder("aspect", IN, 8, OUT).eval()
    with torch.no_grad():  # as after training: the policy starts undecided
        for parameter in net.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return net


def test_it_is_aspects_own_embedding_under_the_same_weights(graph):
    net, method = encoder(), ASPECT(ASPECTConfig(hidden_channels=OUT)).start(graph)
    weights = net.net.state_dict()
    missing, unexpected = method.load_state_dict(weights, strict=False)
    assert [name for name in missing if not name.startswith(HEADS)] == []
    assert unexpected == []
    assert not [name for name in weights if name.startswith(HEADS)]  # nobody trains them here
    prepared = prepare(graph)
    torch.testing.assert_close(
        net(prepared.x, net.operator(graph.edge_index, NODES)),
        method(prepared.x, prepared.operator),
    )


def test_it_is_a_mix_of_filters_of_the_spectrum(graph):
    """Against the eigenvectors of the dense Laplacian, in float64."""
    net = encoder().double()
    x = graph.x.double()
    low_high = net.net
    adjacency = torch.zeros(NODES, NODES, dtype=torch.float64)
    adjacency[graph.edge_index[0], graph.edge_index[1]] = 1
    adjacency = ((adjacency + adjacency.T) > 0).double().fill_diagonal_(0)
    degree = adjacency.sum(1)
    root = torch.where(degree > 0, degree.clamp(min=1).rsqrt(), 0)
    lam, vectors = torch.linalg.eigh(-root[:, None] * adjacency * root + torch.eye(NODES).double())
    response = low_high.filters.response(lam.clamp(0, 2))
    channels = [
        low_high.activation(
            vectors @ (response[:, k, None] * (vectors.T @ x @ part.weight.T)) + part.bias
        )
        for k, part in enumerate((low_high.low, low_high.high))
    ]
    shares = low_high.policy(*channels)
    assert shares.std(0).max() > 1e-3  # nodes differ, or nothing is tested
    expected = shares[:, :1] * channels[0] + shares[:, 1:] * channels[1]
    torch.testing.assert_close(net(x, graph.edge_index), expected)


def test_its_operator_is_prepared_once_and_for_edges_without_direction(graph):
    net = encoder()
    operator = net.operator(graph.edge_index, NODES)
    assert isinstance(operator, SymmetricOperator)
    expected = EdgePattern(graph.edge_index.flip(0), NODES).shifted_laplacian()
    assert torch.equal(operator.to_dense(), expected.to_dense())
    out = net(graph.x, operator)
    for edges in (
        graph.edge_index.flip(0),
        torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1),
    ):
        torch.testing.assert_close(net(graph.x, edges), out)
