"""The linear probe and its two ways to read a test accuracy."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from graphcl.datasets.protocols import random_splits
from graphcl.errors import DataError, GraphCLError
from graphcl.nodes.probe import (
    ProbeResult,
    _initial_weights,
    bootstrap_half_width,
    linear_probe,
)

ARRAYS = ("val_accuracy", "test_accuracy", "leaking_test_accuracy", "best_epoch", "weight_decay")


@pytest.fixture(autouse=True)
def one_thread():
    # On a busy machine, threads that wait for each other take most of the time of small products.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def clusters(num_nodes=300, width=8, num_classes=3, *, distance=1.0, dtype=torch.float64):
    """Overlapping Gaussian classes."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(num_nodes) % num_classes
    means = distance * torch.randn(num_classes, width, generator=generator)
    z = means[y] + torch.randn(num_nodes, width, generator=generator)
    return z.to(dtype), y


def assert_same(one: ProbeResult, other: ProbeResult) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_agrees_with_scikit_learn():
    z, y = clusters(3000, 16, 4, distance=0.6, dtype=torch.float32)
    masks = random_splits(y, 5)
    result = linear_probe(z, y, *masks, epochs=500)
    expected = []
    for split in range(5):
        train, test = masks[0][:, split].numpy(), masks[2][:, split].numpy()
        model = LogisticRegression(C=1e6, max_iter=2000).fit(z[train].numpy(), y[train].numpy())
        expected.append(model.score(z[test].numpy(), y[test].numpy()))
    assert 0.7 < np.mean(expected) < 0.95
    assert result.mean == pytest.approx(np.mean(expected), abs=0.01)
    np.testing.assert_allclose(result.test_accuracy, expected, atol=0.02)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_agrees_with_a_layer_trained_on_its_own_rows(decay):
    z, y = clusters(120)
    train, val, test = random_splits(y, 2)
    result = linear_probe(z, y, train, val, test, epochs=60, weight_decay=decay, leaking=True)
    for split in range(2):
        rows = [mask[:, split] for mask in (train, val, test)]
        layer = first_layer(z, 3)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01, weight_decay=decay)
        best_val = strict = leaking = epoch_of_best = -1
        for epoch in range(1, 61):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(z[rows[0]]), y[rows[0]]).backward()
            optimizer.step()
            hits = layer(z).argmax(1) == y
            val_accuracy, test_accuracy = (hits[part].double().mean().item() for part in rows[1:])
            if val_accuracy > best_val:
                strict, epoch_of_best = test_accuracy, epoch
            if val_accuracy >= best_val:
                best_val, leaking = val_accuracy, max(leaking, test_accuracy)
        assert result.val_accuracy[split] == pytest.approx(best_val)
        assert result.test_accuracy[split] == pytest.approx(strict)
        assert result.leaking_test_accuracy[split] == pytest.approx(leaking)
        assert result.best_epoch[split] == epoch_of_best


def first_layer(z, num_classes):
    layer = torch.nn.Linear(z.shape[1], num_classes, dtype=z.dtype)
    weight, bias = _initial_weights(z, num_classes, 1, seed=0)
    layer.load_state_dict({"weight": weight, "bias": bias.flatten()})
    return layer


@pytest.mark.parametrize("patience", [None, 15])
def test_splits_do_not_see_each_other(patience):
    z, y = clusters()
    masks = random_splits(y)
    settings = {"epochs": 150, "patience": patience, "weight_decay": (0.0, 0.3), "leaking": True}
    together = linear_probe(z, y, *masks, **settings)
    for split in range(10):
        alone = linear_probe(z, y, *(mask[:, split] for mask in masks), **settings)
        for name in ARRAYS:
            assert getattr(alone, name).tolist() == [getattr(together, name)[split]], name


def test_strict_is_at_most_leaking():
    z, y = clusters(distance=0.4)
    result = linear_probe(z, y, *random_splits(y), epochs=400, leaking=True)
    assert (result.test_accuracy <= result.leaking_test_accuracy).all()
    assert (result.test_accuracy < result.leaking_test_accuracy).any()
    assert ((result.best_epoch >= 1) & (result.best_epoch <= 400)).all()


