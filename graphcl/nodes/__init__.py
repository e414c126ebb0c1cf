"""Models for nodes: encoders and a classifier on top of them."""

from graphcl.nodes.classifier import NodeClassifier
from graphcl.nodes.encoders import ENCODERS, NodeEncoder

__all__ = ["ENCODERS", "NodeClassifier", "NodeEncoder"]
