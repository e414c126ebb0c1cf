"""What one node holds during a run: a model and its data, one adapter per graphcl room."""

from federation.experiment import Experiment
from federation.learners.base import Forward, LabelledLearner, Learner, Projector
from federation.learners.classification import ClassificationLearner
from federation.learners.graphs import ClientGraphs, client_graphs
from federation.learners.nodes import NodeLearner
from federation.learners.outages import OutageLearner
from federation.learners.pretraining import PretrainingLearner
from federation.learners.territories import Territories, territories

# By task.name.
LEARNERS: dict[str, type[NodeLearner | PretrainingLearner | OutageLearner]] = {
    "classify": NodeLearner,
    "pretrain": PretrainingLearner,
    "outages": OutageLearner,
}

Clients = ClientGraphs | Territories


def clients_of(experiment: Experiment) -> Clients:
    """Return what the clients of an experiment hold.

    Raises:
        ConfigError, DataError, PartitionError: If the keys and the data do not fit.
    """
    return (
        territories(experiment) if experiment.task.name == "outages" else client_graphs(experiment)
    )


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
    "clients_of",
]
