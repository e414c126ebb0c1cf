"""What the time of a step tells: phases against datetime, and no cycle that was not seen twice."""

import math
from datetime import UTC, datetime, timedelta

import pytest
import torch
from forecast_series import DAY, HOUR, series_of

from graphcl.spatiotemporal import Calendar
from graphcl.spatiotemporal.calendar import CYCLES

WEEK, YEAR = CYCLES[1:]
MONDAY = datetime(1970, 1, 5, tzinfo=UTC)


def calendar_of(num_steps: int, interval: int) -> Calendar:
    return Calendar().fit(series_of(torch.zeros(num_steps, 1, 1), interval))


def waves(phase: float) -> list[float]:
    angles = [2 * math.pi * k * phase for k in (1, 2)]
    return [wave(angle) for angle in angles for wave in (math.sin, math.cos)]


def test_phases_are_those_of_the_clock_and_the_weekday() -> None:
    calendar = Calendar()
    calendar.used[:2] = True
    # Minutes apart, decades away from 1970 on both sides: too close for float32 seconds.
    start = [datetime(year, 2, 28, 23, 57, 11, tzinfo=UTC) for year in (1960, 1999, 2024, 2099)]
    times = [time + timedelta(minutes=7 * step) for time in start for step in range(400)]
    expected = []
    for time in times:
        day = (time - time.replace(hour=0, minute=0, second=0)).total_seconds() / DAY
        expected.append(waves(day) + waves((time.weekday() + day) / 7) + [0.0] * 4)
    seconds = torch.tensor([int(time.timestamp()) for time in times])
    torch.testing.assert_close(calendar(seconds), torch.tensor(expected), rtol=0, atol=1e-6)


def test_seasons_stay_where_they_are_through_leap_years() -> None:
    calendar = Calendar()
    calendar.used[2] = True
    for season in (0.0, 0.25, 0.6):
        for year in range(1968, 2100):
            time = MONDAY.replace(year=year) + timedelta(seconds=round(season * YEAR))
            found = calendar(torch.tensor(int(time.timestamp())))[8:]
            torch.testing.assert_close(
                found, torch.tensor(waves(season)), rtol=0, atol=4 * math.pi * 1.6 / 365
            )


@pytest.mark.parametrize(
    ("num_steps", "interval", "used"),
    [
        (47, HOUR, [False, False, False]),
        (48, HOUR, [True, False, False]),
        (335, HOUR, [True, False, False]),
        (336, HOUR, [True, True, False]),
        (730, DAY, [False, True, False]),
        (731, DAY, [False, True, True]),
        (600, 7 * DAY, [False, False, True]),  # weekly steps know no time of day or day of week
        (400, 6 * HOUR, [True, True, False]),
        (400, 8 * HOUR, [False, True, False]),  # three steps tell no two harmonics apart
    ],
)
def test_a_cycle_is_read_where_training_saw_it_twice_in_four_steps_or_more(
    num_steps, interval, used
) -> None:
    calendar = calendar_of(num_steps, interval)
    assert calendar.used.tolist() == used
    read = calendar(torch.arange(0, YEAR, 12_347)).unflatten(-1, (3, 4))
    assert (read == 0).all(-1).all(0).tolist() == [not use for use in used]


INTERVALS = [(100, HOUR), (400, HOUR), (8000, 7000), (400, 3 * DAY), (600, 7 * DAY)]


@pytest.mark.parametrize(("num_steps", "interval"), INTERVALS)
def test_slots_repeat_with_the_longest_cycle(num_steps, interval) -> None:
    calendar = calendar_of(num_steps, interval)
    longest = max(c for c, use in zip(CYCLES, calendar.used.tolist(), strict=True) if use)
    seconds = torch.arange(-3 * longest, 3 * longest, interval // 3)
    slots = calendar.slot(seconds)
    assert slots.dtype == torch.int64
    assert torch.equal(slots.unique(), torch.arange(calendar.num_slots))
    assert torch.equal(calendar.slot(seconds + longest), slots)


@pytest.mark.parametrize(("num_steps", "interval"), INTERVALS)
def test_no_slot_is_passed_over_in_a_cycle(num_steps, interval) -> None:
    calendar = calendar_of(num_steps, interval)
    longest = max(c for c, use in zip(CYCLES, calendar.used.tolist(), strict=True) if use)
    for offset in (0, 1, interval - 1):
        first = 4 * DAY + 20 * longest  # a Monday on which every cycle begins
        slots = calendar.slot(torch.arange(first + offset, first + longest, interval))
        assert torch.equal(slots.unique(), torch.arange(calendar.num_slots))


def test_a_slot_is_the_hour_of_the_week_from_monday() -> None:
    calendar = calendar_of(336, HOUR)
    time = datetime(2024, 2, 29, 15, 59, tzinfo=UTC)
    assert calendar.num_slots == 168
    assert int(calendar.slot(torch.tensor(int(time.timestamp())))) == 3 * 24 + 15


@pytest.mark.parametrize(
    ("num_steps", "interval", "cycle"),
    [
        (800 * 24, HOUR, WEEK),  # two years: each hour of the year but twice
        (800, DAY, YEAR),  # a year of days is short enough
        (2 * 10_080, 60, DAY),  # a week of minutes is not
        (4 * 2880, 30, DAY),  # nor a day of half minutes, but there is no shorter cycle
    ],
)
def test_a_slot_is_one_that_training_saw_often(num_steps, interval, cycle) -> None:
    calendar = calendar_of(num_steps, interval)
    assert calendar.num_slots == cycle // interval
    seconds = torch.arange(0, cycle, interval)
    assert torch.equal(calendar.slot(seconds + cycle), calendar.slot(seconds))


def test_there_is_one_slot_where_no_cycle_was_seen_twice() -> None:
    calendar = calendar_of(20, HOUR)
    assert calendar.num_slots == 1
    assert (calendar.slot(torch.arange(0, WEEK, 1000)) == 0).all()


def test_shapes_are_kept() -> None:
    calendar = calendar_of(48, HOUR)
    seconds = torch.zeros(3, 5, dtype=torch.int64)
    assert calendar(seconds).shape == (3, 5, Calendar.width)
    assert calendar(seconds).dtype == torch.float32
    assert calendar.slot(seconds).shape == (3, 5)
