"""What one node holds during a run: a model and its data, one adapter per graphcl room."""

from federation.learners.base import Forward, Learner
from federation.learners.nodes import NodeLearner

__all__ = ["Forward", "Learner", "NodeLearner"]
