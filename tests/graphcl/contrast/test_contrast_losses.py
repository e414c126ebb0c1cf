import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphcl.contrast import (
    InfoNCE,
    PrototypeContrast,
    SupervisedContrastive,
    bpr,
    elementwise_triplet,
    info_nce,
    losses,
    prototype_contrast,
    supervised_contrastive,
)
from graphcl.errors import GraphCLError

BLOCKS = (None, 2, 512)


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def assert_same(actual: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for grad, other in zip(
        torch.autograd.grad(actual, inputs, retain_graph=True),
        torch.autograd.grad(expected, inputs, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-10)


def slow_direction(u: Tensor, v: Tensor, tau: float, intra: bool) -> Tensor:
    rows = []
    for i in range(len(u)):
        denominator = sum((cosine(u[i], v[j]) / tau).exp() for j in range(len(v)))
        if intra:
            denominator += sum((cosine(u[i], u[j]) / tau).exp() for j in range(len(u)) if j != i)
        rows.append(-((cosine(u[i], v[i]) / tau).exp() / denominator).log())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("intra", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_info_nce_equals_the_paper(intra: bool, symmetric: bool, block: int | None) -> None:
    z1, z2 = doubles(5, 3), doubles(5, 3)
    expected = slow_direction(z1, z2, 0.3, intra)
    if symmetric:
        expected = (expected + slow_direction(z2, z1, 0.3, intra)) / 2
    actual = info_nce(
        z1,
        z2,
        temperature=0.3,
        intra_view_negatives=intra,
        symmetric=symmetric,
        block_size=block,
    )
    assert_same(actual, expected, (z1, z2))


@pytest.mark.parametrize("block", [512, 100])
def test_info_nce_in_halved_tiles_equals_all_pairs_at_once(block: int) -> None:
    # Three tiles of rows; with 512 they are kept for the way back, with 100 computed anew.
    z1, z2 = doubles(150, 3), doubles(150, 3)
    with torch.no_grad():
        z1[7], z2[3] = 0, 0
    weight = torch.rand(150, dtype=torch.float64)
    for temperature in (0.025, 0.5):
        settings: dict[str, Any] = {"temperature": temperature, "sample_weight": weight}
        actual = info_nce(z1, z2, block_size=block, **settings)
        assert_same(actual, info_nce(z1, z2, block_size=None, **settings), (z1, z2))


def test_info_nce_has_room_in_single_precision_at_low_temperatures() -> None:
    # All nodes alike, and two nodes that are opposite in both views: the extremes of the scores.
    alike = torch.ones(300, 4).requires_grad_()
    opposite = torch.tensor([[1.0], [-1.0]]).requires_grad_()
    for z, temperature, expected in (
        (alike, 0.025, math.log(2 * len(alike) - 1)),
        (opposite, 0.025, 0.0),
        (opposite, 0.01, 0.0),
    ):
        loss = info_nce(z, z, temperature=temperature)
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        (grad,) = torch.autograd.grad(loss, z)
        assert grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.025, 0.05, 0.5])
def test_info_nce_keeps_its_digits_where_views_agree(temperature: float) -> None:
    z = torch.randn(100, 64).requires_grad_()
    loss = info_nce(z, z, temperature=temperature, reduction="none")
    assert (loss >= 0).all()
    (grad,) = torch.autograd.grad(loss.sum(), z)
    exact = z.detach().double().requires_grad_()
    expected = info_nce(exact, exact, temperature=temperature, reduction="none", block_size=None)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert (grad - wanted).norm() <= 1e-3 * wanted.norm()


def test_info_nce_takes_half_of_the_pairs_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    halved = losses.two_view_loss

    def record(*arguments: Any) -> Tensor:
        calls.append(arguments[2])
        return halved(*arguments)

    monkeypatch.setattr(losses, "two_view_loss", record)
    z1, z2 = doubles(5, 3), doubles(5, 3)
    for temperature in (0.025, 0.5, 1):
        info_nce(z1, z2, temperature=temperature)
    assert calls == [0.025, 0.5, 1]
    for settings in (
        {"block_size": None},
        {"symmetric": False},
        {"intra_view_negatives": False},
        {"temperature": 0.02},
        {"temperature": torch.tensor(0.5)},
    ):
        info_nce(z1, z2, **settings)
    assert len(calls) == 3


def test_info_nce_is_not_computed_in_half_precision() -> None:
    z1, z2 = torch.randn(40, 8).requires_grad_(), torch.randn(40, 8)
    expected = info_nce(z1, z2, temperature=0.05)
    (wanted,) = torch.autograd.grad(expected, z1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(z1, z2, temperature=0.05)
        (grad,) = torch.autograd.grad(loss, z1)
    assert torch.equal(loss, expected)
    assert torch.equal(grad, wanted)
    half = info_nce(z1.to(torch.float16), z2.to(torch.float16), temperature=0.05)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"reduction": "max"}, "unknown reduction 'max'"),
        ({"temperature": 1e300}, "temperature is inf"),
        ({"sample_weight": torch.ones(3)}, "3,"),
        ({"z1": torch.ones(5, 2, dtype=torch.long)}, "pass a matrix of floats"),
    ],
)
def test_info_nce_refuses_what_the_kernel_refuses(settings: dict[str, Any], message: str) -> None:
    views = {"z1": torch.ones(5, 2), "z2": torch.ones(5, 2)}
    with pytest.raises(GraphCLError, match=message):
        info_nce(**{**views, **settings})


