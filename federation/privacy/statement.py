"""What of a run is protected and what is not, in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass

from federation.experiment import Experiment
from federation.tables import PROTOTYPE_STRATEGIES


@dataclass(frozen=True)
class Statement:
    """What a run may claim.

    Attributes:
        protected: A sentence each on what is protected; may be empty.
        open: A sentence each on what is not.
    """

    protected: tuple[str, ...]
    open: tuple[str, ...]


_METRICS = (
    "Every client tells the server its number of training samples, its training loss and its scores"
    " on validation and test samples, as they are."
)


def statement(experiment: Experiment, spent: Mapping[str, float]) -> Statement:
    """Return what a run of one strategy may claim.

    Args:
        experiment: Its configuration.
        spent: As :func:`federation.privacy.accountant.spent` returns it.
    """
    strategy = experiment.strategy.name
    if strategy == "local":
        return Statement(("Data, models and prototypes stay on their client.",), (_METRICS,))
    if strategy not in PROTOTYPE_STRATEGIES:
        return Statement((), ("Model weights leave as training made them, undefended.", _METRICS))
    protected = ["Data and models stay on their client; class prototypes leave it."]
    limits: list[str] = []
    if experiment.masked:
        protected += _MASKED
        limits += _unmasked(experiment)
    if experiment.privacy.noise_multiplier:
        guarantee, open_ones = _noised(experiment, spent)
        protected += guarantee
    else:
        kept, open_ones = _exact(experiment)
        protected += kept
    return Statement(tuple(protected), (*limits, *open_ones, _METRICS))


_MASKED = (
    "The server learns the sum of all clients' weighted prototypes and the total weight of every "
    "class, not what one client adds to them, nor which classes it holds: pairwise masks hide each "
    "client's record and cancel in the sum of all.",
)


def _unmasked(experiment: Experiment) -> list[str]:
    """Return what masks leave open."""
    clients = experiment.partition.clients
    return [
        f"A sum over {clients} clients is no average over a crowd: of a class that a single client "
        "holds, the sum is this client's prototype, though not whose.",
        "Masks do not protect against a server that colludes with all clients but one, nor against "
        "an active one that hands out public keys of its own: the clients have no other word for "
        "whose key is whose. Flower's node authentication keeps strangers from posing as nodes, "
        "not the server from posing as clients.",
        "A client that lies about its prototypes cannot be found out: no single record can be "
        "looked at, and the server checks the totals alone.",
    ]


def _exact(experiment: Experiment) -> tuple[list[str], list[str]]:
    support = experiment.privacy.min_support
    kept = []
    if support > 1:
        kept.append(f"Classes of which a client has fewer than {support} samples do not leave it.")
    if experiment.masked:
        return kept, ["The sums are exact. There is no ε without noise."]
    limits = [
        "Prototypes are exact means: that of a class with one sample is that sample's embedding, "
        "and whether a sample is in a mean of few can often be told. There is no ε without noise; "
        "graphcl audit measures what leaks.",
        "Which classes a client holds and how many samples of each leaves with them.",
    ]
    if experiment.strategy.name == "feddbp":
        limits.append("So does which channels its head relies on (Fisher information).")
    return kept, limits


def _noised(experiment: Experiment, spent: Mapping[str, float]) -> tuple[list[str], list[str]]:
    privacy = experiment.privacy
    guarantee, limits = [], []
    if "epsilon" in spent:
        who = "the client that released most often"
        if experiment.asynchronous:
            who = "a client that had released for every aggregate, so no more than that,"
        guarantee.append(
            "Whether one labelled sample of a client is in its class sums and counts, those of "
            f"all rounds together: ε = {spent['epsilon']:.3g} at δ = {privacy.delta:g} for "
            f"{who} ({spent['most_releases']:.0f} times). Classes held "
            "and their counts are covered, since noise is on all classes. No client and no server "
            "need be trusted with the noise: each node draws its own."
        )
    else:
        limits.append(
            "The noise came from run.seed, which the server knows and can subtract: this run "
            "protects nothing. With privacy.noise = 'system' it would have ε = "
            f"{spent['epsilon_if_noise_were_secret']:.3g} at δ = {privacy.delta:g}."
        )
    limits += [
        "ε takes the encoder as given. What the encoder itself learned from a sample in training, "
        "on the raw data, moves all embeddings a little and is not covered.",
        "Nor is a sample's part, as a neighbour in a graph, in the embeddings of others.",
        "A person with k samples is not covered by this ε but by about k times as much.",
        "Runs on the same data add up: so do the strategies that are compared here.",
        "Each node obeys the [privacy] table that the server sends with the run.",
    ]
    return guarantee, limits
