from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graphcl.contrast import ExcludeIndex, PositiveIndex, SameLabel, contrastive_loss
from graphcl.errors import GraphCLError

N, M, D = 7, 9, 4
SCORES = ("cosine", "dot", "euclidean")
BLOCKS = (None, 1, 3, 7, 512)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def targets(name: str) -> tuple[Any, Tensor]:
    """Return the filler of the slot and the dense matrix that it stands for."""
    generator = torch.Generator().manual_seed(1)
    if name == "index":
        index = torch.tensor([3, -1, 0, 8, 8, 2, 5])
        dense = torch.zeros(N, M)
        for i, j in enumerate(index.tolist()):
            if j >= 0:
                dense[i, j] = 1
        return PositiveIndex(index), dense
    if name == "labels":
        rows, columns = torch.tensor([0, 1, 2, 0, 9, 1, 2]), torch.arange(M) % 3
        dense = (rows[:, None] == columns[None, :]).double()
        return SameLabel(rows, columns), dense / dense.sum(1, keepdim=True).clamp(min=1)
    soft = torch.rand(N, M, generator=generator, dtype=torch.float64)
    soft[4] = 0
    return (soft, soft) if name == "dense" else (lambda rows: soft[rows], soft)


def candidates(name: str) -> tuple[Any, Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    if name == "all":
        return None, None
    if name == "exclude":
        index = torch.tensor([0, 1, 2, -1, 4, 5, 6])
        dense = torch.ones(N, M)
        for i, j in enumerate(index.tolist()):
            if j >= 0:
                dense[i, j] = 0
        return ExcludeIndex(index), dense
    weights = torch.rand(N, M, generator=generator, dtype=torch.float64)
    weights[weights < 0.3] = 0
    weights[2] = 0
    if name == "truth values":
        return (lambda rows: weights[rows] > 0), (weights > 0).double()
    return (weights, weights) if name == "dense" else (lambda rows: weights[rows], weights)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("target", ["index", "labels", "dense", "function"])
@pytest.mark.parametrize("allowed", ["all", "exclude", "dense", "function", "truth values"])
def test_values_and_gradients_equal_the_formula(
    reference: Callable[..., Tensor], score: Any, target: str, allowed: str
) -> None:
    queries, keys, weight = doubles(N, D), doubles(M, D), torch.rand(N).double().requires_grad_()
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    inputs = (queries, keys, weight, tau)
    (t, dense_t), (w, dense_w) = targets(target), candidates(allowed)
    expected = reference(queries, keys, dense_t, dense_w, score, tau, weight)
    expected_grads = torch.autograd.grad(expected, inputs)
    for block in BLOCKS:
        loss = contrastive_loss(
            queries,
            keys,
            target=t,
            candidates=w,
            score=score,
            temperature=tau,
            sample_weight=weight,
            block_size=block,
        )
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        for grad, expected_grad in zip(
            torch.autograd.grad(loss, inputs), expected_grads, strict=True
        ):
            torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("block", [None, 2])
def test_gradcheck(score: Any, block: int | None) -> None:
    index = torch.tensor([1, 0, -1, 3])
    tau = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(q: Tensor, k: Tensor, w: Tensor, t: Tensor) -> Tensor:
        return contrastive_loss(
            q,
            k,
            target=PositiveIndex(index),
            candidates=ExcludeIndex(torch.tensor([0, 1, 2, -1])),
            score=score,
            temperature=t,
            sample_weight=w,
            block_size=block,
            reduction="none",
        )

    inputs = (doubles(4, 3), doubles(5, 3), torch.rand(4).double().requires_grad_(), tau)
    assert torch.autograd.gradcheck(loss, inputs)
    if block is None:
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("score", SCORES)
def test_second_derivative_of_dense_path_survives_empty_rows(score: Any) -> None:
    queries, keys = doubles(N, D), doubles(M, D)
    loss = contrastive_loss(
        queries, keys, target=targets("dense")[0], candidates=candidates("dense")[0],
        score=score, block_size=None,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), queries)
    assert second.isfinite().all()
    assert second.any()


def test_second_derivative_of_blocked_path_names_the_way_out() -> None:
    queries = doubles(3, D)
    loss = contrastive_loss(queries, queries, target=PositiveIndex(torch.tensor([1, 2, 0])))
    with pytest.raises(GraphCLError, match="block_size=None"):
        torch.autograd.grad(loss, queries, create_graph=True)


def test_queries_may_be_keys(reference: Callable[..., Tensor]) -> None:
    z, own = doubles(N, D), torch.arange(N)
    index = own.roll(1)
    loss = contrastive_loss(
        z, z, target=PositiveIndex(index), candidates=ExcludeIndex(own), block_size=2
    )
    expected = reference(z, z, torch.eye(N)[index], 1 - torch.eye(N))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(loss, z), torch.autograd.grad(expected, z), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("block", [None, 5])
