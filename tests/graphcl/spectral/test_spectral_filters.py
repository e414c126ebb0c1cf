from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_graphs import GRAPHS, dense_shifted
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from graphcl.errors import GraphCLError
from graphcl.spectral import (
    EdgePattern,
    MonotoneFilters,
    chebyshev_nodes,
    filter_polynomial,
    interpolation_matrix,
)
from graphcl.spectral.filters import FilterMode

FLOAT = torch.float64
MODES: tuple[FilterMode, ...] = ("simplex", "compat")


def spectral_form(dense: Tensor, v: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k c_k T_k on the eigenvalues, T_k(x) = cos(k arccos x)."""
    eigenvalues, U = torch.linalg.eigh(dense)
    degrees = torch.arange(len(coefficients), dtype=FLOAT)
    basis = torch.cos(degrees * torch.acos(eigenvalues.clamp(-1, 1))[:, None])
    response = basis @ coefficients
    return torch.stack([U @ (h[:, None] * (U.T @ v)) for h in response.unbind(1)])


def operator_of(name: str, dtype: torch.dtype = FLOAT) -> Any:
    return EdgePattern(*GRAPHS[name]).shifted_laplacian(dtype=dtype)


def moved_filters(order: int = 10, mode: FilterMode = "simplex", seed: int = 0) -> MonotoneFilters:
    filters = MonotoneFilters(order, mode).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        filters.theta += torch.randn(order, 2, generator=generator, dtype=FLOAT)
    return filters


@pytest.mark.parametrize("order", [0, 1, 2, 5, 10, 30])
def test_nodes_and_interpolation(order: int) -> None:
    nodes = chebyshev_nodes(order)
    assert nodes.shape == (order + 1,)
    assert (nodes.diff() > 0).all()
    assert nodes.abs().max() < 1
    degrees = torch.arange(order + 1, dtype=FLOAT)
    basis = torch.cos(degrees * torch.acos(nodes)[:, None])
    identity = torch.eye(order + 1, dtype=FLOAT)
    torch.testing.assert_close(basis @ interpolation_matrix(order), identity)


@pytest.mark.parametrize("width", [0, 63, 64, 65, 200])
def test_signals_of_any_width_are_filtered_column_by_column(width: int) -> None:
    edge_index, n = GRAPHS["random"]
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(n, width, generator=generator, dtype=FLOAT)
    coefficients = torch.randn(6, 2, generator=generator, dtype=FLOAT)
    expected = spectral_form(dense_shifted(edge_index, n), v, coefficients)
    found = filter_polynomial(operator_of("random"), v, coefficients)
    torch.testing.assert_close(found, expected)
    transposed = v.t().contiguous().t()
    assert torch.equal(filter_polynomial(operator_of("random"), transposed, coefficients), found)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("order", [0, 1, 2, 10])
def test_recursion_equals_spectral_form(name: str, order: int) -> None:
    edge_index, n = GRAPHS[name]
    v = torch.randn(n, 3, dtype=FLOAT)
    coefficients = torch.randn(order + 1, 2, dtype=FLOAT)
    expected = spectral_form(dense_shifted(edge_index, n), v, coefficients)
    before = v.clone()
    out = filter_polynomial(operator_of(name), v, coefficients)
    torch.testing.assert_close(out, expected)
    assert torch.equal(v, before)  # the buffers are not the input
    alone = filter_polynomial(operator_of(name), v, coefficients[:, 1])
    torch.testing.assert_close(alone, expected[1])
    single = filter_polynomial(operator_of(name, torch.float32), v.float(), coefficients.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["isolated", "single", "no_edges"])
@pytest.mark.parametrize("order", [0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_gradients_of_the_polynomial(name: str, order: int, shape: tuple[int, ...]) -> None:
    operator = operator_of(name)
    v = torch.randn(operator.num_nodes, 2, dtype=FLOAT, requires_grad=True)
    coefficients = torch.randn(order + 1, *shape, dtype=FLOAT, requires_grad=True)
    assert gradcheck(lambda v, c: filter_polynomial(operator, v, c), (v, coefficients))
    assert gradcheck(lambda v: filter_polynomial(operator, v, coefficients.detach()), (v,))
    assert gradcheck(lambda c: filter_polynomial(operator, v.detach(), c), (coefficients,))


def test_second_derivatives() -> None:
    operator = operator_of("isolated")
    v = torch.randn(12, 2, dtype=FLOAT, requires_grad=True)
    coefficients = torch.randn(4, 2, dtype=FLOAT, requires_grad=True)
    assert gradgradcheck(lambda v, c: filter_polynomial(operator, v, c), (v, coefficients))
    assert gradgradcheck(lambda v: filter_polynomial(operator, v, coefficients.detach()), (v,))


@pytest.mark.parametrize("kind", [lambda operator: operator, lambda operator: operator.to_dense()])
def test_a_gradient_on_record_is_the_one_off_record(kind) -> None:
    """Where one filter's input comes from the same coefficients, each path counts once."""
    operator = kind(operator_of("random"))
    x = torch.randn(20, 3, dtype=FLOAT)
    coefficients = torch.randn(4, 1, dtype=FLOAT, requires_grad=True)
    hidden = filter_polynomial(operator, x, coefficients)[0]
    loss = filter_polynomial(operator, hidden, coefficients)[0].pow(3).sum()
    (plain,) = torch.autograd.grad(loss, coefficients, retain_graph=True)
    (on_record,) = torch.autograd.grad(loss, coefficients, create_graph=True)
    torch.testing.assert_close(on_record, plain)


def test_gradients_equal_those_of_torch() -> None:
    operator = operator_of("random")
    v = torch.randn(4, 20, dtype=FLOAT).T.requires_grad_()  # not contiguous
    c = torch.randn(6, 2, dtype=FLOAT, requires_grad=True)
    terms = [v, operator.matrix @ v]
    for _ in range(4):
        terms.append(2 * (operator.matrix @ terms[-1]) - terms[-2])
    plain = torch.stack([sum(c[k, g] * t for k, t in enumerate(terms)) for g in range(2)])
    ours = filter_polynomial(operator, v, c)
    torch.testing.assert_close(ours, plain)
    for reduce in (lambda out: out.sum(), lambda out: (out[0] * out[1]).sum()):
        expected = torch.autograd.grad(reduce(plain), (v, c), retain_graph=True)
        found = torch.autograd.grad(reduce(ours), (v, c), retain_graph=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", [0, 1, 2, 10])
@pytest.mark.parametrize("nodes", [[7, 2, 2, 0], [11], []])
def test_some_rows_are_those_of_the_whole_with_its_gradients(order: int, nodes: list[int]) -> None:
    operator = operator_of("isolated")
    at = torch.tensor(nodes, dtype=torch.long)
    v = torch.randn(3, 12, dtype=FLOAT).T.requires_grad_()  # not contiguous
    c = torch.randn(order + 1, 2, dtype=FLOAT, requires_grad=True)
    found = filter_polynomial(operator, v, c, at)
    whole = filter_polynomial(operator, v, c)[:, at]
    torch.testing.assert_close(found, whole)
    one = filter_polynomial(operator, v, c[:, 1], at)
    torch.testing.assert_close(one, whole[1])
    dense = filter_polynomial(operator.to_dense(), v, c, at)
    torch.testing.assert_close(dense, whole)
    weight = torch.randn(2, len(nodes), 3, dtype=FLOAT)
    expected = torch.autograd.grad((weight * whole).sum(), (v, c))
    torch.testing.assert_close(torch.autograd.grad((weight * found).sum(), (v, c)), expected)


def test_gradients_of_some_rows() -> None:
    operator, at = operator_of("isolated"), torch.tensor([7, 2, 2, 0])
    v = torch.randn(12, 2, dtype=FLOAT, requires_grad=True)
    c = torch.randn(4, 2, dtype=FLOAT, requires_grad=True)
    for check in (gradcheck, gradgradcheck):
        assert check(lambda v, c: filter_polynomial(operator, v, c, at), (v, c))
        assert check(lambda v: filter_polynomial(operator, v, c.detach(), at), (v,))
    assert gradcheck(lambda c: filter_polynomial(operator, v.detach(), c, at), (c,))


@pytest.mark.parametrize("nodes", [torch.zeros(2, 2, dtype=torch.long), torch.zeros(3)])
def test_rows_that_are_no_list_of_nodes_are_refused(nodes: Tensor) -> None:
    operator, v = operator_of("isolated"), torch.randn(12, 2, dtype=FLOAT)
    with pytest.raises(GraphCLError, match=r"nodes are torch\.\w+ of shape"):
        filter_polynomial(operator, v, torch.ones(3, dtype=FLOAT), nodes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [1, 2, 10])
def test_response_at_the_nodes(mode: FilterMode, order: int) -> None:
    filters = moved_filters(order, mode).float()
    response = filters.response(filters.frequencies())
    torch.testing.assert_close(response, filters.values(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_start(mode: FilterMode) -> None:
    filters = MonotoneFilters(10, mode)
    if mode == "compat":
        line = torch.linspace(0, 2, 11)
    else:  # straight over the frequencies, stretched to end at 0 and 2
        lam = filters.frequencies()
        line = 2 * (lam - lam[0]) / (lam[-1] - lam[0])
    torch.testing.assert_close(filters.values(), torch.stack([2 - line, line], 1))
    ends = filters.response(torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(ends, torch.tensor([[2.0, 0.0], [0.0, 2.0]]), rtol=0, atol=0.15)
    v = torch.randn(20, 8)
    low, high = filters(operator_of("random", torch.float32), v)
    torch.testing.assert_close((low + high) / 2, v, rtol=0, atol=1e-5)
    low, high = filters(operator_of("random", torch.float32), v, v)
    torch.testing.assert_close((low + high) / 2, v, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sharpness", "cutoff"), [(1.0, 1.0), (2.0, 1.0), (4.0, 2.0), (1.0, 1.5)])
def test_the_start_keeps_its_band(sharpness: float, cutoff: float) -> None:
    filters = MonotoneFilters(10, sharpness=sharpness, cutoff=cutoff)
    lam, values = filters.frequencies(), filters.values()
    band = (1 - lam / cutoff).clamp(min=0) ** sharpness
    wanted = 2 * (band - band[-1]) / (band[0] - band[-1])
    torch.testing.assert_close(values[:, 0], wanted, rtol=0, atol=0.03)  # no step is quite zero
    torch.testing.assert_close(values[:, 1], values[:, 0].flip(0))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from(MODES))
def test_values_are_monotone(order: int, seed: int, mode: FilterMode) -> None:
    values = moved_filters(order, mode, seed).values()
    assert values[0].tolist() == [2, 0]
    assert (values[:, 0].diff() <= 1e-12).all()
    assert (values[:, 1].diff() >= -1e-12).all()
    if mode == "simplex":
        torch.testing.assert_close(values[-1], torch.tensor([0.0, 2.0], dtype=FLOAT))


def test_simplex_is_a_high_and_a_low_pass() -> None:
    ends = MonotoneFilters(10).response(torch.tensor([0.0, 2.0]))
    assert ends[1, 0].abs() < 0.15  # low at lam = 2
    assert ends[0, 1].abs() < 0.15  # high at lam = 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("separate", [False, True])
def test_filters_equal_their_response(mode: FilterMode, separate: bool) -> None:
    filters, (edge_index, n) = moved_filters(10, mode), GRAPHS["random"]
    eigenvalues, U = torch.linalg.eigh(dense_shifted(edge_index, n))
    response = filters.response((eigenvalues + 1).clamp(0, 2))
    v, w = torch.randn(n, 4, dtype=FLOAT), torch.randn(n, 4, dtype=FLOAT)
    if not separate:
        w = v
    inputs = (v, w) if separate else (v,)
    low, high = filters(operator_of("random"), *inputs)
    torch.testing.assert_close(low, U @ (response[:, :1] * (U.T @ v)))
    torch.testing.assert_close(high, U @ (response[:, 1:] * (U.T @ w)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("separate", [False, True])
def test_gradients_of_the_filters(mode: FilterMode, separate: bool) -> None:
    filters, operator = moved_filters(4, mode), operator_of("isolated")

    def outputs(theta: Tensor, *inputs: Tensor) -> Any:
        return torch.func.functional_call(filters, {"theta": theta}, (operator, *inputs))

    inputs = [torch.randn(12, 2, dtype=FLOAT, requires_grad=True) for _ in range(1 + separate)]
    assert gradcheck(outputs, (filters.theta.detach().requires_grad_(), *inputs))


def test_compat_can_die_and_simplex_cannot() -> None:
    for mode, alive in (("compat", False), ("simplex", True)):
        filters = MonotoneFilters(4, mode)  # type: ignore[arg-type]
        with torch.no_grad():
            filters.theta -= 1
        filters.response(torch.linspace(0, 2, 7)).square().sum().backward()
        assert filters.theta.grad is not None
        assert bool(filters.theta.grad.any()) is alive


def test_permutation_equivariance() -> None:
    filters, (edge_index, n) = moved_filters(), GRAPHS["random"]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    moved = EdgePattern(order[edge_index], n).shifted_laplacian(dtype=FLOAT)
    v = torch.randn(n, 3, dtype=FLOAT)
    w = torch.empty_like(v)
    w[order] = v
    for a, b in zip(filters(moved, w), filters(operator_of("random"), v), strict=True):
        torch.testing.assert_close(a[order], b)


def test_state_is_theta_alone() -> None:
    filters = moved_filters()
    assert list(filters.state_dict()) == ["theta"]
    filters.reset_parameters()
    torch.testing.assert_close(filters.values(), MonotoneFilters().double().values())
    assert "order=10, mode='simplex'" in repr(filters)


def test_filters_learn_a_high_pass() -> None:
    operator = operator_of("random", torch.float32)
    filters = MonotoneFilters(6)
    optimizer = torch.optim.Adam(filters.parameters(), lr=0.05)
    v = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    target = operator @ (operator @ v)
    losses = []
    for _ in range(60):
        low, high = filters(operator, v)
        loss = (low - v + operator @ v).square().mean() + (high - v - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_autocast_keeps_the_precision() -> None:
    filters, operator = MonotoneFilters(), operator_of("random", torch.float32)
    v = torch.randn(20, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = filters(operator, v)
    assert low.dtype == torch.float32


def test_bad_settings() -> None:
    operator, v = operator_of("random"), torch.randn(20, 2, dtype=FLOAT)
    with pytest.raises(GraphCLError, match="order is 0"):
        MonotoneFilters(0)
    with pytest.raises(GraphCLError, match="unknown mode"):
        MonotoneFilters(3, "free")  # type: ignore[arg-type]
    for lam in (torch.tensor([2.5]), torch.tensor([torch.nan]), torch.tensor(1.0)):
        with pytest.raises(GraphCLError, match="pass frequencies"):
            MonotoneFilters(3).response(lam)
    with pytest.raises(GraphCLError, match="order is -1"):
        interpolation_matrix(-1)
    with pytest.raises(GraphCLError, match="coefficients have shape"):
        filter_polynomial(operator, v, torch.ones(2, 2, 2, dtype=FLOAT))
    with pytest.raises(GraphCLError, match=r"coefficients are torch\.float32"):
        filter_polynomial(operator, v, torch.ones(2))
    with pytest.raises(GraphCLError, match="one row per node"):
        filter_polynomial(operator, v[:3], torch.ones(2, dtype=FLOAT))
