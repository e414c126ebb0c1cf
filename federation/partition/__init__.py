"""Ways of dividing a graph over clients: pure functions of the data and a seed."""

from federation.partition.communities import louvain
from federation.partition.interactions import catalogues, deal, events_report
from federation.partition.label_skew import dirichlet, pathological, practical
from federation.partition.report import (
    ClientReport,
    PartitionReport,
    natural_report,
    partition_report,
)
from federation.partition.silos import Silos, natural, subgraph

__all__ = [
    "ClientReport",
    "PartitionReport",
    "Silos",
    "catalogues",
    "deal",
    "dirichlet",
    "events_report",
    "louvain",
    "natural",
    "natural_report",
    "partition_report",
    "pathological",
    "practical",
    "subgraph",
]
