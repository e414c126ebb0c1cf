"""Power outages of storms: SA-HGNN, its graphs, intervals, and what it is compared with."""

from graphcl.outages.baselines import LastSimilarStorm, NoOutages, OutageTrees
from graphcl.outages.dynamic_graph import DynamicGraphLearner, LearnedMean
from graphcl.outages.forecast import Forecast, ForecasterConfig, OutageForecaster, Total
from graphcl.outages.gcn import OutageGCN
from graphcl.outages.graphs import RowMean, gaussian_knn, nearest_neighbors
from graphcl.outages.intervals import CountIntervals
from graphcl.outages.model import OutageModel, OutageModelConfig
from graphcl.outages.sa_hgnn import SAHGNN, MixHop, SAHGNNConfig
from graphcl.outages.scaling import Standardization
from graphcl.outages.severity import NUM_SEVERITIES, severity
from graphcl.outages.situations import similar_pairs, situation_contrast

__all__ = [
    "NUM_SEVERITIES",
    "SAHGNN",
    "CountIntervals",
    "DynamicGraphLearner",
    "Forecast",
    "ForecasterConfig",
    "LastSimilarStorm",
    "LearnedMean",
    "MixHop",
    "NoOutages",
    "OutageForecaster",
    "OutageGCN",
    "OutageModel",
    "OutageModelConfig",
    "OutageTrees",
    "RowMean",
    "SAHGNNConfig",
    "Standardization",
    "Total",
    "gaussian_knn",
    "nearest_neighbors",
    "severity",
    "similar_pairs",
    "situation_contrast",
]
