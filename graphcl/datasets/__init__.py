"""Node graphs and outage events: their files, their rules, generators and splits."""

from graphcl.datasets.digits import digits_graph
from graphcl.datasets.node_graph import load_npz, save_npz
from graphcl.datasets.outage_events import OutageEvents
from graphcl.datasets.outage_files import (
    load_outage_events,
    load_storm,
    save_outage_events,
    save_storm,
)
from graphcl.datasets.pyg import PYG_CLASSES, load_pyg
from graphcl.datasets.sbm import contextual_sbm, mixed_sbm
from graphcl.datasets.sources import count_classes, load, load_silos
from graphcl.datasets.splits import split_nodes
from graphcl.datasets.storms import StormSimulation, simulate_storms
from graphcl.datasets.validation import validate

__all__ = [
    "PYG_CLASSES",
    "OutageEvents",
    "StormSimulation",
    "contextual_sbm",
    "count_classes",
    "digits_graph",
    "load",
    "load_npz",
    "load_outage_events",
    "load_pyg",
    "load_silos",
    "load_storm",
    "mixed_sbm",
    "save_npz",
    "save_outage_events",
    "save_storm",
    "simulate_storms",
    "split_nodes",
    "validate",
]
