"""Models for nodes: encoders, a classifier, and methods that embed nodes without labels."""

from graphcl.nodes.aspect import ASPECT, ASPECTConfig
from graphcl.nodes.bgrl import BGRL, BGRLConfig
from graphcl.nodes.classifier import NodeClassifier
from graphcl.nodes.encoders import ENCODERS, NodeEncoder
from graphcl.nodes.grace import GRACE, GRACEConfig
from graphcl.nodes.method import NodeMethod
from graphcl.nodes.policy import SpectralPolicy, evidence_target, policy_divergence
from graphcl.nodes.probe import ProbeResult, bootstrap_half_width, linear_probe

__all__ = [
    "ASPECT",
    "BGRL",
    "ENCODERS",
    "GRACE",
    "ASPECTConfig",
    "BGRLConfig",
    "GRACEConfig",
    "NodeClassifier",
    "NodeEncoder",
    "NodeMethod",
    "ProbeResult",
    "SpectralPolicy",
    "bootstrap_half_width",
    "evidence_target",
    "linear_probe",
    "policy_divergence",
]