def test_info_nce_in_blocks_has_no_second_derivative() -> None:
    z1, z2 = doubles(4, 3), doubles(4, 3)
    with pytest.raises(GraphCLError, match="no second derivative"):
        torch.autograd.grad(info_nce(z1, z2), z1, create_graph=True)


def test_info_nce_does_not_count_a_node_against_itself() -> None:
    # Orthogonal nodes, equal views: the one positive at 1 / tau, and per view n - 1 pairs at 0.
    n, tau = 4, 0.5
    z = torch.eye(n, dtype=torch.float64)
    positive = math.exp(1 / tau)
    expected = -math.log(positive / (positive + 2 * (n - 1)))
    assert info_nce(z, z, temperature=tau).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("n", [0, 1])
def test_info_nce_without_negatives_is_zero(block: int | None, n: int) -> None:
    z1, z2 = doubles(n, 3), doubles(n, 3)
    loss = info_nce(z1, z2, block_size=block)
    assert loss == 0
    for grad in torch.autograd.grad(loss, (z1, z2)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


@pytest.mark.parametrize("block", BLOCKS)
def test_sample_weights_are_counts(block: int | None) -> None:
    z1, z2 = doubles(3, 4), doubles(3, 4)
    plain, heavy = torch.ones(3), torch.tensor([1.0, 2.0, 1.0])
    only_second = torch.tensor([0.0, 1.0, 0.0])
    losses = [info_nce(z1, z2, sample_weight=w, block_size=block) for w in (plain, only_second)]
    expected = (3 * losses[0] + losses[1]) / 4
    torch.testing.assert_close(info_nce(z1, z2, sample_weight=heavy, block_size=block), expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_supervised_contrastive_equals_the_paper(block: int | None) -> None:
    z, y, tau = doubles(7, 3), torch.tensor([0, 1, 0, 2, 1, 0, 5]), 0.2
    rows = []
    for i in range(7):
        positives = [p for p in range(7) if p != i and y[p] == y[i]]
        if positives:
            denominator = sum((cosine(z[i], z[a]) / tau).exp() for a in range(7) if a != i)
            logs = [((cosine(z[i], z[p]) / tau).exp() / denominator).log() for p in positives]
            rows.append(-torch.stack(logs).sum() / len(positives))
    assert len(rows) == 5
    actual = supervised_contrastive(z, y, temperature=tau, block_size=block)
    assert_same(actual, torch.stack(rows).mean(), (z,))


@pytest.mark.parametrize("block", BLOCKS)
def test_supervised_contrastive_without_pairs_is_zero(block: int | None) -> None:
    z = doubles(3, 4)
    loss = supervised_contrastive(z, torch.arange(3), block_size=block)
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("known", [None, [True, False, True, True], [False, True, False, False]])
def test_prototype_contrast_equals_the_formula(block: int | None, known: list[bool] | None) -> None:
    z, y, prototypes, tau = doubles(6, 3), torch.tensor([0, 1, 2, 3, 1, 0]), doubles(4, 3), 0.1
    columns = [c for c in range(4) if known is None or known[c]]
    rows = []
    for i in range(6):
        if int(y[i]) in columns:
            scores = {c: (cosine(z[i], prototypes[c].detach()) / tau).exp() for c in columns}
            rows.append(-(scores[int(y[i])] / sum(scores.values())).log())
    expected = torch.stack(rows).mean()
    mask = None if known is None else torch.tensor(known)
    actual = prototype_contrast(z, y, prototypes, mask, block_size=block)
    assert_same(actual, expected, (z,))
    actual.backward()
    assert prototypes.grad is None


@pytest.mark.parametrize("block", BLOCKS)
def test_prototype_contrast_without_known_classes_is_zero(block: int | None) -> None:
    z, y = doubles(3, 4), torch.tensor([0, 1, 1])
    nothing = torch.full((2, 4), torch.nan, dtype=torch.float64)
    loss = prototype_contrast(z, y, nothing, torch.zeros(2, dtype=torch.bool), block_size=block)
    assert loss == 0
    assert not torch.autograd.grad(loss, z)[0].any()


@pytest.mark.parametrize("block", BLOCKS)
def test_samples_of_several_tables_are_each_told_from_their_own(block: int | None) -> None:
    z, y, prototypes = (
        doubles(7, 3),
        torch.tensor([0, 1, 2, 1, 0, 2, 2]),
        torch.randn(6, 3).double(),
    )
    owner, known = torch.tensor([0, 0, 1, 1, 0, 1, 0]), torch.tensor([True] * 4 + [False, True])
    together = prototype_contrast(
        z,
        y + 3 * owner,
        prototypes,
        known,
        candidates=owner[:, None] == torch.tensor([0, 0, 0, 1, 1, 1]),
        reduction="none",
        block_size=block,
    )
    alone = torch.zeros(7).double()
    for number in range(2):
        own, rows = owner == number, slice(3 * number, 3 * number + 3)
        loss = prototype_contrast(z[own], y[own], prototypes[rows], known[rows], reduction="none")
        alone[own] = loss
    weight = torch.arange(1.0, 8.0).double()
    assert_same((weight * together).sum(), (weight * alone).sum(), (z,))
    torch.testing.assert_close(together, alone)
    assert (together == 0).tolist() == (owner.bool() & (y == 1)).tolist()


def test_unknown_prototypes_are_not_read() -> None:
    z, y, prototypes = doubles(3, 4), torch.tensor([0, 1, 2]), torch.randn(3, 4).double()
    known = torch.tensor([True, False, True])
    clean = prototype_contrast(z, y, prototypes, known)
    prototypes[1] = torch.nan
    assert torch.equal(prototype_contrast(z, y, prototypes, known), clean)


@pytest.mark.parametrize("loss", ["info_nce", "supervised", "prototype"])
def test_length_of_an_embedding_does_not_matter(loss: str) -> None:
    z, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 0, 1, 2, 2])
    scaled = z * torch.tensor([1.0, 1e-3, 5.0, 1e4, 2.0, 0.1]).double()[:, None]
    other = torch.randn(6, 3).double()
    run: dict[str, Callable[[Tensor], Tensor]] = {
        "info_nce": lambda x: info_nce(x, other),
        "supervised": lambda x: supervised_contrastive(x, y),
        "prototype": lambda x: prototype_contrast(x, y, other[:3]),
    }
    torch.testing.assert_close(run[loss](z), run[loss](scaled), rtol=1e-10, atol=1e-10)


