"""What is made for prototypes of classes: FedDBP's projector, and who is decided by the nearest."""

from graphcl.prototypes.classifier import Classifier, ClassifierOutput
from graphcl.prototypes.dual_branch import DualBranchProjector, split_branches
from graphcl.prototypes.nearest import NearestPrototype, nearest

__all__ = [
    "Classifier",
    "ClassifierOutput",
    "DualBranchProjector",
    "NearestPrototype",
    "nearest",
    "split_branches",
]
