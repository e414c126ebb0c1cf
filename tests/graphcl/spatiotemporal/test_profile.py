"""What is usual at a node: means over a cycle, of which a training step is left out of its own."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from forecast_series import NAN, holed, noise, series_of
from torch import Tensor

from graphcl.datasets import Scaler, SpatioTemporalSeries
from graphcl.spatiotemporal import Calendar
from graphcl.spatiotemporal.profile import Profile
from graphcl.training import load_weights, save_weights

T, N, C = 80, 3, 2  # hours: three days and a third
NEVER = 5  # o'clock, at which node 1 was never observed


class Fitted(NamedTuple):
    """A profile, what it was fitted to, and the calendar and scale that it reads."""

    profile: Profile
    train: SpatioTemporalSeries
    calendar: Calendar
    scaler: Scaler

    def at(self, steps: Tensor, known: bool = True) -> Tensor:
        """Return what is usual at some steps, counted from the first one of training."""
        time = self.train.seconds(steps)[None]
        if not known:
            nothing = torch.empty(0)
            return self.profile(self.calendar.slot(time), time, nothing, nothing.bool())[0]
        inside = steps.clamp(0, T - 1)
        values, mask = self.scaler(self.train.values[inside]), self.train.mask[inside]
        return self.profile(self.calendar.slot(time), time, values[None], mask[None])[0]

    def mean(self, step: int, node: int, channel: int, skipped: int | None = None) -> float:
        """Return the mean that a loop over training finds, of the node where the place has none."""
        found, everywhere = [], []
        for other in set(range(T)) - {skipped}:
            value = float(self.scaler(self.train.values)[other, node, channel])
            if bool(self.train.mask[other, node, channel]):
                everywhere.append(value)
                if other % 24 == step % 24:
                    found.append(value)
        kept = found or everywhere or [0.0]
        return sum(kept) / len(kept)


def fitted(train: SpatioTemporalSeries, scaler: Scaler | None = None) -> Fitted:
    scaler = scaler or Scaler(C).fit(train)
    calendar = Calendar().fit(train)
    return Fitted(Profile(calendar, N, C).fit(train, scaler, calendar), train, calendar, scaler)


@pytest.fixture
def series() -> SpatioTemporalSeries:
    """Return hours with gaps: a place with no value, one with a single one, a node with none."""
    values = holed(10 + 3 * noise(T, N, C), 0.3)
    values[NEVER::24, 1, 0] = NAN
    values[NEVER::24, 0, 1] = NAN
    values[NEVER, 0, 1] = 17.0
    values[:, 2, 1] = NAN
    return series_of(values)


def test_a_training_step_is_left_out_of_the_mean_of_a_loop(series) -> None:
    all_of = fitted(series)
    assert all_of.calendar.num_slots == 24
    found = all_of.at(torch.arange(T))
    assert found.shape == (T, N, C)
    for step in range(T):
        for node in range(N):
            expected = [all_of.mean(step, node, channel, skipped=step) for channel in range(C)]
            assert found[step, node].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("place", [(30, 1, 0), (NEVER, 0, 1)], ids=["of several", "the only one"])
def test_a_training_value_changes_what_is_usual_elsewhere_and_never_where_it_is(
    series, place
) -> None:
    step, node, channel = place
    series.values[step, node, channel] = 10.0
    before = fitted(series)
    values = series.values.clone()
    values[place] += 50
    after = fitted(replace(series, values=values), before.scaler)
    steps = torch.tensor([step, (step + 24) % T])
    own, next_day = (after.at(steps) - before.at(steps))[:, node, channel].tolist()
    assert own == pytest.approx(0, abs=1e-5)
    assert abs(next_day) > 0.1


@pytest.mark.parametrize("step", [-48, -1, T, T + 30])
def test_steps_outside_of_training_read_the_mean_of_all_values(series, step) -> None:
    all_of = fitted(series)
    found = all_of.at(torch.tensor([step]))[0]
    for node in range(N):
        expected = [all_of.mean(step, node, channel) for channel in range(C)]
        assert found[node].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_first_and_the_last_step_are_training_steps(series) -> None:
    series.values[[0, -1]] = 40.0
    all_of = fitted(series)
    ends = torch.tensor([0, T - 1])
    assert (all_of.at(ends) < all_of.at(ends, known=False))[:, :2].all()


def test_where_nothing_is_known_of_the_steps_all_values_count(series) -> None:
    all_of = fitted(series)
    found = all_of.at(torch.arange(24), known=False)
    torch.testing.assert_close(found, all_of.at(torch.arange(-24, 0)))


def test_a_place_never_observed_reads_the_mean_of_the_node(series) -> None:
    all_of = fitted(series)
    found = all_of.at(torch.tensor([T + NEVER - T % 24 + 24]))[0]
    everything = all_of.scaler(series.values)[:, 1, 0][series.mask[:, 1, 0]]
    assert found[1, 0].item() == pytest.approx(float(everything.mean()), abs=1e-5)
    assert found[2, 1] == 0  # the channel's mean, at a node that was never observed


def test_what_stands_behind_the_mask_does_not_matter(series) -> None:
    all_of = fitted(series)
    steps = torch.arange(T)
    time = series.seconds(steps)[None]
    slot, mask = all_of.calendar.slot(time), series.mask[None]
    found = all_of.profile(slot, time, all_of.scaler.mean.new_full(mask.shape, NAN), mask & False)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], all_of.at(steps, known=False))


def test_a_second_fit_forgets_the_first(series) -> None:
    once, twice = fitted(series), fitted(series)
    twice.profile.fit(series, twice.scaler, twice.calendar)
    assert torch.equal(twice.at(torch.arange(T)), once.at(torch.arange(T)))


def test_a_file_keeps_means_and_knows_the_training_steps(series, tmp_path) -> None:
    all_of = fitted(series)
    save_weights(tmp_path / "profile.safetensors", all_of.profile.state_dict(), {})
    loaded = Profile(all_of.calendar, N, C)
    loaded.load_state_dict(load_weights(tmp_path / "profile.safetensors")[0])
    steps = torch.arange(-30, T + 30)
    assert torch.equal(all_of._replace(profile=loaded).at(steps), all_of.at(steps))
