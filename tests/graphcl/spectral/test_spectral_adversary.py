"""The adversary: its algebra against slow references, and what its search promises."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from spectral_graphs import GRAPHS, dense_shifted, random_edges
from torch import Tensor
from torch.autograd import gradcheck

from graphcl.errors import GraphCLError
from graphcl.spectral import (
    EdgePattern,
    MonotoneFilters,
    filter_polynomial,
    find_attack,
    flip_edges,
    project_budget,
    rayleigh_quotient,
    relaxed_laplacian,
)

FLOAT = torch.float64
Objective = Callable[[Tensor, Tensor], Tensor]


def adjacency_of(name: str) -> Tensor:
    edge_index, n = GRAPHS[name]
    return EdgePattern(edge_index, n).induced_adjacency(torch.arange(n), FLOAT)


def weighted(n: int = 7, seed: int = 0) -> Tensor:
    weights = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=FLOAT).triu(1)
    weights[0] *= 0.1  # one node with a degree below 1
    return weights + weights.T


def distance_from(x: Tensor, adjacency: Tensor) -> Objective:
    """How far two steps of propagation land from where they land on the clean graph."""
    operator = relaxed_laplacian(adjacency)
    clean = operator @ (operator @ x)
    return lambda operator, moved: (operator @ (operator @ moved) - clean).square().mean()


@pytest.mark.parametrize("name", GRAPHS)
def test_induced_adjacency_and_relaxed_laplacian_equal_the_formula(name: str) -> None:
    edge_index, n = GRAPHS[name]
    torch.testing.assert_close(
        relaxed_laplacian(adjacency_of(name)), dense_shifted(edge_index, n), rtol=0, atol=1e-15
    )
    nodes = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 2 + 1]
    induced = EdgePattern(edge_index, n).induced_adjacency(nodes, FLOAT)
    assert torch.equal(induced, adjacency_of(name)[nodes][:, nodes])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10_000), st.floats(0, 2))
def test_relaxed_spectrum_stays_in_range(n: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = scale * torch.rand(n, n, generator=generator, dtype=FLOAT).triu(1)
    eigenvalues = torch.linalg.eigvalsh(relaxed_laplacian(weights + weights.T))
    assert eigenvalues.abs().max() <= 1 + 1e-12


def test_an_attack_can_find_an_isolated_node() -> None:
    strength = torch.zeros(3, 3, dtype=FLOAT, requires_grad=True)
    operator = relaxed_laplacian(flip_edges(torch.zeros(3, 3, dtype=FLOAT), strength))
    operator.sum().backward()
    assert strength.grad is not None
    assert (strength.grad.triu(1) == -2.0 * torch.ones(3, 3).triu(1)).all()


def test_gradients_of_the_dense_path() -> None:
    """Laplacian, filter and quotient of a weighted graph, towards all that an attack moves."""
    adjacency, filters = adjacency_of("isolated"), MonotoneFilters(4).double()
    n = len(adjacency)
    strength = (0.2 + 0.5 * torch.rand(n, n, dtype=FLOAT)).requires_grad_()
    x = torch.randn(n, 2, dtype=FLOAT, requires_grad=True)

    def path(strength: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        operator = relaxed_laplacian(flip_edges(adjacency, strength))
        return (*filters(operator, x), *filters(operator, x, 2 * x), rayleigh_quotient(x, operator))

    assert gradcheck(path, (strength, x))
    coefficients = torch.randn(5, dtype=FLOAT, requires_grad=True)
    symmetric = weighted().requires_grad_()
    v = torch.randn(7, 2, dtype=FLOAT, requires_grad=True)
    assert gradcheck(filter_polynomial, (symmetric, v, coefficients))


@pytest.mark.parametrize("name", GRAPHS)
def test_dense_filter_equals_eigendecomposition_and_sparse_path(name: str) -> None:
    edge_index, n = GRAPHS[name]
    dense, filters = dense_shifted(edge_index, n), MonotoneFilters(10, sharpness=3.0).double()
    v = torch.randn(n, 3, dtype=FLOAT)
    eigenvalues, U = torch.linalg.eigh(dense)
    response = filters.response((eigenvalues + 1).clamp(0, 2))
    sparse = filters(EdgePattern(edge_index, n).shifted_laplacian(dtype=FLOAT), v)
    for channel, found in enumerate(filters(relaxed_laplacian(adjacency_of(name)), v)):
        torch.testing.assert_close(found, U @ (response[:, channel, None] * (U.T @ v)))
        torch.testing.assert_close(found, sparse[channel])


def test_flips_add_absent_and_delete_present_edges() -> None:
    adjacency = adjacency_of("random")
    chance = torch.rand(20, 20, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    flips = (chance < 0.3).to(FLOAT)
    flipped = flip_edges(adjacency, flips)
    for i in range(20):
        for j in range(20):
            low, high = min(i, j), max(i, j)
            toggled = i != j and bool(flips[low, high])
            assert flipped[i, j] == (1 - adjacency[i, j] if toggled else adjacency[i, j])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=30),
    st.floats(0, 10),
)
def test_projection_equals_the_exact_one(values: list[float], budget: float) -> None:
    strength = torch.tensor(values, dtype=FLOAT)
    found = project_budget(strength, budget)
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.sum() <= budget + 1e-12

    def excess(m: float) -> float:
        return float((strength - m).clamp(0, 1).sum()) - budget

    m = 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, 3.0, xtol=1e-14)
    torch.testing.assert_close(found, (strength - m).clamp(0, 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("feature_bound", [0.0, 0.3])
def test_the_objective_never_falls_in_small_steps(feature_bound: float) -> None:
    adjacency = adjacency_of("random")
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1), dtype=FLOAT)
    attack = find_attack(
        distance_from(x, adjacency),
        adjacency,
        x,
        edge_budget=0.3,
        feature_bound=feature_bound,
        steps=40,
        step_size=0.02,
    )
    climbs = torch.tensor(attack.history).diff()
    assert len(climbs) == 39
    assert (climbs >= -1e-9).all()
    assert attack.history[-1] > attack.history[0] + 0.01


def test_history_starts_with_the_clean_objective() -> None:
    adjacency, x = adjacency_of("random"), torch.randn(20, 2, dtype=FLOAT)
    attack = find_attack(
        lambda operator, x: (operator @ x).sum(), adjacency, x, rayleigh_weight=0.5
    )
    operator = relaxed_laplacian(adjacency)
    quotient = rayleigh_quotient(x, operator + torch.eye(20, dtype=FLOAT))
    assert attack.history[0] == pytest.approx(float((operator @ x).sum() + 0.5 * quotient))


@pytest.mark.parametrize("name", [*GRAPHS])
def test_an_attack_is_a_graph_within_its_budgets(name: str) -> None:
    adjacency = adjacency_of(name)
    x = torch.randn(len(adjacency), 3, dtype=FLOAT)
    bound = torch.tensor([0.0, 0.1, 0.2], dtype=FLOAT)
    attack = find_attack(
        distance_from(x, adjacency),
        adjacency,
        x,
        edge_budget=0.5,
        feature_bound=bound,
        rayleigh_weight=0.1,
    )
    assert torch.equal(attack.adjacency, attack.adjacency.T)
    assert attack.adjacency.diagonal().eq(0).all()
    assert set(attack.adjacency.unique().tolist()) <= {0.0, 1.0}
    assert attack.strength.tril().eq(0).all()
    assert 0 <= attack.strength.sum() <= 0.5 * adjacency.sum() / 2 + 1e-9
    assert ((attack.x - x).abs() <= bound + 1e-12).all()
    assert torch.isfinite(attack.x).all()


def test_flips_are_drawn_with_their_strengths() -> None:
    adjacency = adjacency_of("random")
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    attacks = [
        find_attack(
            distance_from(x, adjacency),
            adjacency,
            x,
            edge_budget=0.5,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(300)
    ]
    mean = torch.stack([(a.adjacency - adjacency).abs().triu(1) for a in attacks]).mean(0)
    torch.testing.assert_close(mean, attacks[0].strength, rtol=0, atol=0.12)
    assert 0 < mean.sum() <= 0.5 * adjacency.sum() / 2 * 1.1


def test_the_rayleigh_term_draws_to_high_frequencies() -> None:
    adjacency = adjacency_of("random")
    x = 1 + 0.1 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=FLOAT)

    def quotient(weight: float) -> float:
        attack = find_attack(
            distance_from(x, adjacency),
            adjacency,
            x,
            edge_budget=0.3,
            feature_bound=0.2,
            rayleigh_weight=weight,
            steps=10,
        )
        operator = relaxed_laplacian(flip_edges(adjacency, attack.strength))
        return float(rayleigh_quotient(attack.x, operator))

    assert quotient(100.0) > quotient(0.0) + 0.01


def test_without_budgets_nothing_changes() -> None:
    adjacency, x = adjacency_of("random"), torch.randn(20, 3, dtype=FLOAT)
    attack = find_attack(distance_from(x, adjacency), adjacency, x, edge_budget=0.0)
    assert torch.equal(attack.adjacency, adjacency)
    assert torch.equal(attack.x, x)


def test_the_same_seed_finds_the_same_attack_and_inputs_stay() -> None:
    adjacency, x = adjacency_of("random"), torch.randn(20, 3, dtype=FLOAT)
    before = adjacency.clone(), x.clone()
    first, second, other = (
        find_attack(
            distance_from(x, adjacency),
            adjacency,
            x,
            edge_budget=0.5,
            feature_bound=0.1,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.adjacency, second.adjacency)
    assert torch.equal(first.x, second.x)
    assert not torch.equal(first.adjacency, other.adjacency)
    assert torch.equal(adjacency, before[0])
    assert torch.equal(x, before[1])


def test_only_the_perturbation_receives_gradients() -> None:
    adjacency, x = adjacency_of("random"), torch.randn(20, 3, dtype=FLOAT)
    layer = torch.nn.Linear(3, 4).double()
    with torch.no_grad():  # the search has gradients of its own, wherever it is called
        attack = find_attack(lambda operator, x: layer(operator @ x).square().mean(), adjacency, x)
    assert layer.weight.grad is None
    assert not attack.x.requires_grad
    assert not attack.adjacency.requires_grad


def test_search_works_on_single_precision() -> None:
    edge_index = random_edges(40, 90)
    adjacency = EdgePattern(edge_index, 40).induced_adjacency(torch.arange(40))
    x = torch.rand(40, 5)
    attack = find_attack(distance_from(x, adjacency), adjacency, x, feature_bound=0.1)
    assert attack.strength.sum() <= 0.1 * adjacency.sum() / 2 * (1 + 1e-5)
    assert attack.strength.sum() > 0


def test_bad_input_is_refused() -> None:
    adjacency, x = adjacency_of("random"), torch.randn(20, 3, dtype=FLOAT)

    def objective(operator: Tensor, x: Tensor) -> Tensor:
        return (operator @ x).sum()

    with pytest.raises(GraphCLError, match=r"pass \[n, n\] and \[n, F\]"):
        find_attack(objective, adjacency[:5], x)
    with pytest.raises(GraphCLError, match="of one type"):
        find_attack(objective, adjacency, x.float())
    for setting in ({"edge_budget": -0.1}, {"feature_bound": -1.0}, {"steps": 0}):
        with pytest.raises(GraphCLError, match="budgets of at least 0"):
            find_attack(objective, adjacency, x, **setting)  # type: ignore[arg-type]
    with pytest.raises(GraphCLError, match="filter_polynomial: x has shape"):
        filter_polynomial(torch.eye(3), torch.ones(4, 2), torch.ones(2))
