"""What every forecaster shares: the best epoch is kept, a forecast follows its window, files."""

import doctest
import importlib
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from forecast_series import NAN, holed, noise, series_of
from tiny_forecasters import HISTORY, HORIZON, OneLayer, Seasonal, every, one_layer, seasonal

from graphcl.datasets import chronological_split
from graphcl.errors import DataError, GraphCLError
from graphcl.spatiotemporal import (
    ForecasterConfig,
    LastValue,
    NetworkConfig,
    NetworkForecaster,
)
from graphcl.spatiotemporal.forecaster import masked_error
from graphcl.spatiotemporal.samples import Sample

networks = pytest.mark.parametrize("make", [one_layer, seasonal])


@pytest.fixture(scope="module")
def parts():
    """Return training, validation and test steps with gaps: a day's cycle, unlike by node."""
    hour = 2 * torch.pi * torch.arange(160) / 24
    wave = 3 * (hour[:, None, None] + torch.arange(8.0).view(4, 2)).sin()
    return chronological_split(series_of(holed(20 + wave + noise(160, 4, 2))), 0.6, 0.2)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("module", ["calendar", "propagation", "forecaster"])
def test_examples_in_the_docstrings_run(module) -> None:
    found = importlib.import_module(f"graphcl.spatiotemporal.{module}")
    result = doctest.testmod(found, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


# Training


def test_a_linear_network_learns_an_autoregressive_process_near_its_optimum() -> None:
    values = torch.zeros(1500, 4, 1)
    for step, shock in enumerate(noise(1499, 4, 1)):
        values[step + 1] = 0.9 * values[step] + shock
    train, val, test = chronological_split(series_of(values))
    model = one_layer(epochs=12, dropout=0.0, learning_rate=1e-2).fit(train, val)
    windows = model.windows(test)
    error = (model.predict(test) - windows.batch(torch.arange(len(windows))).y).abs()
    # The error h steps ahead is a sum of h shocks, each 0.9 times as strong as the next.
    optimum = [math.sqrt(2 / math.pi * sum(0.81**k for k in range(h))) for h in (1, 2, 3)]
    assert error.mean((0, 2, 3)).tolist() == pytest.approx(optimum, rel=0.06)


def test_the_epoch_with_the_least_validation_error_is_kept(parts) -> None:
    train, val, _ = parts
    errors, kept = [], []
    model = one_layer(epochs=8, learning_rate=0.5)  # so fast that it overshoots

    def on_epoch(epoch, terms) -> None:
        assert epoch == len(errors) + 1
        errors.append(terms["val"])
        kept.append(weights(model))

    model.fit(train, val, on_epoch)
    best = errors.index(min(errors))
    assert best < 7
    assert same(weights(model), kept[best])
    assert model.error(model.windows(val)) == min(errors)


@pytest.mark.parametrize(
    ("patience", "epochs", "best"), [(1, 3, 2), (2, 6, 4), (3, 7, 4), (20, 10, 4)]
)
def test_patience_counts_epochs_without_a_better_error(
    parts, monkeypatch, patience, epochs, best
) -> None:
    # Epochs four, six and seven are alike: the first of them is kept.
    script = iter([5.0, 4.0, 4.0, 3.0, 3.5, 3.0, 3.0, 3.1, 3.2, 9.0])
    seen = []
    model = one_layer(epochs=10, patience=patience)
    monkeypatch.setattr(model, "error", lambda windows: next(script))
    model.fit(parts[0], parts[1], lambda epoch, _: seen.append(weights(model)))
    assert len(seen) == epochs
    assert same(weights(model), seen[best - 1])


def test_hooks_come_in_their_order_and_in_their_mode(parts) -> None:
    calls = []

    class Recorder(OneLayer):
        def begin_round(self) -> None:
            calls.append("begin")

        def loss(self, sample):
            assert self.training
            calls.append("loss")
            return super().loss(sample)

        def error(self, windows):
            assert windows.series is parts[1]
            calls.append("error")
            return super().error(windows)

    model = Recorder(one_layer(batch_windows=50).config)
    model.fit(parts[0], parts[1], lambda epoch, terms: calls.append("epoch"))
    assert calls == ["begin", "loss", "loss", "error", "epoch"] * 2
    assert not model.training


@networks
def test_the_seed_alone_decides_what_is_learned(make, parts) -> None:
    train, val, _ = parts
    torch.manual_seed(1)
    one = weights(make().fit(train, val))
    torch.manual_seed(2)
    model = make().fit(train, val)
    assert same(weights(model), one)
    assert same(weights(model.fit(train, val)), one)
    assert not same(weights(make(seed=1).fit(train, val)), one)


def test_an_epoch_reads_as_many_windows_as_it_may(parts) -> None:
    read = []

    class Counter(OneLayer):
        def loss(self, sample):
            read.append(len(sample.x))
            return super().loss(sample)

    Counter(one_layer(epoch_windows=40).config).fit(parts[0], parts[1])
    assert read == [16, 16, 8] * 2


def test_the_optimiser_clips_gradients(parts) -> None:
    model = one_layer().start(parts[0])
    model.layer.weight.grad = torch.full_like(model.layer.weight, 100.0)
    model.optimizer().step()
    assert float(model.layer.weight.grad.norm()) == pytest.approx(5.0, rel=1e-4)


@every
def test_validation_steps_choose_but_never_teach(make, parts) -> None:
    train, val, _ = parts
    found = []
    for held_out in (val, replace(val, values=900 - 70 * val.values)):
        model = make()
        if isinstance(model, NetworkForecaster):  # of one epoch there is nothing to choose
            model.config = replace(model.config, epochs=1)
        found.append(weights(model.fit(train, held_out)))
    assert same(*found)
    assert {"scaler.mean", "calendar.used"} <= found[0].keys()


# Error


def test_every_observed_value_counts_alike_in_the_error() -> None:
    # A second batch of 64 windows with few observations and large errors.
    values = noise(140, 3, 2)
    values[70:] = torch.where(noise(70, 3, 2, seed=5) < 1.5, NAN, 40.0)
    series = series_of(values)
    model = one_layer().start(series)
    windows = model.windows(series)
    y = windows.batch(torch.arange(len(windows))).y
    off = (model.predict(series) - y).abs() / model.scaler.deviation
    assert model.error(windows) == pytest.approx(float(off.nanmean()), rel=1e-5)


def test_the_masked_error_is_the_mean_over_observations() -> None:
    y, forecast = noise(2, 3, 4, 1), noise(2, 3, 4, 1, seed=1).requires_grad_()
    mask = noise(2, 3, 4, 1, seed=2) > 0
    sample = Sample(y, mask, torch.where(mask, y, 0.0), mask, torch.zeros(2, 6))
    error = masked_error(forecast, sample)
    error.backward()
    torch.testing.assert_close(error, (forecast - y)[mask].abs().mean())
    assert forecast.grad is not None
    assert torch.equal(forecast.grad != 0, mask)
    none = sample._replace(y=torch.zeros_like(y), y_mask=torch.zeros_like(mask))
    assert masked_error(forecast, none) == 0


# Forecasts


@every
def test_a_forecast_follows_its_window_and_is_that_of_predict(make, parts) -> None:
    train, val, test = parts
    model = make().fit(train, val)
    predicted = model.predict(test)
    for first in (0, 5):
        window = test.between(first, first + HISTORY)
        forecast = model.forecast(window)
        after = test.between(first + HISTORY, first + HISTORY + HORIZON)
        assert forecast.time.tolist() == after.time.tolist()
        assert forecast.start.dtype == np.dtype("M8[s]")
        torch.testing.assert_close(forecast.values, predicted[first])
        for field in ("name", "node", "channel_names", "interval"):
            assert getattr(forecast, field) == getattr(test, field)
        forecast.validate()


@every
def test_only_the_last_steps_of_a_longer_window_matter(make, parts) -> None:
    train, val, test = parts
    model = make().fit(train, val)
    expected = model.forecast(test.between(20 - HISTORY, 20))
    values = test.values[:20].clone()
    values[: 20 - HISTORY] = 1e6
    found = model.forecast(replace(test, values=values))
    assert torch.equal(found.values, expected.values)
    assert found.start == expected.start


@every
def test_a_forecast_is_alike_whatever_stands_beside_it_in_a_batch(make, parts) -> None:
    train, val, test = parts
    model = make().fit(train, val)
    torch.testing.assert_close(model.predict(test, batch_windows=1), model.predict(test))


@every
def test_the_future_is_never_read(make, parts) -> None:
    train, val, test = parts
    model = make().fit(train, val)
    blind = test.values.clone()
    blind[HISTORY:] = NAN
    found = model.predict(replace(test, values=blind))
    assert torch.equal(found[0], model.predict(test)[0])


def test_dropout_is_off_in_a_forecast(parts) -> None:
    train, val, test = parts
    model = one_layer(dropout=0.5).fit(train, val)
    expected = model.predict(test)
    assert torch.equal(model.train().predict(test), expected)
    window = test.between(0, HISTORY)
    assert torch.equal(model.train().forecast(window).values, model.forecast(window).values)


def test_a_forecast_has_the_graph_of_the_last_step(parts) -> None:
    train, val, test = parts
    model = LastValue(ForecasterConfig(HISTORY, HORIZON)).fit(train, val)
    moving = replace(
        test.between(0, 5),
        edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]),
        edge_weight=torch.tensor([1.0, 2.0, 3.0]),
        edge_ptr=torch.tensor([0, 1, 1, 1, 1, 3]),
    )
    forecast = model.forecast(moving).validate()
    assert forecast.edge_ptr is None
    assert forecast.edge_index.tolist() == [[1, 2], [2, 3]]
    assert forecast.edge_weight.tolist() == [2.0, 3.0]