def test_test_labels_decide_nothing_but_the_score():
    z, y = clusters()
    masks = random_splits(y, 1)
    result = linear_probe(z, y, *masks, epochs=200, weight_decay=(0.0, 0.1, 1.0))
    test = masks[2][:, 0]
    shuffled = y.clone()
    shuffled[test] = y[test][torch.randperm(int(test.sum()))]
    other = linear_probe(z, shuffled, *masks, epochs=200, weight_decay=(0.0, 0.1, 1.0))
    for name in ("val_accuracy", "best_epoch", "weight_decay"):
        assert getattr(other, name) == getattr(result, name)
    assert other.mean < result.mean


def test_a_random_embedding_gives_chance():
    y = torch.arange(2000) % 4
    z = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    result = linear_probe(z, y, *random_splits(y), epochs=100)
    assert result.mean == pytest.approx(0.25, abs=0.03)


def test_separable_classes_are_told_apart():
    y = torch.arange(60) % 3
    result = linear_probe(torch.eye(3)[y], y, *random_splits(y), epochs=200)
    assert result.mean == 1
    assert result.std == 0
    assert result.confidence == 0


def test_order_of_nodes_does_not_matter():
    z, y = clusters()
    masks = random_splits(y, 3)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2))
    assert_same(
        linear_probe(z, y, *masks, epochs=100),
        linear_probe(z[order], y[order], *(mask[order] for mask in masks), epochs=100),
    )


def test_nodes_outside_the_masks_are_not_read():
    z, y = clusters()
    masks = [mask.clone() for mask in random_splits(y, 3)]
    for mask in masks:
        mask[:50] = False
    z2, y2 = z.clone(), y.clone()
    z2[:50], y2[:50] = 1e6, -1
    assert_same(
        linear_probe(z, y, *masks, epochs=50),
        linear_probe(z2, y2, *masks, epochs=50),
    )


def test_repeats_and_leaves_everything_as_it_was():
    z, y = clusters(dtype=torch.float32)
    z.requires_grad_()
    before, state = z.detach().clone(), torch.get_rng_state()
    masks = random_splits(y, 2)
    one = linear_probe(z, y, *masks, epochs=30, standardize=True)
    assert_same(one, linear_probe(z, y, *masks, epochs=30, standardize=True))
    assert torch.equal(z.detach(), before)
    assert z.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    first = [linear_probe(z, y, *masks, epochs=1, lr=1e-9, seed=seed).mean for seed in range(4)]
    assert len(set(first)) > 1


def test_patience_ends_a_split_and_keeps_what_it_had():
    z, y = clusters()
    masks = random_splits(y)
    whole = linear_probe(z, y, *masks, epochs=300)
    short = linear_probe(z, y, *masks, epochs=300, patience=10)
    assert (short.val_accuracy <= whole.val_accuracy).all()
    assert (short.best_epoch <= whole.best_epoch).all()
    assert (short.best_epoch < whole.best_epoch).any()
    assert_same(whole, linear_probe(z, y, *masks, epochs=300, patience=300))


def test_the_leaking_figure_knows_no_patience_and_changes_no_other():
    z, y = clusters(distance=0.4)
    masks = random_splits(y)
    whole = linear_probe(z, y, *masks, epochs=300, leaking=True)
    short = linear_probe(z, y, *masks, epochs=300, patience=10)
    both = linear_probe(z, y, *masks, epochs=300, patience=10, leaking=True)
    assert short.leaking_test_accuracy is None
    assert both.leaking_test_accuracy.tolist() == whole.leaking_test_accuracy.tolist()
    assert both.test_accuracy.tolist() == short.test_accuracy.tolist()
    assert both.best_epoch.tolist() == short.best_epoch.tolist()
    assert both.best_epoch.tolist() != whole.best_epoch.tolist()


def test_weight_decay_is_chosen_on_validation_accuracy():
    z, y = clusters(distance=0.4)
    masks = random_splits(y)
    decays = [0.0, 0.03, 30.0]
    settings = {"epochs": 100, "leaking": True}
    runs = [linear_probe(z, y, *masks, **settings, weight_decay=decay) for decay in decays]
    chosen = linear_probe(z, y, *masks, **settings, weight_decay=decays)
    best = np.stack([run.val_accuracy for run in runs]).argmax(0)
    assert len(set(best)) > 1
    assert chosen.weight_decay.tolist() == [decays[i] for i in best]
    for name in ARRAYS[:4]:
        expected = [getattr(runs[i], name)[split] for split, i in enumerate(best)]
        assert getattr(chosen, name).tolist() == expected