def test_modules_keep_the_settings_of_their_functions() -> None:
    z1, z2, y = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 2])
    weight = torch.rand(5)
    known = torch.tensor([True, True, False])
    nce = InfoNCE(0.3, intra_view_negatives=False, symmetric=False, block_size=None)
    assert torch.equal(
        nce(z1, z2, weight),
        info_nce(
            z1,
            z2,
            temperature=0.3,
            intra_view_negatives=False,
            symmetric=False,
            sample_weight=weight,
            block_size=None,
        ),
    )
    assert torch.equal(
        SupervisedContrastive(0.3)(z1, y, weight),
        supervised_contrastive(z1, y, temperature=0.3, sample_weight=weight),
    )
    assert torch.equal(
        PrototypeContrast(0.3)(z1, y, z2[:3], known, weight),
        prototype_contrast(z1, y, z2[:3], known, temperature=0.3, sample_weight=weight),
    )
    for module in (nce, SupervisedContrastive(0.3), PrototypeContrast(0.3)):
        assert "temperature=0.3" in repr(module)


def test_a_module_can_learn_its_temperature() -> None:
    module = InfoNCE(nn.Parameter(torch.tensor(0.5)))
    module(torch.randn(4, 3), torch.randn(4, 3)).backward()
    (tau,) = module.parameters()
    assert tau.grad is not None
    assert tau.grad != 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce(torch.ones(3, 2), torch.ones(4, 2)), r"z1 has shape \(3, 2\)"),
        (lambda: info_nce(torch.ones(3, 2), torch.ones(3, 2), temperature=0), "temperature is 0"),
        (lambda: supervised_contrastive(torch.ones(3, 2), torch.zeros(2).long()), "2 entries"),
        (lambda: supervised_contrastive(torch.ones(3, 2), torch.zeros(3)), "one integer per row"),
        (
            lambda: prototype_contrast(torch.ones(2, 2), torch.tensor([0, 3]), torch.ones(3, 2)),
            "classes 0 to 3, but there are 3 prototypes",
        ),
        (
            lambda: prototype_contrast(torch.ones(2, 2), torch.tensor([0, -1]), torch.ones(3, 2)),
            "classes -1 to 0",
        ),
        (
            lambda: prototype_contrast(torch.ones(2, 2), torch.tensor([0]), torch.ones(3, 2)),
            r"y has shape \(1,\)",
        ),
        (
            lambda: prototype_contrast(
                torch.ones(1, 2), torch.tensor([0]), torch.ones(3, 2), torch.ones(3)
            ),
            "known has shape",
        ),
        (
            lambda: prototype_contrast(
                torch.ones(1, 2),
                torch.tensor([0]),
                torch.ones(3, 2),
                candidates=torch.ones(1, 4).bool(),
            ),
            r"candidates has shape \(1, 4\)",
        ),
        (
            lambda: prototype_contrast(torch.ones(1, 2), torch.tensor([0]), torch.ones(3, 4)),
            "2 columns and keys 4",
        ),
    ],
)
def test_malformed_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphCLError, match=message):
        call()


