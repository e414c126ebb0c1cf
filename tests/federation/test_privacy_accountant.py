"""ε: an upper bound that is tight, counts every release, and is no guarantee without secrecy."""

import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from federation.privacy.accountant import epsilon, most_releases, noise_for, spent

NOISED = {"privacy.clip": 1.0, "privacy.noise_multiplier": 2.0}


def exact(noise: float, releases: int, delta: float) -> float:
    """Solve Balle and Wang's condition (ICML 2018): many Gaussians are one with less noise."""
    m = math.sqrt(releases) / noise

    def excess(e: float) -> float:
        log_second = e + norm.logcdf(-m / 2 - e / m)
        return norm.cdf(m / 2 - e / m) - math.exp(log_second) - delta

    return brentq(excess, 0, 10 * m * (m + 10))


@pytest.mark.parametrize("noise", [0.5, 2.0, 20.0, 200.0])
@pytest.mark.parametrize("releases", [1, 40])
def test_it_bounds_the_exact_epsilon_from_above_and_closely(noise, releases):
    found, least = epsilon(noise, releases, 1e-5), exact(noise, releases, 1e-5)
    assert least <= found <= 1.25 * least + 1e-3


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 10), (5.0, 40)])
def test_it_is_no_more_than_opacus_says(noise, releases):
    ours = epsilon(noise, releases, 1e-5)
    theirs = RDPAccountant()
    tight = PRVAccountant()
    theirs.history = tight.history = [(noise, 1.0, releases)]
    assert ours <= theirs.get_epsilon(1e-5) * (1 + 1e-3)
    assert ours >= tight.get_epsilon(1e-5, eps_error=0.05) - 0.1


def test_it_grows_with_releases_and_falls_with_noise_and_delta():
    noises = [epsilon(noise, 10, 1e-5) for noise in (0.1, 1.0, 3.0, 30.0)]
    releases = [epsilon(2.0, number, 1e-5) for number in (0, 1, 2, 50)]
    deltas = [epsilon(2.0, 10, delta) for delta in (1e-9, 1e-5, 1e-2)]
    assert noises == sorted(noises, reverse=True)
    assert releases == sorted(releases)
    assert releases[0] == 0
    assert deltas == sorted(deltas, reverse=True)


@pytest.mark.parametrize("target", [0.5, 10.0, 300.0])
def test_noise_for_an_epsilon_is_the_least_that_stays_within(target):
    noise = noise_for(target, 15, 1e-5)
    assert epsilon(noise, 15, 1e-5) <= target < epsilon(noise / 1.01, 15, 1e-5)


def test_the_client_that_released_most_often_counts(tiny):
    everyone = tiny("fedproto", **NOISED)
    assert most_releases(everyone, [1, 2, 3, 3]) == 4
    few = tiny("fedproto", **NOISED, **{"partition.clients": 6, "strategy.fraction": 0.34})
    assert 1 <= most_releases(few, [1]) < most_releases(few, range(1, 31)) < 30


def test_a_run_without_noise_or_prototypes_spends_nothing_that_could_be_told(tiny):
    assert spent(tiny("fedproto", **{"privacy.clip": 1.0}), [1]) == {}
    assert spent(tiny("local", **NOISED), [1]) == {}


def test_noise_that_the_server_can_repeat_is_no_guarantee(tiny):
    secret = spent(tiny("fedproto", **NOISED), [1, 2])
    open_ = spent(tiny("fedproto", **NOISED, **{"privacy.noise": "seed"}), [1, 2])
    assert secret["epsilon"] == epsilon(2.0, 2, 1e-5)
    assert "epsilon" not in open_
    assert open_["epsilon_if_noise_were_secret"] == secret["epsilon"]