def test_half_precision_at_low_temperature(
    dtype: torch.dtype, score: Any, block: int | None
) -> None:
    # Dot products near 40 over 0.05 have no exponential in any half or single precision.
    z = (3 * torch.randn(12, D)).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    own = torch.arange(12)
    losses = [
        contrastive_loss(
            side, side, target=PositiveIndex(own.roll(1)), candidates=ExcludeIndex(own),
            score=score, temperature=0.05, block_size=block,
        )
        for side in (z, exact)
    ]  # fmt: skip
    for loss in losses:
        loss.backward()
    assert losses[0].dtype == torch.float32
    assert z.grad is not None
    assert z.grad.dtype == dtype
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("block", [None, 5])
def test_autocast_leaves_the_tiles_in_single_precision(block: int | None) -> None:
    z = torch.randn(12, D, requires_grad=True)
    own = torch.arange(12)

    def loss_and_grad() -> tuple[Tensor, Tensor]:
        loss = contrastive_loss(
            z, z, target=PositiveIndex(own.roll(1)), candidates=ExcludeIndex(own),
            temperature=0.05, block_size=block,
        )  # fmt: skip
        return loss, torch.autograd.grad(loss, z)[0]

    plain = loss_and_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, grad = loss_and_grad()
    torch.testing.assert_close(loss, plain[0], rtol=0, atol=0)
    if block is not None:
        torch.testing.assert_close(grad, plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_without_target_or_candidate_do_not_count(block: int | None, reduction: Any) -> None:
    queries, keys = doubles(4, D), doubles(3, D)
    weights = torch.ones(4, 3)
    weights[2] = 0
    weight = torch.tensor([1.0, 7.0, 7.0, 3.0], dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, -1, 1, 2])

    def loss(rows: list[int], how: Any) -> Tensor:
        return contrastive_loss(
            queries[rows], keys, target=PositiveIndex(index[rows]), candidates=weights[rows],
            sample_weight=weight[rows], block_size=block, reduction=how,
        )  # fmt: skip

    whole = loss([0, 1, 2, 3], reduction)
    grads = torch.autograd.grad(whole.sum(), (queries, weight), retain_graph=True)
    for grad in grads:
        assert grad.isfinite().all()
        assert not grad[[1, 2]].any()
    if reduction == "none":
        assert whole[[1, 2]].tolist() == [0, 0]
        torch.testing.assert_close(whole[[0, 3]], loss([0, 3], "none"))
    else:
        torch.testing.assert_close(whole, loss([0, 3], reduction))


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_sample_without_itself_gives_zero(
    block: int | None, score: Any, reduction: Any
) -> None:
    z = doubles(1, D)
    own = torch.arange(1)
    loss = contrastive_loss(
        z, z, target=PositiveIndex(own), candidates=ExcludeIndex(own), score=score,
        block_size=block, reduction=reduction,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss.sum(), z)
    assert loss.sum() == 0
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_samples_or_no_keys_give_a_differentiable_zero(
    block: int | None, score: Any, n: int, m: int
) -> None:
    queries, keys = doubles(n, D), doubles(m, D)
    loss = contrastive_loss(
        queries, keys, target=PositiveIndex(torch.full((n,), -1)), score=score, block_size=block
    )
    loss.backward()
    assert loss.shape == ()
    assert loss == 0
    for side in (queries, keys):
        assert side.grad is not None
        assert not side.grad.any()


@pytest.mark.parametrize("block", [None, 2])
def test_zero_weights_give_zero(block: int | None) -> None:
    z = doubles(3, D)
    loss = contrastive_loss(
        z, z, target=PositiveIndex(torch.tensor([1, 2, 0])), sample_weight=torch.zeros(3),
        block_size=block,
    )  # fmt: skip
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()


@pytest.mark.parametrize("block", [None, 2])
def test_zero_vectors_have_cosine_zero_and_no_gradient(
    reference: Callable[..., Tensor], block: int | None
) -> None:
    queries, keys = doubles(4, D), doubles(4, D)
    with torch.no_grad():
        queries[1], keys[2] = 0, 0
    index = torch.tensor([2, 1, 0, 3])
    loss = contrastive_loss(queries, keys, target=PositiveIndex(index), block_size=block)
    torch.testing.assert_close(loss, reference(queries, keys, torch.eye(4)[index]))
    grads = torch.autograd.grad(loss, (queries, keys))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[0][1].any()
    assert not grads[1][2].any()


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_points_have_a_finite_euclidean_gradient(
    reference: Callable[..., Tensor], block: int | None, dtype: torch.dtype
) -> None:
    z = (5 + torch.randn(4, D)).to(dtype).requires_grad_()
    exact = z.detach().double().requires_grad_()
    index = torch.arange(4)
    loss = contrastive_loss(z, z, target=PositiveIndex(index), score="euclidean", block_size=block)
    expected = reference(exact, exact, torch.eye(4), score="euclidean")
    tolerance = 1e-9 if dtype == torch.float64 else 3e-3
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    (grad,), (expected_grad,) = torch.autograd.grad(loss, z), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_embeddings_that_are_not_finite_are_not_hidden(
    block: int | None, score: Any, value: float
) -> None:
    z = torch.randn(4, D)
    z[1, 0] = value
    own = torch.arange(4)
    loss = contrastive_loss(
        z, z, target=PositiveIndex(own.roll(1)), candidates=ExcludeIndex(own), score=score,
        block_size=block,
    )  # fmt: skip
    assert not loss.isfinite()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), block=st.sampled_from([None, 1, 4]))
