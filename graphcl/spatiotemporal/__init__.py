"""Forecasting on spatio-temporal graphs: networks, what they must beat, and SC-FSGL."""

from graphcl.spatiotemporal.calendar import Calendar
from graphcl.spatiotemporal.codebook import CausalCodebook
from graphcl.spatiotemporal.forecaster import (
    Forecaster,
    ForecasterConfig,
    NetworkConfig,
    NetworkForecaster,
)
from graphcl.spatiotemporal.graph_wavenet import GraphWaveNet, GraphWaveNetConfig
from graphcl.spatiotemporal.naive import HistoricalAverage, LastValue, LinearForecaster
from graphcl.spatiotemporal.propagation import Diffusion
from graphcl.spatiotemporal.samples import Sample
from graphcl.spatiotemporal.sc_fsgl import SCFSGL, SCFSGLConfig
from graphcl.spatiotemporal.separation import ConditionalSeparation
from graphcl.spatiotemporal.stgcn import STGCN, STGCNConfig
from graphcl.spatiotemporal.stid import STID, STIDConfig

__all__ = [
    "SCFSGL",
    "STGCN",
    "STID",
    "Calendar",
    "CausalCodebook",
    "ConditionalSeparation",
    "Diffusion",
    "Forecaster",
    "ForecasterConfig",
    "GraphWaveNet",
    "GraphWaveNetConfig",
    "HistoricalAverage",
    "LastValue",
    "LinearForecaster",
    "NetworkConfig",
    "NetworkForecaster",
    "SCFSGLConfig",
    "STGCNConfig",
    "STIDConfig",
    "Sample",
]
