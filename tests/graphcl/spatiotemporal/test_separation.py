"""The Conditional Separation Module: what a mask shares and what its complement keeps."""

import math

import pytest
import torch
from forecast_series import noise
from torch import Tensor, nn

from graphcl.spatiotemporal import ConditionalSeparation

D = 5


@pytest.fixture
def module() -> ConditionalSeparation:
    """Return a module in float64 whose weights are all drawn, those of the norm as well."""
    module = ConditionalSeparation(D).double()
    for seed, weight in enumerate(module.parameters()):
        weight.data = noise(*weight.shape, seed=seed).double()
    return module


def representations() -> tuple[Tensor, Tensor]:
    """Return those of this round and of the one before, ``[2, 3, D]``."""
    return noise(2, 3, D, seed=10).double(), noise(2, 3, D, seed=11).double()


def norm(values: list[float], module: ConditionalSeparation) -> list[float]:
    mean = sum(values) / D
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / D + module.norm.eps)
    scale, shift = module.norm.weight.tolist(), module.norm.bias.tolist()
    return [scale[d] * (values[d] - mean) / deviation + shift[d] for d in range(D)]


def test_both_parts_are_those_of_the_equations_element_by_element(module) -> None:
    f, f_previous = representations()
    weight, bias = module.mask.weight.tolist(), module.mask.bias.tolist()
    shared, own = torch.empty_like(f), torch.empty_like(f)
    for place in [(b, n) for b in range(2) for n in range(3)]:
        now, before = f[place].tolist(), f_previous[place].tolist()
        drawn = [bias[d] + sum(weight[d][k] * before[k] for k in range(D)) for d in range(D)]
        mask = [1 / (1 + math.exp(-x)) for x in drawn]
        kept, rest = norm(mask, module), norm([1 - m for m in mask], module)
        for d in range(D):
            shared[(*place, d)] = max(0.0, (1 + kept[d]) * now[d])
            own[(*place, d)] = max(0.0, (1 + rest[d]) * now[d])
    found = module(f, f_previous)
    torch.testing.assert_close(found[0], shared)
    torch.testing.assert_close(found[1], own)
    assert (shared > 0).any()
    assert (own > 0).any()


def test_one_part_reads_a_mask_between_0_and_1_and_the_other_its_complement(module) -> None:
    masks: list[Tensor] = []
    module.norm.register_forward_hook(lambda _, args, __: masks.append(args[0]))
    module(*representations())
    mask, complement = masks
    assert ((mask > 0) & (mask < 1)).all()
    torch.testing.assert_close(mask + complement, torch.ones_like(mask))


def test_before_the_activation_both_parts_add_up_to_twice_the_representation(module) -> None:
    module.norm = nn.LayerNorm(D, elementwise_affine=False)
    f, f_previous = representations()
    # relu(x) - relu(-x) is x, and both parts are linear in f before the activation.
    parts = zip(module(f, f_previous), module(-f, f_previous), strict=True)
    shared, own = (positive - negative for positive, negative in parts)
    assert not torch.allclose(shared, own)
    torch.testing.assert_close(shared + own, 2 * f)


def test_the_round_before_conditions_and_is_not_trained(module) -> None:
    f, f_previous = (x.requires_grad_() for x in representations())
    before = module.mask(f_previous)  # so that the condition has a history to run back through
    shared, own = module(f, before)
    (shared.sum() + 2 * own.sum()).backward()
    assert f_previous.grad is None
    assert f.grad is not None
    idle = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert not torch.allclose(module(f, -f_previous)[0], module(f, f_previous)[0])


def test_the_own_part_may_be_taken_from_another_representation(module) -> None:
    f, f_previous = representations()
    other = noise(2, 3, D, seed=12).double()
    shared, own = module(f, f_previous, other)
    assert torch.equal(shared, module(f, f_previous)[0])
    assert torch.equal(own, module(other, f_previous)[1])
