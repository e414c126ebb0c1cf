"""Node graphs, outages, series, interactions, images: their files, rules, generators, splits."""

from graphcl.datasets.confounded_series import ConfoundedSeries, confounded_series
from graphcl.datasets.digits import digits_graph
from graphcl.datasets.image_files import load_images, save_images
from graphcl.datasets.images import ImageSet, join_images
from graphcl.datasets.interaction_files import load_interactions, save_interactions
from graphcl.datasets.interactions import Interactions, InteractionSplit, ItemGroups
from graphcl.datasets.item_texts import embed_texts
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
from graphcl.datasets.series import SpatioTemporalSeries
from graphcl.datasets.series_files import load_series, save_series
from graphcl.datasets.simulated_interactions import (
    InteractionSimulation,
    simulate_interactions,
)
from graphcl.datasets.sources import count_classes, load, load_silo, load_silos, locate, only_file
from graphcl.datasets.splits import split_nodes
from graphcl.datasets.storms import StormSimulation, simulate_storms
from graphcl.datasets.validation import validate
from graphcl.datasets.windows import Scaler, WindowBatch, Windows, chronological_split

__all__ = [
    "PYG_CLASSES",
    "ConfoundedSeries",
    "ImageSet",
    "InteractionSimulation",
    "InteractionSplit",
    "Interactions",
    "ItemGroups",
    "OutageEvents",
    "Scaler",
    "SpatioTemporalSeries",
    "StormSimulation",
    "WindowBatch",
    "Windows",
    "chronological_split",
    "confounded_series",
    "contextual_sbm",
    "count_classes",
    "digits_graph",
    "embed_texts",
    "join_images",
    "load",
    "load_images",
    "load_interactions",
    "load_npz",
    "load_outage_events",
    "load_pyg",
    "load_series",
    "load_silo",
    "load_silos",
    "load_storm",
    "locate",
    "mixed_sbm",
    "only_file",
    "save_images",
    "save_interactions",
    "save_npz",
    "save_outage_events",
    "save_series",
    "save_storm",
    "simulate_interactions",
    "simulate_storms",
    "split_nodes",
    "validate",
]
