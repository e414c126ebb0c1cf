"""What the releases of a run cost in ε, by Opacus's accountant."""

import math
from collections.abc import Sequence

from federation.cohort import draw_cohort
from federation.experiment import Experiment
from federation.tables import PROTOTYPE_STRATEGIES

# Finer and further than Opacus's own, so that neither little nor much noise runs out of orders.
_ORDERS = [1 + 10 ** (step / 20) for step in range(-60, 81)]


def epsilon(noise_multiplier: float, releases: int, delta: float) -> float:
    """Return an upper bound on ε of some releases of the Gaussian mechanism.

    Args:
        noise_multiplier: Standard deviation of the noise over the sensitivity, above 0.
        releases: How often the same client released.
        delta: Probability with which the bound may fail.

    Source:
        Rényi differential privacy (Mironov, CSF 2017) with the conversion of Balle et al.,
        AISTATS 2020, as in Opacus. Without sampling: cohorts are drawn from the experiment's seed,
        which the server knows, so that they hide nobody and amplify nothing.
    """
    from opacus.accountants import RDPAccountant  # takes seconds, and most runs have no noise

    accountant = RDPAccountant()
    for _ in range(releases):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=1.0)
    return float(accountant.get_epsilon(delta, alphas=_ORDERS))


def noise_for(target: float, releases: int, delta: float) -> float:
    """Return the least noise multiplier, to a thousandth, whose releases stay within an ε.

    Args:
        target: The ε that may be spent, above 0.
        releases: How often the same client releases.
        delta: Probability with which the bound may fail.
    """
    low, high = 1e-3, 1e6
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon(middle, releases, delta) <= target else (middle, high)
    return high


def most_releases(experiment: Experiment, rounds: Sequence[int]) -> int:
    """Return how often the client released that did so most often.

    Where aggregates wait for a buffer rather than a cohort, it is a bound: nobody did more often.

    Args:
        experiment: Says who was in which cohort.
        rounds: The rounds in which messages went out; one that was repeated is named twice.
    """
    counts = [0] * experiment.partition.clients
    for server_round in rounds:
        for client in draw_cohort(experiment, server_round):
            counts[client] += 1
    return max(counts)


def spent(experiment: Experiment, rounds: Sequence[int]) -> dict[str, float]:
    """Return ε and δ of a run for its summary; nothing where no noise was put on anything.

    ``epsilon`` is a guarantee. Where the noise came from the experiment's seed there is none, and
    the figure is named ``epsilon_if_noise_were_secret``.
    """
    privacy = experiment.privacy
    if not privacy.noise_multiplier or experiment.strategy.name not in PROTOTYPE_STRATEGIES:
        return {}
    secret = privacy.noise == "system"
    releases = most_releases(experiment, rounds)
    return {
        "epsilon" if secret else "epsilon_if_noise_were_secret": epsilon(
            privacy.noise_multiplier, releases, privacy.delta
        ),
        "delta": privacy.delta,
        "most_releases": releases,
    }
