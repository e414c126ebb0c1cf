import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_graphs import GRAPHS, dense_shifted, random_edges
from torch.autograd import gradcheck

from graphcl.errors import GraphCLError
from graphcl.spectral import laplacian, rayleigh_quotient

FLOAT = torch.float64


@pytest.mark.parametrize("name", GRAPHS)
def test_quotient_equals_the_formula(name: str) -> None:
    edge_index, n = GRAPHS[name]
    L = dense_shifted(edge_index, n) + torch.eye(n, dtype=FLOAT)
    x = torch.randn(n, 3, dtype=FLOAT)
    expected = (x.T @ L @ x).trace() / (x.T @ x).trace()
    torch.testing.assert_close(rayleigh_quotient(x, L), expected)
    torch.testing.assert_close(
        rayleigh_quotient(x, laplacian(edge_index, n, dtype=FLOAT)), expected
    )
    single = rayleigh_quotient(x.float(), laplacian(edge_index, n))
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_eigenvectors_give_eigenvalues(name: str) -> None:
    operator = laplacian(*GRAPHS[name], dtype=FLOAT)
    eigenvalues, U = torch.linalg.eigh(operator.to_dense())
    found = torch.stack([rayleigh_quotient(u[:, None], operator) for u in U.unbind(1)])
    torch.testing.assert_close(found, eigenvalues)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 15), st.integers(0, 40), st.integers(0, 1000))
def test_quotient_stays_in_range(n: int, e: int, seed: int) -> None:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    quotient = rayleigh_quotient(x, laplacian(random_edges(n, e, seed), n))
    assert -1e-5 <= quotient.item() <= 2 + 1e-5


def test_gradients() -> None:
    operator = laplacian(*GRAPHS["isolated"], dtype=FLOAT)
    x = torch.randn(12, 2, dtype=FLOAT, requires_grad=True)
    assert gradcheck(lambda x: rayleigh_quotient(x, operator), (x,))
    L = operator.to_dense().requires_grad_()
    assert gradcheck(rayleigh_quotient, (x, L))


def test_zero_signal() -> None:
    x = torch.zeros(20, 2, requires_grad=True)
    quotient = rayleigh_quotient(x, laplacian(*GRAPHS["random"]))
    quotient.backward()
    assert quotient.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


def test_bad_inputs() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(GraphCLError, match=r"pass \[N, D\] and \[N, N\]"):
        rayleigh_quotient(x, torch.eye(3))
    with pytest.raises(GraphCLError, match=r"pass \[N, D\] and \[N, N\]"):
        rayleigh_quotient(x[:, 0], torch.eye(4))
    with pytest.raises(GraphCLError, match="float64"):
        rayleigh_quotient(x, torch.eye(4, dtype=FLOAT))
    with pytest.raises(GraphCLError, match="rayleigh_quotient: x has shape"):
        rayleigh_quotient(x, laplacian(*GRAPHS["random"]))