def test_order_of_rows_and_of_keys_does_not_matter(seed: int, block: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(N, D, generator=generator, dtype=torch.float64)
    keys = torch.randn(M, D, generator=generator, dtype=torch.float64)
    target = torch.rand(N, M, generator=generator)
    weights = torch.rand(N, M, generator=generator)
    sample = torch.rand(N, generator=generator)
    rows, columns = (torch.randperm(size, generator=generator) for size in (N, M))
    plain = contrastive_loss(
        queries, keys, target=target, candidates=weights, sample_weight=sample, block_size=block
    )
    shuffled = contrastive_loss(
        queries[rows], keys[columns], target=target[rows][:, columns],
        candidates=weights[rows][:, columns], sample_weight=sample[rows], block_size=block,
    )  # fmt: skip
    torch.testing.assert_close(plain, shuffled, rtol=1e-10, atol=1e-10)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's output had."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature that torch calls
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                # The storage, so that a view of a large tensor counts as large.
                self.numel = max(
                    self.numel, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return out


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("slots", ["index", "labels"])
def test_memory_holds_no_more_than_one_block_of_rows(score: Any, slots: str) -> None:
    n, m, d, block = 210, 190, 3, 16
    queries, keys = torch.randn(n, d, requires_grad=True), torch.randn(m, d, requires_grad=True)
    tau = torch.tensor(0.5, requires_grad=True)
    index = torch.arange(n) % m
    target = (
        SameLabel(index % 5, torch.arange(m) % 5) if slots == "labels" else PositiveIndex(index)
    )
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def run(block_size: int | None) -> int:
        with LargestTensor() as largest:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = contrastive_loss(
                    queries, keys, target=target, candidates=ExcludeIndex(index), score=score,
                    temperature=tau, block_size=block_size,
                )  # fmt: skip
            loss.backward()
        return largest.numel

    assert run(block) <= block * m
    assert max(saved) <= max(n, m) * d
    # The instrument sees what it must see.
    assert run(None) >= n * m


def good() -> dict[str, Any]:
    return {
        "queries": torch.randn(3, D),
        "keys": torch.randn(4, D),
        "target": PositiveIndex(torch.tensor([0, 1, -1])),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": torch.randn(3)}, "queries has shape"),
        ({"keys": torch.ones(4, D, dtype=torch.int64)}, "keys has shape .* matrix of floats"),
        ({"keys": torch.randn(4, D + 1)}, "4 columns and keys 5"),
        ({"target": PositiveIndex(torch.tensor([0, 1]))}, "target: PositiveIndex has 2 entries"),
        ({"target": PositiveIndex(torch.tensor([0, 4, 1]))}, "index 4, but there are 4 keys"),
        ({"target": PositiveIndex(torch.tensor([0, -2, 1]))}, "index -2"),
        ({"target": torch.ones(3, 5)}, r"target has shape \(3, 5\)"),
        ({"target": torch.tensor([0, 1, 2])}, "PositiveIndex"),
        ({"target": -torch.ones(3, 4)}, "target: rows 0 to 2 hold a negative"),
        ({"target": lambda rows: torch.ones(3, 2)}, r"rows 0 to 2 has shape \(3, 2\)"),
        ({"target": SameLabel(torch.tensor([0, 1, 1]))}, "3 entries for 4 keys"),
        ({"target": "labels"}, "target is a str"),
        ({"candidates": ExcludeIndex(torch.tensor([0, 1, 9]))}, "candidates: .* index 9"),
        ({"candidates": torch.full((3, 4), torch.nan)}, "candidates: .* negative value or NaN"),
        ({"score": "manhattan"}, "unknown score 'manhattan'"),
        ({"temperature": 0.0}, "temperature is 0;"),
        ({"temperature": -1}, "temperature is -1;"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": torch.ones(2)}, "temperature has shape"),
        ({"sample_weight": torch.ones(4)}, "sample_weight has shape"),
        ({"sample_weight": -torch.ones(3)}, "sample_weight holds a negative"),
        ({"block_size": 0}, "block_size is 0"),
        ({"reduction": "max"}, "unknown reduction 'max'"),
    ],
)
def test_malformed_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphCLError, match=message):
        contrastive_loss(**good() | change)
