"""Models for nodes: encoders, a classifier, and methods that embed nodes without labels."""

from graphcl.nodes.aspect import ASPECT, ASPECTConfig
from graphcl.nodes.aspect_s import ASPECTS, ASPECTSConfig
from graphcl.nodes.bgrl import BGRL, BGRLConfig
from graphcl.nodes.classifier import NodeClassifier
from graphcl.nodes.encoders import ENCODERS, NodeEncoder
from graphcl.nodes.grace import GRACE, GRACEConfig
from graphcl.nodes.method import NodeMethod
from graphcl.nodes.policy import (
    SpectralPolicy,
    channel_sensitivity,
    evidence_target,
    policy_divergence,
    reliability_target,
)
from graphcl.nodes.polygcl import PolyGCL, PolyGCLConfig
from graphcl.nodes.probe import ProbeResult, bootstrap_half_width, linear_probe

__all__ = [
    "ASPECT",
    "ASPECTS",
    "BGRL",
    "ENCODERS",
    "GRACE",
    "ASPECTConfig",
    "ASPECTSConfig",
    "BGRLConfig",
    "GRACEConfig",
    "NodeClassifier",
    "NodeEncoder",
    "NodeMethod",
    "PolyGCL",
    "PolyGCLConfig",
    "ProbeResult",
    "SpectralPolicy",
    "bootstrap_half_width",
    "channel_sensitivity",
    "evidence_target",
    "linear_probe",
    "policy_divergence",
    "reliability_target",
]
