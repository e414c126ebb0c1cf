"""Random perturbations: exact counts, defined on odd graphs, decided by the seed alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_graphs import GRAPHS, random_edges
from torch_geometric.data import Data

from graphcl.errors import GraphCLError
from graphcl.spectral import EdgePattern, feature_noise, random_flips, random_perturbation


def pairs(edge_index: torch.Tensor, num_nodes: int) -> set[tuple[int, ...]]:
    return {tuple(edge) for edge in EdgePattern(edge_index, num_nodes).edge_index.T.tolist()}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(0, 60), st.floats(0, 1), st.integers(0, 1000))
def test_exactly_so_many_pairs_are_flipped(n: int, e: int, ratio: float, seed: int) -> None:
    edge_index = random_edges(n, e, seed)
    before = pairs(edge_index, n)
    flipped = random_flips(edge_index, n, ratio, seed=seed)
    assert len(before ^ pairs(flipped, n)) == round(ratio * len(before))
    assert flipped.dtype == torch.long
    assert flipped.shape[1] == 2 * len(pairs(flipped, n))  # both directions, no loops or doubles


def test_every_pair_is_as_likely() -> None:
    edge_index, counts = torch.tensor([[0, 1, 2], [1, 2, 3]]), torch.zeros(5, 5)
    before = pairs(edge_index, 5)
    for seed in range(500):
        for i, j in before ^ pairs(random_flips(edge_index, 5, 1.0, seed=seed), 5):
            counts[i, j] += 1
    found = counts[torch.triu_indices(5, 5, 1).unbind()] / 500
    torch.testing.assert_close(found, torch.full((10,), 0.3), rtol=0, atol=0.09)


def test_noise_follows_the_spread_of_each_feature() -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 10.0, 0.0]
    )
    noise = feature_noise(x, 0.5, seed=3) - x
    torch.testing.assert_close(noise.std(0), 0.5 * x.std(0), rtol=0.05, atol=0)
    assert (noise[:, 2] == 0).all()
    assert noise.mean(0).abs().max() < 0.3


@pytest.mark.parametrize("name", GRAPHS)
def test_joint_perturbation_keeps_the_rest_and_the_original(name: str) -> None:
    edge_index, n = GRAPHS[name]
    data = Data(x=torch.rand(n, 3), edge_index=edge_index, y=torch.zeros(n, dtype=torch.long))
    x, edges = data.x.clone(), data.edge_index.clone()
    perturbed = random_perturbation(data, 0.5, seed=0)
    assert torch.equal(data.x, x)
    assert torch.equal(data.edge_index, edges)
    assert perturbed.y is data.y
    assert perturbed.x.shape == x.shape
    assert torch.isfinite(perturbed.x).all()
    again = random_perturbation(data, 0.5, seed=0)
    assert torch.equal(again.x, perturbed.x)
    assert torch.equal(again.edge_index, perturbed.edge_index)
    still = random_perturbation(data, 0.0, seed=0)
    assert torch.equal(still.x, x)
    assert pairs(still.edge_index, n) == pairs(edges, n)


def test_another_seed_is_another_perturbation() -> None:
    edge_index, n = GRAPHS["random"]
    data = Data(x=torch.rand(n, 3), edge_index=edge_index)
    first, second = (random_perturbation(data, 0.3, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.x, second.x)
    assert pairs(first.edge_index, n) != pairs(second.edge_index, n)


def test_impossible_settings_are_refused() -> None:
    edge_index, n = GRAPHS["random"]
    for ratio in (-0.1, 1.1, float("nan")):
        with pytest.raises(GraphCLError, match="random_flips: ratio"):
            random_flips(edge_index, n, ratio, seed=0)
    with pytest.raises(GraphCLError, match="feature_noise: ratio"):
        feature_noise(torch.rand(3, 2), -1.0, seed=0)
    with pytest.raises(GraphCLError, match="feature_noise: ratio"):
        feature_noise(torch.ones(3, 2, dtype=torch.long), 0.1, seed=0)
