"""Spectral graph filters: Laplacians, Chebyshev polynomials, monotone filters; torch only."""

from graphcl.spectral.chebyshev import chebyshev_nodes, filter_polynomial, interpolation_matrix
from graphcl.spectral.filters import FilterMode, MonotoneFilters
from graphcl.spectral.laplacian import EdgePattern, laplacian
from graphcl.spectral.operators import SymmetricOperator
from graphcl.spectral.rayleigh import rayleigh_quotient

__all__ = [
    "EdgePattern",
    "FilterMode",
    "MonotoneFilters",
    "SymmetricOperator",
    "chebyshev_nodes",
    "filter_polynomial",
    "interpolation_matrix",
    "laplacian",
    "rayleigh_quotient",
]