def test_standardize_is_scaling_by_hand():
    z, y = clusters()
    z = z * torch.logspace(-2, 3, 8) + 100
    z[:, 3] = 7  # a constant column must not become NaN
    masks = random_splits(y, 3)
    by_hand = z - z.mean(0)
    by_hand /= by_hand.std(0, correction=0).where(by_hand.std(0) > 0, 1)
    assert_same(
        linear_probe(z, y, *masks, epochs=50, standardize=True),
        linear_probe(by_hand, y, *masks, epochs=50),
    )


def test_half_precision_and_small_integers():
    z, y = clusters()
    masks = random_splits(y, 2)
    result = linear_probe(z.half(), y.to(torch.uint8), *masks, epochs=50)
    assert result.mean > 0.6


def test_summary_over_splits():
    values = np.array([0.5, 0.7, 0.9, 0.7])
    result = ProbeResult(values, values, values + 0.1, np.ones(4, dtype=int), np.zeros(4))
    assert result.mean == pytest.approx(0.7)
    assert result.std == pytest.approx(values.std())
    assert result.confidence == bootstrap_half_width(values)
    # The mean of n draws has standard deviation std / sqrt(n).
    many = np.random.default_rng(0).normal(size=400)
    assert bootstrap_half_width(many) == pytest.approx(1.96 * many.std() / 20, rel=0.15)
    assert bootstrap_half_width(many) != bootstrap_half_width(many, seed=1)
    assert bootstrap_half_width(many, level=0.5) < bootstrap_half_width(many)


@pytest.mark.parametrize(
    "settings",
    [{"values": []}, {"values": [[1.0]]}, {"values": [1.0], "level": 1.0}],
)
def test_bootstrap_refuses(settings):
    with pytest.raises(GraphCLError, match="bootstrap_half_width"):
        bootstrap_half_width(**settings)


def replaced(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y, m: (z[:, 0], y, m), "embedding has shape"),
        (lambda z, y, m: (z[:, :0], y, m), "embedding has shape"),
        (lambda z, y, m: (z.long(), y, m), "floating point"),
        (lambda z, y, m: (replaced(z, (3, 1), torch.nan), y, m), r"embedding\[3, 1\] is nan"),
        (lambda z, y, m: (replaced(z, (0, 2), torch.inf), y, m), r"embedding\[0, 2\] is inf"),
        (lambda z, y, m: (z, y[1:], m), "y has shape"),
        (lambda z, y, m: (z, y.float(), m), "y has shape .* one integer"),
        (lambda z, y, m: (z, replaced(y, 4, -1), m), r"y\[4\] is -1"),
        (lambda z, y, m: (z, replaced(y, 4, 60), m), r"y\[4\] is 60"),
        (lambda z, y, m: (z[1:], y[1:], m), "masks are of 60 nodes"),
        (lambda z, y, m: (z, y, [m[0].int(), *m[1:]]), "train_mask has shape .* booleans"),
        (lambda z, y, m: (z, y, [m[0], m[1] | m[0], m[2]]), "train_mask and val_mask overlap"),
        (
            lambda z, y, m: (z, y, [replaced(m[0], (slice(None), 1), False), *m[1:]]),
            "train_mask of split 1 is empty",
        ),
        (lambda z, y, m: (z, y, [m[0], m[1] & False, m[2]]), "val_mask of split 0 is empty"),
        (lambda z, y, m: (z, y, [*m[:2], m[2] & False]), "test_mask of split 0 is empty"),
        (lambda z, y, m: (3e38 * z.float().sign(), y, m), "not finite"),
    ],
)
def test_refuses_inputs(change, message):
    z, y = clusters(60)
    z, y, masks = change(z, y, list(random_splits(y, 2)))
    with pytest.raises(DataError, match=message):
        linear_probe(z, y, *masks, epochs=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"patience": 0},
        {"weight_decay": -1.0},
        {"weight_decay": float("nan")},
        {"weight_decay": ()},
    ],
)
def test_refuses_settings(settings):
    z, y = clusters(60)
    with pytest.raises(GraphCLError, match=next(iter(settings))):
        linear_probe(z, y, *random_splits(y, 2), **settings)
