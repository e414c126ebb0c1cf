"""Samples: every window once per epoch in an order of its own, and what was observed last."""

import pytest
import torch
from forecast_series import HOUR, NAN, holed, noise, series_of

from graphcl.datasets import Scaler, Windows
from graphcl.spatiotemporal.samples import Sample, SampleBatches, in_order, last_observed

HISTORY, HORIZON = 4, 2


@pytest.fixture(scope="module")
def windows():
    return Windows(series_of(3 + 5 * holed(noise(34, 3, 2))), HISTORY, HORIZON)


@pytest.fixture(scope="module")
def scaler(windows):
    return Scaler(2).fit(windows.series)


def starts(samples) -> list[list[int]]:
    """Return the number of each window, batch by batch, told from its first time."""
    return [((s.time[:, 0] - 1_704_067_200) // HOUR).tolist() for s in samples]


def flat(batches: list[list[int]]) -> list[int]:
    return [window for batch in batches for window in batch]


def test_an_epoch_has_every_window_once_in_a_fresh_order(windows, scaler) -> None:
    batches = SampleBatches(windows, scaler, 8, seed=0)
    epochs = [starts(batches) for _ in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 8, 5]
        assert len(epoch) == len(batches)
        assert sorted(flat(epoch)) == list(range(29))
    assert len({tuple(flat(epoch)) for epoch in epochs}) == 3


def test_the_seed_alone_decides_the_order(windows, scaler) -> None:
    one, other, unlike = (SampleBatches(windows, scaler, 8, seed) for seed in (1, 1, 2))
    torch.rand(7)  # whoever else draws from the global generator
    first = [starts(one), starts(one)]
    torch.rand(3)
    assert [starts(other), starts(other)] == first
    assert starts(unlike) != first[0]


def test_a_limit_draws_so_many_windows_afresh(windows, scaler) -> None:
    batches = SampleBatches(windows, scaler, 4, seed=0, limit=10)
    epochs = [flat(starts(batches)) for _ in range(12)]
    assert len(batches) == 3
    assert {len(set(epoch)) for epoch in epochs} == {10}
    assert set(flat(epochs)) == set(range(29))


def test_a_limit_beyond_the_windows_is_all_of_them(windows, scaler) -> None:
    batches = SampleBatches(windows, scaler, 8, seed=0, limit=1000)
    assert len(batches) == 4
    assert sorted(flat(starts(batches))) == list(range(29))


def test_windows_in_order_are_all_of_them_in_the_order_of_time(windows, scaler) -> None:
    assert starts(in_order(windows, scaler, 10)) == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 29)),
    ]


def test_a_sample_is_standardised_and_0_where_missing(windows, scaler) -> None:
    batch = windows.batch([0, 7])
    sample = Sample.of(batch, scaler)
    for part in ("x", "y"):
        raw, mask = getattr(batch, part), getattr(batch, f"{part}_mask")
        assert torch.equal(getattr(sample, f"{part}_mask"), mask)
        assert not mask.all()
        assert (getattr(sample, part)[~mask] == 0).all()
        torch.testing.assert_close(scaler.inverse(getattr(sample, part))[mask], raw[mask])
    assert torch.equal(sample.time, batch.time)


def test_the_last_observed_value_is_that_of_a_loop(windows, scaler) -> None:
    values = holed(noise(6, HISTORY, 5, 2), share=0.5)
    values[0, :, 0] = NAN  # a node without an observation, and a window without one
    values[1] = NAN
    mask = ~values.isnan()
    sample = Sample(values.nan_to_num(99.0), mask, values, mask, torch.zeros(6, HISTORY))
    expected = torch.zeros(6, 5, 2)
    for b, n, c in torch.cartesian_prod(*map(torch.arange, expected.shape)).tolist():
        for step in range(HISTORY):
            if mask[b, step, n, c]:
                expected[b, n, c] = values[b, step, n, c]
    assert torch.equal(last_observed(sample), expected)
