"""Spectral graph filters and perturbations: Laplacians, Chebyshev polynomials, an adversary."""

from graphcl.spectral.adversary import (
    Attack,
    find_attack,
    flip_edges,
    project_budget,
    relaxed_laplacian,
)
from graphcl.spectral.chebyshev import chebyshev_nodes, filter_polynomial, interpolation_matrix
from graphcl.spectral.filters import FilterMode, MonotoneFilters
from graphcl.spectral.laplacian import EdgePattern, laplacian
from graphcl.spectral.operators import SymmetricOperator
from graphcl.spectral.perturbation import feature_noise, random_flips, random_perturbation
from graphcl.spectral.rayleigh import rayleigh_quotient

__all__ = [
    "Attack",
    "EdgePattern",
    "FilterMode",
    "MonotoneFilters",
    "SymmetricOperator",
    "chebyshev_nodes",
    "feature_noise",
    "filter_polynomial",
    "find_attack",
    "flip_edges",
    "interpolation_matrix",
    "laplacian",
    "project_budget",
    "random_flips",
    "random_perturbation",
    "rayleigh_quotient",
    "relaxed_laplacian",
]
