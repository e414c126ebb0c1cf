"""Layers that PyTorch has too, but slower: the same values, and dropout with the same law."""

import pytest
import torch
from torch import nn

from graphcl.recommend.dropout import Dropout
from graphcl.recommend.encoders import CausalLayer, CausalLayers, GRUEncoder, TransformerEncoder


def torch_layer(layer: CausalLayer, channels: int, heads: int) -> nn.TransformerEncoderLayer:
    """Return PyTorch's own layer with the same weights."""
    own = nn.TransformerEncoderLayer(channels, heads, 4 * channels, 0.0, "gelu", batch_first=True)
    pairs = {
        "self_attn.in_proj_": layer.project,
        "self_attn.out_proj.": layer.mix,
        "linear1.": layer.up,
        "linear2.": layer.down,
        "norm1.": layer.attention_norm,
        "norm2.": layer.norm,
    }
    weights = {
        f"{prefix}{name}": value
        for prefix, module in pairs.items()
        for name, value in module.state_dict().items()
    }
    own.load_state_dict(weights)
    return own.double()


def left_padded(rows: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(width) >= torch.arange(rows)[:, None] % width
    return torch.randn(rows, width, channels, dtype=torch.float64), mask


@pytest.mark.parametrize("training", [False, True])
def test_layers_and_their_gradients_equal_those_of_pytorch(training: bool) -> None:
    torch.manual_seed(0)
    layers = CausalLayers(8, 0.0, num_layers=2, num_heads=2).double().train(training)
    x, mask = left_padded(7, 5, 8)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    found = layers(one, mask)
    wanted, order = other, torch.arange(5)
    hidden = ~(mask[:, None] & (order[:, None] >= order) | torch.eye(5, dtype=torch.bool))
    for layer in layers:
        own = torch_layer(layer, 8, 2)  # type: ignore[arg-type]
        wanted = own(wanted, src_mask=hidden.repeat_interleave(2, dim=0))
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(x)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_weights_begin_as_those_of_pytorch() -> None:
    ours = CausalLayer(64, 0.1, 2).state_dict()
    for name in ("project", "mix", "up", "down"):
        bound = {"project": (6 / 256) ** 0.5, "down": 1 / 16}.get(name, 1 / 8)
        assert 0.95 * bound < ours[f"{name}.weight"].abs().max() <= bound
    assert not ours["project.bias"].any()
    assert not ours["mix.bias"].any()


@pytest.mark.parametrize(
    "encoder", [TransformerEncoder(8, 6, 0.0), CausalLayers(8, 0.0), GRUEncoder(8, 0.0)]
)
def test_the_state_after_the_latest_event_needs_no_others(encoder: nn.Module) -> None:
    torch.manual_seed(0)
    x, mask = left_padded(6, 6, 8)
    encoder = encoder.double()
    torch.testing.assert_close(encoder(x, mask, last=True), encoder(x, mask)[:, -1:])


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.999999])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1000, 403)])
def test_dropout_keeps_the_mean_and_its_gradient_is_its_noise(
    p: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x = torch.full(shape, 3.0, requires_grad=True)
    y = Dropout(p)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, 3 * grad)
    kept = grad[grad > 0]
    assert kept.numel() == 0 or kept.unique().numel() == 1
    if x.numel() > 1000:
        share = kept.numel() / x.numel()
        assert share == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16)
        assert kept[0].item() == pytest.approx(1 / (1 - p), rel=2e-4) or p > 0.99


def test_dropout_falls_on_elements_independently() -> None:
    torch.manual_seed(0)
    y = Dropout(0.5)(torch.ones(4000, 64))
    # Four neighbours share a draw of 64 bits.
    assert (torch.corrcoef(y.T) - torch.eye(64)).abs().max() < 0.09
    assert len(y.unique(dim=0)) == len(y)


def test_dropout_is_nothing_in_evaluation_and_the_same_with_one_seed() -> None:
    x = torch.randn(50, 7)
    module = Dropout(0.5)
    first, again = (module(x) for _ in range(2) if torch.manual_seed(1))
    assert first.equal(again)
    assert not module(x).equal(first)
    assert module.eval()(x) is x
    assert Dropout(0.0)(x) is x
