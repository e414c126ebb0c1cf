"""What leaves a client: bounded by one sample, noised as promised, withheld where it is little."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.learners import Forward
from federation.privacy import release
from federation.privacy.release import class_sums, clip_rows, gaussian, noised_means
from federation.privacy.table import Privacy
from federation.strategies.prototypes import local_upload
from graphcl.training import seed_everything

CLASSES, WIDTH = 4, 3


def samples(number: int, seed: int = 0, scale: float = 5.0):
    rng = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(number, WIDTH, generator=rng)
    return values, torch.randint(0, CLASSES, (number,), generator=rng)


def test_long_rows_are_cut_and_short_ones_stay():
    rows = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.0]])
    assert clip_rows(rows, 1.0).tolist() == [
        pytest.approx([0.6, 0.8, 0.0]),
        pytest.approx([0.3, 0.4, 0.0]),
        [0.0, 0.0, 0.0],
    ]
    assert clip_rows(rows, 0.0) is rows


@settings(deadline=None, max_examples=100)
@given(
    number=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    clip=st.sampled_from([0.1, 1.0, 7.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_one_sample_changes_sums_and_counts_by_no_more_than_the_sensitivity(
    number, seed, clip, scale
):
    values, y = samples(number, seed, scale)
    whole = class_sums(values, y, CLASSES, clip)
    for left_out in range(number):
        rest = torch.arange(number) != left_out
        change = whole - class_sums(values[rest], y[rest], CLASSES, clip)
        assert change[:, :-1].norm() <= clip * (1 + 1e-9)
        assert change[:, -1].abs().sum() == pytest.approx(clip)
        assert change.norm() <= math.sqrt(2) * clip * (1 + 1e-9)
        others = torch.arange(CLASSES) != y[left_out]
        assert not change[others].any()


def test_the_sensitivity_is_reached():
    long = torch.tensor([[100.0, 0.0, 0.0]])
    change = class_sums(long, torch.tensor([2]), CLASSES, 0.5)
    assert float(change.norm()) == pytest.approx(math.sqrt(2) * 0.5)


def test_noise_on_sums_and_counts_has_the_promised_deviation(monkeypatch):
    values, y = samples(30)
    privacy = Privacy(clip=2.0, noise_multiplier=0.75)
    monkeypatch.setattr(release, "gaussian", lambda shape, source: torch.ones(shape))
    classes, means, support = noised_means(values, y, CLASSES, privacy)
    deviation = 0.75 * math.sqrt(2) * 2.0
    sums = class_sums(values, y, CLASSES, 2.0)
    assert classes.tolist() == list(range(CLASSES))
    assert torch.equal(support, (torch.bincount(y) + deviation / 2.0).round().long())
    expected = clip_rows((sums[:, :-1] + deviation) / support[:, None], 2.0)
    torch.testing.assert_close(means, expected.float())


def test_classes_are_withheld_by_their_noised_count_held_or_not(monkeypatch):
    values, y = samples(1)[0].expand(8, -1), torch.tensor([0] * 7 + [1])
    counts = torch.tensor([-9.0, 9.0, 9.0, 0.0], dtype=torch.float64)

    def on_counts(shape, source):
        noise = torch.zeros(shape, dtype=torch.float64)
        noise[:, -1] = counts
        return noise

    monkeypatch.setattr(release, "gaussian", on_counts)
    privacy = Privacy(clip=1.0, noise_multiplier=1 / math.sqrt(2), min_support=5)
    classes, _, support = noised_means(values, y, CLASSES, privacy)
    assert classes.tolist() == [1, 2]
    assert support.tolist() == [10, 9]


def test_noised_means_stay_within_the_clip():
    values, y = samples(6)
    seed_everything(0, "noise")
    privacy = Privacy(clip=1.5, noise_multiplier=50.0, noise="seed")
    _, means, support = noised_means(values, y, CLASSES, privacy)
    assert len(means)
    assert int(support.min()) >= 1
    assert float(means.norm(dim=1).max()) <= 1.5 * (1 + 1e-6)


def test_system_noise_is_standard_normal():
    noise = gaussian((400, 500), "system").flatten()
    assert noise.dtype == torch.float64
    assert abs(float(noise.mean())) < 7 / math.sqrt(len(noise))
    assert abs(float(noise.var()) - 1) < 7 * math.sqrt(2 / len(noise))
    assert abs(float((noise**4).mean()) - 3) < 7 * math.sqrt(96 / len(noise))


@pytest.mark.parametrize(("byte", "sign"), [(b"\x00", -1), (b"\xff", 1)])
def test_the_rarest_system_noise_is_finite(monkeypatch, byte, sign):
    monkeypatch.setattr(os, "urandom", lambda number: byte * number)
    assert 8 < sign * float(gaussian((1, 1), "system")) < 9


def test_seeded_noise_repeats_and_system_noise_does_not():
    def draw(source: str, *purpose):
        seed_everything(7, *purpose)
        return gaussian((3, 2), source)

    assert torch.equal(draw("seed", "fit", 1, 0), draw("seed", "fit", 1, 0))
    assert not torch.equal(draw("seed", "fit", 1, 0), draw("seed", "fit", 2, 0))
    assert not torch.equal(draw("seed", "fit", 1, 0), draw("seed", "fit", 1, 1))
    assert not torch.equal(draw("system", "fit", 1, 0), draw("system", "fit", 1, 0))


def forward(values, y) -> Forward:
    return Forward(values, torch.zeros(len(y), CLASSES), y)


def test_small_classes_stay_with_all_that_is_said_of_them():
    values, _ = samples(6)
    y = torch.tensor([3, 0, 3, 0, 3, 1])
    everything = local_upload(forward(values, y), CLASSES, Privacy(), values.square())
    upload = local_upload(forward(values, y), CLASSES, Privacy(min_support=3), values.square())
    assert upload.classes.tolist() == [3]
    assert upload.support.tolist() == [3]
    assert torch.equal(upload.values, everything.values[2:])
    assert torch.equal(upload.fisher, everything.fisher[2:])


def test_each_sample_is_cut_before_the_mean():
    values, y = torch.tensor([[30.0, 40.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([2, 2])
    upload = local_upload(forward(values, y), CLASSES, Privacy(clip=1.0))
    torch.testing.assert_close(upload.values, torch.tensor([[0.3, 0.4, 0.5]]))


def test_fisher_information_never_leaves_beside_noise():
    values, y = samples(20)
    privacy = Privacy(clip=1.0, noise_multiplier=0.1)
    assert "fisher" not in local_upload(forward(values, y), CLASSES, privacy, values).to_arrays()
