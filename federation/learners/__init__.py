"""What one node holds during a run: a model and its data, one adapter per graphcl room."""

from typing import Any

from federation.experiment import Experiment
from federation.learners.albums import Albums, albums, kept_albums
from federation.learners.base import Forward, LabelledLearner, Learner, Owners, Projector
from federation.learners.classification import ClassificationLearner
from federation.learners.forecasting import ForecastLearner
from federation.learners.graphs import ClientGraphs, client_graphs, kept_graphs
from federation.learners.images import ImageLearner
from federation.learners.kept import Kept
from federation.learners.nodes import NodeLearner
from federation.learners.outages import OutageLearner
from federation.learners.platforms import Platforms, kept_platforms, platforms
from federation.learners.pretraining import PretrainingLearner
from federation.learners.recommending import RecommendLearner
from federation.learners.sites import Sites, kept_sites, sites
from federation.learners.territories import Territories, kept_territories, territories

# By task.name.
LEARNERS: dict[
    str,
    type[
        NodeLearner
        | ImageLearner
        | PretrainingLearner
        | OutageLearner
        | ForecastLearner
        | RecommendLearner
    ],
] = {
    "classify": NodeLearner,
    "images": ImageLearner,
    "pretrain": PretrainingLearner,
    "outages": OutageLearner,
    "forecast": ForecastLearner,
    "recommend": RecommendLearner,
}

Clients = ClientGraphs | Albums | Territories | Sites | Platforms


def clients_of(experiment: Experiment) -> Clients:
    """Return what the clients of an experiment hold.

    Raises:
        ConfigError, DataError, PartitionError: If the keys and the data do not fit.
    """
    if experiment.task.name == "images":
        return albums(experiment)
    if experiment.task.name == "outages":
        return territories(experiment)
    if experiment.task.name == "forecast":
        return sites(experiment)
    if experiment.task.name == "recommend":
        return platforms(experiment)
    return client_graphs(experiment)


_KEPT: dict[str, Kept[Any]] = {
    "images": kept_albums,
    "outages": kept_territories,
    "forecast": kept_sites,
    "recommend": kept_platforms,
    "classify": kept_graphs,
    "pretrain": kept_graphs,
}


def adopt_clients(experiment: Experiment, clients: Clients) -> None:
    """Take what the clients hold from a process that has made it, instead of making it here.

    Nobody may write to it: the memory may be that of all processes.
    """
    kept = _KEPT[experiment.task.name]
    kept.adopt(clients, experiment.data, experiment.partition, experiment.run.seed)


__all__ = [
    "LEARNERS",
    "Albums",
    "ClassificationLearner",
    "Clients",
    "ForecastLearner",
    "Forward",
    "ImageLearner",
    "LabelledLearner",
    "Learner",
    "NodeLearner",
    "OutageLearner",
    "Owners",
    "Platforms",
    "PretrainingLearner",
    "Projector",
    "RecommendLearner",
    "Sites",
    "adopt_clients",
    "clients_of",
]