def test_a_network_that_reads_the_graph_takes_it_from_training(parts) -> None:
    train, val, test = parts
    model = seasonal().fit(train, val)
    cut = replace(test, edge_index=test.edge_index[:, :1], edge_weight=test.edge_weight[:1])
    assert torch.equal(model.predict(cut), model.predict(test))
    alone = replace(train, edge_index=train.edge_index[:, :0], edge_weight=train.edge_weight[:0])
    assert not torch.equal(seasonal().fit(alone, val).predict(test), model.predict(test))


# Files


@networks
def test_what_is_saved_forecasts_as_it_did(make, parts, tmp_path) -> None:
    train, val, test = parts
    model = make(hidden_channels=7, learning_rate=0.01).fit(train, val)
    model.save(tmp_path / "model.safetensors")
    # The steps at hand are too few to tell a day: the calendar must be that of training.
    window = test.between(0, 12)
    loaded = type(model).load(tmp_path / "model.safetensors", window)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.predict(test), model.predict(test))
    assert torch.equal(loaded.forecast(window).values, model.forecast(window).values)
    assert loaded.calendar.used.tolist() == [True, False, False]


@networks
def test_what_was_loaded_can_be_trained_anew(make, parts, tmp_path) -> None:
    train, val, test = parts
    model = make().fit(train, val)
    model.save(tmp_path / "model.safetensors")
    loaded = type(model).load(tmp_path / "model.safetensors", train).fit(train, val)
    assert torch.equal(loaded.predict(test), model.predict(test))


