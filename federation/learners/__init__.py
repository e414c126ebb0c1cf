"""What one node holds during a run: a model and its data, one adapter per graphcl room."""

from federation.experiment import Experiment
from federation.learners.base import Forward, LabelledLearner, Learner, Projector
from federation.learners.classification import ClassificationLearner
from federation.learners.graphs import ClientGraphs, client_graphs
from federation.learners.nodes import NodeLearner
from federation.learners.outages import OutageLearner
from federation.learners.pretraining import PretrainingLearner
from federation.learners.sites import Sites, sites
from federation.learners.territories import Territories, territories

# By task.name.
LEARNERS: dict[str, type[NodeLearner | PretrainingLearner | OutageLearner]] = {
    "classify": NodeLearner,
    "pretrain": PretrainingLearner,
    "outages": OutageLearner,
}

Clients = ClientGraphs | Territories | Sites


def clients_of(experiment: Experiment) -> Clients:
    """Return what the clients of an experiment hold.

    Raises:
        ConfigError, DataError, PartitionError: If the keys and the data do not fit.
    """
    if experiment.task.name == "outages":
        return territories(experiment)
    if experiment.task.name == "forecast":
        return sites(experiment)
    return client_graphs(experiment)


__all__ = [
    "LEARNERS",
    "ClassificationLearner",
    "Clients",
    "Forward",
    "LabelledLearner",
    "Learner",
    "NodeLearner",
    "OutageLearner",
    "PretrainingLearner",
    "Projector",
    "Sites",
    "clients_of",
]
