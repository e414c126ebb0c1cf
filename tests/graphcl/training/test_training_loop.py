"""The training loop minimises, reports means, and stops before it ruins a model."""

import math

import pytest
import torch
from torch import nn

from graphcl.errors import GraphCLError
from graphcl.metrics import accuracy
from graphcl.training import fit, select_device


@pytest.fixture
def weight():
    return nn.Parameter(torch.tensor([4.0, -2.0]))


def test_fit_minimises_the_sum_of_its_terms(weight):
    """(w - 1)² + (w + 1)² is least at 0, which neither term alone would give."""

    def loss(_):
        return {"one": (weight - 1).square().sum(), "other": (weight + 1).square().sum()}

    report = fit(loss, [None], torch.optim.SGD([weight], lr=0.1), epochs=100)
    assert weight.abs().max() < 1e-5
    assert report == pytest.approx({"one": 2.0, "other": 2.0, "loss": 4.0}, abs=1e-4)


def test_fit_reports_the_means_over_the_last_epoch(weight):
    """With a step of zero the terms of a batch are known beforehand."""
    seen = []

    def loss(batch):
        return {"a": batch * weight[0], "b": weight[1].square()}

    report = fit(
        loss,
        [1.0, 2.0, 6.0],
        torch.optim.SGD([weight], lr=0.0),
        epochs=2,
        on_epoch=lambda epoch, means: seen.append((epoch, dict(means))),
    )
    assert report == pytest.approx({"a": 12.0, "b": 4.0, "loss": 16.0})
    assert seen == [(1, report), (2, report)]


def test_fit_steps_once_per_batch_from_a_clean_gradient(weight):
    weight.grad = torch.full((2,), 100.0)  # left over from elsewhere
    fit(
        lambda b: {"l": (b * weight).sum()}, [1.0, 2.0], torch.optim.SGD([weight], lr=1.0), epochs=3
    )
    assert weight.tolist() == [4.0 - 9.0, -2.0 - 9.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_the_term_and_spares_the_parameters(weight, bad):
    before = weight.detach().clone()

    def loss(_):
        return {"good": weight.square().sum(), "broken": weight.sum() * bad}

    with pytest.raises(GraphCLError, match=r"epoch 1.*broken=-?(nan|inf)"):
        fit(loss, [None], torch.optim.Adam([weight]), epochs=3)
    assert torch.equal(weight, before)


def test_terms_whose_infinities_cancel_are_not_finite(weight):
    def loss(_):
        return {"up": weight.sum() + math.inf, "down": weight.sum() - math.inf}

    with pytest.raises(GraphCLError, match="up=inf, down=-inf"):
        fit(loss, [None], torch.optim.SGD([weight], lr=0.1), epochs=1)


def test_a_gradient_that_is_not_finite_spares_the_parameters(weight):
    """The root of 0 is finite, its slope is not: one step would ruin the model unseen."""
    zero = nn.Parameter(torch.zeros(2))
    with pytest.raises(GraphCLError, match="not finite"):
        fit(lambda _: {"l": zero.sqrt().sum()}, [0], torch.optim.SGD([zero], 0.1), epochs=1)
    assert torch.equal(zero, torch.zeros(2))


def test_no_share_of_a_gpu_is_the_cpu():
    assert select_device(0) == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(GraphCLError, match=r"0\.5 GPUs .*gpus_per_client = 0"):
        select_device(0.5)


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device(0.5).type == "cuda"


def test_accuracy_is_a_share_and_zero_of_nothing():
    assert accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == 0.75
    assert accuracy(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long)) == 0.0
