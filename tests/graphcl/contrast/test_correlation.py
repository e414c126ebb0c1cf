"""The correlation loss against numbers worked out by hand and by a loop."""

import pytest
import torch
from torch import Tensor

from graphcl.contrast import correlation_loss
from graphcl.errors import GraphCLError


def slow(z1: Tensor, z2: Tensor, redundancy: float) -> Tensor:
    n, d = z1.shape
    total = z1.new_zeros(())
    for i in range(d):
        for k in range(d):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, k] - z2[:, k].mean()
            a = a / ((a @ a / (n - 1)).sqrt() + 1e-5)
            b = b / ((b @ b / (n - 1)).sqrt() + 1e-5)
            c = a @ b / n
            total = total + ((c - 1) ** 2 if i == k else redundancy * c**2)
    return total


def test_it_is_the_number_of_the_published_vector() -> None:
    z1 = torch.tensor([[1.0, 0], [2, 1], [3, 5], [4, 2]], dtype=torch.float64)
    z2 = torch.tensor([[0.0, 1], [1, 3], [4, 2], [3, 7]], dtype=torch.float64)
    assert correlation_loss(z1, z2).item() == pytest.approx(1.050533, abs=1e-6)
    assert correlation_loss(z1, z2, redundancy=0).item() == pytest.approx(1.046144, abs=1e-6)
    both = correlation_loss(z1, z2, redundancy=1).item()
    assert both == pytest.approx(1.046144 + 0.877859, abs=2e-6)


def test_value_and_gradients_equal_a_loop() -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(9, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found, wanted = correlation_loss(z1, z2, redundancy=0.3), slow(z1, z2, 0.3)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    pairs = zip(
        torch.autograd.grad(found, (z1, z2)), torch.autograd.grad(wanted, (z1, z2)), strict=True
    )
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in pairs)


def test_it_does_not_depend_on_where_and_how_wide_the_channels_are() -> None:
    torch.manual_seed(0)
    z1, z2 = (torch.randn(50, 3, dtype=torch.float64) for _ in range(2))
    moved = correlation_loss(100 * z1 + 7, 30 * z2 - 5)
    assert moved.item() == pytest.approx(correlation_loss(z1, z2).item(), rel=1e-4)


def test_a_channel_that_says_nothing_leaves_the_gradient_finite() -> None:
    z1 = torch.randn(5, 2)
    z1[:, 0] = 1
    z1.requires_grad_()
    correlation_loss(z1, torch.randn(5, 2)).backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_samples_are_no_loss(n: int) -> None:
    z = torch.ones(n, 3, requires_grad=True)
    loss = correlation_loss(z, torch.ones(n, 3))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_other_samples_are_refused() -> None:
    with pytest.raises(GraphCLError, match=r"z1 has shape \(4, 2\) and z2 \(3, 2\)"):
        correlation_loss(torch.zeros(4, 2), torch.zeros(3, 2))
    with pytest.raises(GraphCLError, match="pass matrices of the same samples"):
        correlation_loss(torch.zeros(4), torch.zeros(4))
