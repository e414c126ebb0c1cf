"""What one node holds during a run: a model and its data, one adapter per graphcl room."""

from federation.learners.base import Forward, Learner, Projector
from federation.learners.classification import ClassificationLearner
from federation.learners.nodes import NodeLearner
from federation.learners.pretraining import PretrainingLearner

# By task.name.
LEARNERS = {"classify": NodeLearner, "pretrain": PretrainingLearner}

__all__ = [
    "LEARNERS",
    "ClassificationLearner",
    "Forward",
    "Learner",
    "NodeLearner",
    "PretrainingLearner",
    "Projector",
]
