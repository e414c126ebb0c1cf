"""Windows, chronological parts and scales: nothing is copied, nothing leaks from later steps."""

import numpy as np
import pytest
import torch
from test_series import NAN, dynamic, make, same

from graphcl.datasets import Scaler, Windows, chronological_split, confounded_series
from graphcl.errors import DataError


@pytest.fixture
def series():
    return make(values=torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(0)))


def test_every_window_is_its_slice_of_the_series(series):
    series.values[7, 1, 0] = NAN
    windows = Windows(series, history=5, horizon=3)
    assert len(windows) == 33
    batch = windows.batch(torch.arange(33))
    for i in range(33):
        x, y = series.between(i, i + 5), series.between(i + 5, i + 8)
        torch.testing.assert_close(batch.x[i], x.values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(batch.y[i], y.values, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(batch.x_mask[i], x.mask)
        assert torch.equal(batch.y_mask[i], y.mask)
    assert int((~batch.x_mask).sum()) == 5
    assert int((~batch.y_mask).sum()) == 3


def test_a_batch_knows_the_time_of_each_of_its_steps():
    values = torch.zeros(40, 3, 2)
    series = make(values=values, start=np.datetime64("2012-03-04T23:50:00", "s"))
    batch = Windows(series, 2, 1).batch([0, 1])
    first = int(series.start.astype(np.int64))
    assert batch.time.tolist() == [
        [first, first + 300, first + 600],
        [first + 300, first + 600, first + 900],
    ]


def test_windows_hold_no_copy_of_the_series(series):
    windows = Windows(series, 5, 3)
    series.values[10] = 123.0
    assert (windows.batch([5, 5]).y[:, 0] == 123.0).all()


def test_a_batch_is_a_copy_that_may_be_changed(series):
    before = series.values.clone()
    Windows(series, 5, 3).batch([0]).x.zero_()
    assert torch.equal(series.values, before)


def test_a_series_of_one_window_has_one(series):
    windows = Windows(series, 39, 1)
    assert len(windows) == 1
    assert torch.equal(windows.batch([0]).y[0], series.values[39:])


def test_a_series_shorter_than_a_window_is_refused_with_both_lengths(series):
    with pytest.raises(
        DataError, match=r"^road: 40 steps are fewer than the 48 of one window \(history 36 and ho"
    ):
        Windows(series, 36, 12)


@pytest.mark.parametrize("lengths", [(0, 3), (3, 0), (-1, 3)])
def test_a_window_needs_history_and_horizon(series, lengths):
    with pytest.raises(DataError, match="both must be at least 1"):
        Windows(series, *lengths)


@pytest.mark.parametrize(
    ("indices", "message"),
    [([33], "holds 33, must be 0 to 32"), ([-1], "holds -1"), ([], "int64 .* at least one")],
)
def test_an_impossible_batch_is_refused(series, indices, message):
    with pytest.raises(DataError, match=f"^road: batch: indices .*{message}"):
        Windows(series, 5, 3).batch(indices)


def test_clients_with_unlike_graphs_have_windows_of_their_own_size():
    clients = [client.series for client in confounded_series(2, 9, 30)]
    clients[1] = clients[1].at(range(4))
    shapes = [list(Windows(client, 4, 2).batch([0, 1]).x.shape) for client in clients]
    assert shapes == [[2, 4, 9, 1], [2, 4, 4, 1]]


def test_a_split_is_in_time_order_without_gap_or_overlap(series):
    parts = chronological_split(series, 0.7, 0.1)
    assert [part.num_steps for part in parts] == [28, 4, 8]
    assert np.concatenate([part.time for part in parts]).tolist() == series.time.tolist()
    assert torch.equal(torch.cat([part.values for part in parts]), series.values)
    storage = series.values.untyped_storage().data_ptr()
    assert all(part.values.untyped_storage().data_ptr() == storage for part in parts)


def test_a_split_takes_the_graph_of_each_step_along():
    whole = dynamic()
    train, val, test = chronological_split(whole, 0.5, 0.25)
    assert same(train, whole.between(0, 2))
    assert same(val, whole.between(2, 3))
    assert same(test, whole.between(3, 4))


@pytest.mark.parametrize("ratios", [(1.0, 0.1), (0.9, 0.1), (0.0, 0.5), (0.5, 0.0), (0.8, -0.1)])
def test_a_split_needs_a_step_in_each_part(series, ratios):
    with pytest.raises(DataError, match=r"divide its 40 steps into .* each part needs one"):
        chronological_split(series, *ratios)


def test_a_scale_is_that_of_the_observed_training_values_of_each_channel(series):
    series.values.mul_(torch.tensor([20.0, 0.1])).add_(torch.tensor([50.0, -1.0]))
    series.values[3, 1, 0] = NAN
    train, _, test = chronological_split(series)
    test.values.fill_(1e6)
    scaler = Scaler(2).fit(train)
    for channel in range(2):
        observed = [v for v in train.values[..., channel].flatten().tolist() if v == v]
        assert float(scaler.mean[channel]) == pytest.approx(np.mean(observed), rel=1e-6)
        assert float(scaler.deviation[channel]) == pytest.approx(np.std(observed), rel=1e-6)


def test_scaling_is_undone_and_what_is_missing_is_the_mean(series):
    series.values[3, 1, 0] = NAN
    scaler = Scaler(2).fit(series)
    scaled = scaler(series.values)
    assert scaled[3, 1, 0] == 0
    assert scaled[..., 1].mean().item() == pytest.approx(0, abs=1e-6)
    assert scaled[..., 1].std(correction=0).item() == pytest.approx(1, rel=1e-5)
    mask = series.mask
    torch.testing.assert_close(
        scaler.inverse(scaled)[mask], series.values[mask], rtol=1e-6, atol=1e-6
    )


def test_a_constant_channel_keeps_its_deviation():
    """In float64 the deviation of many equal decimals is not quite 0."""
    values = torch.full((4, 3, 2), 0.1)
    scaler = Scaler(2).fit(make(values=values))
    assert scaler.deviation.tolist() == [1.0, 1.0]
    assert torch.equal(scaler(values), torch.zeros_like(values))
    assert torch.equal(scaler.inverse(scaler(values)), values)


def test_a_constant_sensor_among_others_stays_finite(series):
    series.values[:, 1] = 3.0
    assert Scaler(2).fit(series)(series.values).isfinite().all()


def test_a_scale_needs_observed_values_of_its_channels(series):
    series.values[:28, :, 1] = NAN
    train, _, _ = chronological_split(series)
    with pytest.raises(DataError, match=r"^road: 'occupancy \[1\]' has no observed value to fit"):
        Scaler(2).fit(train)
    with pytest.raises(DataError, match=r"^road: 2 channels, but the scaler has 1"):
        Scaler(1).fit(train)


def test_a_scale_is_saved_with_the_state_of_a_model(series):
    scaler, other = Scaler(2).fit(series), Scaler(2)
    other.load_state_dict(scaler.state_dict())
    assert torch.equal(other(series.values), scaler(series.values))
    assert not torch.equal(scaler(series.values), series.values)