def test_a_file_of_another_kind_is_refused(parts, tmp_path) -> None:
    train, val, _ = parts
    path = tmp_path / "model.safetensors"
    seasonal().fit(train, val).save(path)
    with pytest.raises(GraphCLError, match=rf"^{re.escape(str(path))}: no saved OneLayer: "):
        OneLayer.load(path, train)
    path.write_text("no archive")
    with pytest.raises(GraphCLError, match="no saved model"):
        Seasonal.load(path, train)
    with pytest.raises(GraphCLError, match="no saved model"):
        Seasonal.load(tmp_path / "absent.safetensors", train)


def test_a_file_does_not_load_on_other_nodes(parts, tmp_path) -> None:
    train, val, _ = parts
    seasonal().fit(train, val).save(tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"^road: node: .* on 4 .*: missing n2, n3; unknown none"):
        Seasonal.load(tmp_path / "model.safetensors", train.at([0, 1]))


# Configurations


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("history", 0, "at least 1"),
        ("horizon", 0, "at least 1"),
        ("hidden_channels", 0, "at least 1"),
        ("batch_windows", 0, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("patience", 0, "at least 1"),
        ("epoch_windows", -1, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("learning_rate", 0.0, "above 0"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("dropout", float("nan"), "at least 0 and below 1"),
    ],
)
def test_a_number_out_of_its_range_is_refused(field, value, rule) -> None:
    with pytest.raises(GraphCLError, match=f"^{field} is {value}, must be {rule}$"):
        NetworkConfig(**{field: value})
