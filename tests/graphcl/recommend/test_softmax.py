"""Cross-entropies over a catalogue against the formula with every logit, in double precision."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import profile

import graphcl.recommend.softmax as module
from graphcl.errors import GraphCLError
from graphcl.recommend import catalogue_cross_entropy, sampled_cross_entropy

M, V, D = 13, 11, 4
METHODS = ("dense", "torch", "tiles")
# Blocks of one logit, of less than a row, of a row and some, and of everything.
SETTINGS = [("dense", None)] + [
    (method, block) for method in ("torch", "tiles") for block in (1, 7, 24, 10**6)
]


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


def problem(
    m: int = M, v: int = V, d: int = D, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, items, bias and targets, a third of which are padding."""
    hidden, items, bias = (
        torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((m, d), (v, d), (v,))
    )
    target = torch.randint(1, v, (m,))
    target[::3] = 0
    return hidden, items, bias, target


def formula(
    hidden: Tensor, items: Tensor, target: Tensor, bias: Tensor | None = None, tau: float = 1.0
) -> Tensor:
    """The mean over the positions that have a target, one by one."""
    losses = []
    for h, t in zip(hidden, target.tolist(), strict=True):
        if t:
            logits = items @ h / tau + (0 if bias is None else bias)
            losses.append(logits[1:].exp().sum().log() - logits[t])
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("method", "block"), [*SETTINGS, ("auto", None), ("auto", 7)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_value_and_gradients_equal_the_formula(method: Any, block: int, with_bias: bool) -> None:
    hidden, items, bias, target = problem()
    inputs = (hidden, items, bias) if with_bias else (hidden, items)
    given = bias if with_bias else None
    expected = formula(hidden, items, target, given, tau=0.4)
    loss = catalogue_cross_entropy(
        hidden, items, target, bias=given, temperature=0.4, method=method, block=block
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for grad, wanted in zip(
        torch.autograd.grad(3 * loss, inputs),
        torch.autograd.grad(3 * expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_gradcheck_of_tiles(block: int) -> None:
    hidden, items, bias, target = problem(5, 4, 3)

    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return catalogue_cross_entropy(h, w, target, bias=b, method="tiles", block=block)

    assert torch.autograd.gradcheck(loss, (hidden, items, bias))


@pytest.mark.parametrize("method", ["torch", "tiles"])
def test_single_precision_agrees_with_dense_where_there_are_many_blocks(method: Any) -> None:
    hidden, items, bias, target = problem(600, 3000, 32, torch.float32)
    losses, grads = [], []
    for how in ("dense", method):
        loss = catalogue_cross_entropy(
            hidden, items, target, bias=bias, temperature=0.5, method=how, block=20_000
        )
        losses.append(loss)
        grads.append(torch.autograd.grad(loss, (hidden, items, bias)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for grad, wanted in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_large_logits_neither_overflow_nor_vanish(method: Any) -> None:
    hidden, items, _, target = problem()
    loss = catalogue_cross_entropy(hidden, 1e4 * items, target, method=method, block=7)
    logits = (hidden @ (1e4 * items).T)[:, 1:]
    wanted = torch.nn.functional.cross_entropy(logits[target > 0], target[target > 0] - 1)
    assert wanted > 1e3
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("method", ["torch", "tiles"])
def test_what_is_frozen_gets_no_gradient_and_changes_none(method: Any) -> None:
    hidden, items, bias, target = problem()
    settings: Any = {"method": method, "block": 24}
    loss = catalogue_cross_entropy(hidden, items, target, bias=bias, **settings)
    wanted = torch.autograd.grad(loss, (hidden, items, bias))
    for place in range(3):
        inputs = [value.detach() for value in (hidden, items, bias)]
        inputs[place].requires_grad_()
        h, w, b = inputs
        catalogue_cross_entropy(h, w, target, bias=b, **settings).backward()
        torch.testing.assert_close(inputs[place].grad, wanted[place])


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_no_candidate_and_gets_no_gradient(method: Any) -> None:
    hidden, items, bias, target = problem()
    loss = catalogue_cross_entropy(hidden, items, target, bias=bias, method=method, block=24)
    loss.backward()
    assert items.grad is not None
    assert bias.grad is not None
    assert hidden.grad is not None
    assert not items.grad[0].any()
    assert not bias.grad[0].any()
    assert not hidden.grad[target == 0].any()
    assert hidden.grad[target > 0].any(dim=1).all()
    with torch.no_grad():
        items[0], bias[0], hidden[target == 0] = 1e3, 1e3, torch.nan
    other = catalogue_cross_entropy(hidden, items, target, bias=bias, method=method, block=24)
    torch.testing.assert_close(other, loss, rtol=0, atol=0)


def catalogue(method: Any) -> Callable[..., Tensor]:
    return lambda *args, **options: catalogue_cross_entropy(*args, method=method, **options)


def sampled(hidden: Tensor, items: Tensor, target: Tensor, **options: Any) -> Tensor:
    negatives = torch.arange(1, len(items))
    log_q = torch.full((len(negatives),), -math.log(len(negatives)))
    return sampled_cross_entropy(hidden, items, target, negatives, log_q, **options)


@pytest.mark.parametrize("loss", [*map(catalogue, (*METHODS, "auto")), sampled])
@pytest.mark.parametrize("rows", [0, M])
def test_without_a_target_the_loss_and_its_gradients_are_zero(
    loss: Callable[..., Tensor], rows: int
) -> None:
    hidden, items, bias, _ = problem(rows)
    value = loss(hidden, items, torch.zeros(rows, dtype=torch.int64), bias=bias)
    value.backward()
    assert value.item() == 0
    for tensor in (hidden, items, bias):
        assert tensor.grad is not None
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


@pytest.mark.parametrize("loss", [*map(catalogue, METHODS), sampled])
def test_half_precision_and_autocast_are_computed_in_single(loss: Callable[..., Tensor]) -> None:
    hidden, items, _, target = problem(dtype=torch.bfloat16)
    exact = loss(hidden.double(), items.double(), target, temperature=0.05)
    half = loss(hidden, items, target, temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(hidden.float(), items.float(), target, temperature=0.05)
        (grad,) = torch.autograd.grad(cast, hidden)
    assert half.dtype == cast.dtype == torch.float32
    assert grad.dtype == torch.bfloat16
    for value in (half, cast):
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


def largest_allocation(function: Callable[[], Any]) -> int:
    """Return the bytes of the largest tensor made, in PyTorch's own operations too."""
    with profile(profile_memory=True) as profiler:
        function()
    return max(event.self_cpu_memory_usage for event in profiler.events())


@pytest.mark.parametrize(("method", "rows"), [("torch", 1), ("torch", 20), ("tiles", 0.4)])
def test_no_tensor_exceeds_a_block_of_logits_or_the_table(method: Any, rows: float) -> None:
    hidden, items, bias, target = problem(60, 1000, 3, torch.float32)
    block = int(rows * 1000)
    inputs: Any = {"bias": bias, "block": block}

    def step(how: Any) -> None:
        catalogue_cross_entropy(hidden, items, target, method=how, **inputs).backward()

    counted = int((target > 0).sum())
    assert largest_allocation(lambda: step("dense")) >= 4 * counted * 999
    assert largest_allocation(lambda: step(method)) <= 4 * max(block, items.numel())


@pytest.mark.parametrize(
    ("rows", "columns", "block", "method"),
    [
        (256, 1024, 2**22, "dense"),
        (257, 1024, 2**22, "torch"),
        (256, 1024, 2**10, "tiles"),
        (6400, 12_101, 2**22, "torch"),
        (6400, 131_072, 2**22, "torch"),
        (6400, 131_073, 2**22, "tiles"),
        (6400, 1_000_000, 2**26, "torch"),
    ],
)
def test_auto_takes_what_was_measured_to_be_fastest(
    rows: int, columns: int, block: int, method: str
) -> None:
    assert module._fastest(rows, columns, block) == method


@pytest.mark.parametrize("block", [1, 2, 3, 12, 100, 2**18, 2**26])
def test_a_tile_holds_no_more_than_its_block(block: int) -> None:
    rows, columns = module._tile_size(block)
    assert min(rows, columns) >= 1
    assert block / 2 < rows * columns <= block


def test_second_derivative_is_there_for_dense_and_refused_by_blocks() -> None:
    hidden, items, _, target = problem()
    for method in METHODS:
        loss = catalogue_cross_entropy(hidden, items, target, method=method)  # type: ignore[arg-type]
        if method == "dense":
            (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
            assert torch.autograd.grad(grad.square().sum(), hidden)[0].any()
        else:
            with pytest.raises(GraphCLError, match="method='dense'"):
                torch.autograd.grad(loss, hidden, create_graph=True)
    loss = sampled(hidden, items, target)
    with pytest.raises(GraphCLError, match=r"sampled_cross_entropy: .* no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def sampled_formula(
    hidden: Tensor, items: Tensor, target: Tensor, negatives: Tensor, log_q: Tensor, bias: Tensor
) -> Tensor:
    """The denominator is the target and the mean over K of exp(s_j) / q_j, hits left out."""
    losses = []
    for h, t in zip(hidden, target.tolist(), strict=True):
        if t:
            logits = items @ h + bias
            others = [
                logits[j].exp() / q.exp() / len(negatives)
                for j, q in zip(negatives.tolist(), log_q, strict=True)
                if j != t
            ]
            losses.append((logits[t].exp() + sum(others)).log() - logits[t])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tile", [1, 20, 2**18])  # logits at a time
def test_sampled_loss_and_gradients_equal_the_formula(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphcl.recommend.softmax._TILE", tile)
    hidden, items, bias, target = problem()
    negatives = torch.tensor([3, 3, 7, int(target[1]), 10, int(target[2])])
    log_q = torch.rand(6, dtype=torch.float64).log()
    inputs = (hidden, items, bias)
    loss = sampled_cross_entropy(hidden, items, target, negatives, log_q, bias=bias)
    expected = sampled_formula(hidden, items, target, negatives, log_q, bias)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for grad, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


def test_sampled_loss_of_every_item_drawn_once_is_that_of_the_catalogue() -> None:
    hidden, items, bias, target = problem()
    options: Any = {"bias": bias, "temperature": 0.3}
    torch.testing.assert_close(
        sampled(hidden, items, target, **options),
        catalogue_cross_entropy(hidden, items, target, **options),
    )


def test_sampled_loss_corrects_for_how_often_items_are_drawn() -> None:
    hidden, items, _, target = problem()
    q = torch.arange(V, dtype=torch.float64) ** 2
    q /= q.sum()
    negatives = q.multinomial(200_000, replacement=True)
    full = catalogue_cross_entropy(hidden, items, target)
    corrected = sampled_cross_entropy(hidden, items, target, negatives, q[negatives].log())
    alike = torch.full((len(negatives),), -math.log(V - 1))
    torch.testing.assert_close(corrected, full, rtol=0.01, atol=0)
    assert (sampled_cross_entropy(hidden, items, target, negatives, alike) - full).abs() > 0.05


def test_sampled_loss_of_nothing_but_hits_is_zero_and_has_a_gradient() -> None:
    hidden, items, _, _ = problem()
    target = torch.full((M,), 5)
    negatives = torch.tensor([5, 5])
    loss = sampled_cross_entropy(hidden, items, target, negatives, torch.zeros(2))
    assert loss.item() == 0
    assert all(not g.any() for g in torch.autograd.grad(loss, (hidden, items)))


GOOD = torch.ones(3, D), torch.ones(V, D), torch.ones(3).long()
CATALOGUE_RULES: dict[str, tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any], str]] = {
    "hidden": ((torch.ones(3), *GOOD[1:]), {}, r"hidden has shape \[3\]"),
    "items": ((GOOD[0], torch.ones(V, D).long(), GOOD[2]), {}, "items .* torch.int64"),
    "columns": ((GOOD[0], torch.ones(V, 9), GOOD[2]), {}, "hidden has 4 columns and items 9"),
    "no item": ((GOOD[0], torch.ones(1, D), GOOD[2]), {}, "items has 1 rows"),
    "length": ((*GOOD[:2], torch.ones(2).long()), {}, r"target has shape \[2\]"),
    "type": ((*GOOD[:2], torch.ones(3)), {}, "target .* torch.float32"),
    "high": ((*GOOD[:2], torch.tensor([1, V, V])), {}, r"target\[1\] is 11 \(2 such\)"),
    "low": ((*GOOD[:2], torch.tensor([1, 2, -1])), {}, r"target\[2\] is -1 .* 0 to 10"),
    "bias": (GOOD, {"bias": torch.ones(3)}, r"bias has shape \[3\] for 11 items"),
    "temperature": (GOOD, {"temperature": 0.0}, "temperature is 0.0"),
    "nan": (GOOD, {"temperature": math.nan}, "temperature is nan"),
    "block": (GOOD, {"block": 0}, "block is 0"),
    "method": (GOOD, {"method": "triton"}, "unknown method 'triton'"),
}


@pytest.mark.parametrize("rule", CATALOGUE_RULES)
def test_bad_input_names_field_and_rule(rule: str) -> None:
    args, options, message = CATALOGUE_RULES[rule]
    with pytest.raises(GraphCLError, match=f"catalogue_cross_entropy: .*{message}"):
        catalogue_cross_entropy(*args, **options)


@pytest.mark.parametrize(
    ("negatives", "log_q", "message"),
    [
        (torch.ones(0).long(), torch.ones(0), "negatives .* at least one"),
        (torch.ones(2), torch.zeros(2), "negatives .* torch.float32"),
        (torch.tensor([1, 0]), torch.zeros(2), r"negatives\[1\] is 0 .* 1 to 10"),
        (torch.tensor([1, V]), torch.zeros(2), r"negatives\[1\] is 11"),
        (torch.tensor([1, 2]), torch.zeros(3), r"log_q has shape \[3\] for 2 negatives"),
        (torch.tensor([1, 2]), torch.tensor([-1.0, 0.1]), r"log_q\[1\] is 0.1"),
        (torch.tensor([1, 2]), torch.tensor([-torch.inf, 0]), r"log_q\[0\] is -inf"),
    ],
)
def test_bad_negatives_name_field_and_rule(negatives: Tensor, log_q: Tensor, message: str) -> None:
    with pytest.raises(GraphCLError, match=f"sampled_cross_entropy: {message}"):
        sampled_cross_entropy(*GOOD, negatives, log_q)