@pytest.mark.parametrize("symmetric", [True, False])
def test_info_nce_per_node_averages_to_its_mean(symmetric: bool) -> None:
    z1, z2 = torch.randn(2, 7, 3, dtype=torch.float64)
    per_node = info_nce(z1, z2, symmetric=symmetric, reduction="none")
    assert per_node.shape == (7,)
    torch.testing.assert_close(per_node.mean(), info_nce(z1, z2, symmetric=symmetric))


def test_bpr_is_the_softplus_of_the_lead_that_the_negative_has() -> None:
    a, p, n = torch.randn(3, 5, 4, dtype=torch.float64).unbind()
    wanted = [math.log1p(math.exp(float(x @ z - x @ y))) for x, y, z in zip(a, p, n, strict=True)]
    assert bpr(a, p, n).item() == pytest.approx(sum(wanted) / 5)


def test_elementwise_triplet_has_a_hinge_in_every_dimension() -> None:
    a, p, n = torch.randn(3, 5, 4, dtype=torch.float64).unbind()
    wanted = 0.0
    for row in range(5):
        for d in range(4):
            near, far = (float(a[row, d] - other[row, d]) ** 2 for other in (p, n))
            wanted += max(0.0, near - far + 0.5)
    assert elementwise_triplet(a, p, n, margin=0.5).item() == pytest.approx(wanted / 5)


@pytest.mark.parametrize("loss", [bpr, elementwise_triplet])
def test_losses_of_triples_are_zero_without_rows_and_refuse_unlike_shapes(
    loss: Callable[..., Tensor],
) -> None:
    nothing = torch.zeros(0, 3, requires_grad=True)
    found = loss(nothing, nothing, nothing)
    found.backward()
    assert found.item() == 0
    assert nothing.grad is not None
    with pytest.raises(GraphCLError, match=r"negative \(2, 4\); pass three matrices of one shape"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4))
