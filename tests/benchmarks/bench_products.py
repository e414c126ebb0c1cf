"""Sparse times dense: torch's product of a CSR matrix beside ``graphcl.spectral.sparse.product``.

A random graph's shifted Laplacian, one thread, milliseconds. Run
``python tests/benchmarks/bench_products.py``.
"""

import time
from collections.abc import Callable

import torch

from graphcl.spectral import EdgePattern
from graphcl.spectral.sparse import product

GRAPHS = ((3_000, 4), (3_000, 100), (30_000, 5), (200_000, 10))  # nodes, edges for each
COLUMNS = (8, 64, 512)
SECONDS = 0.5  # for each figure


def milliseconds(call: Callable[[], object]) -> float:
    """Return what a call takes, the mean over half a second of them."""
    call()
    start, calls = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < SECONDS:
        call()
        calls += 1
    return passed / calls * 1e3


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'nodes':>8}{'edges':>10}{'columns':>9}{'CSR ms':>10}{'ours ms':>10}{'faster':>8}")
    for nodes, degree in GRAPHS:
        edges = torch.randint(nodes, (2, nodes * degree))
        matrix = EdgePattern(edges, nodes).shifted_laplacian().matrix
        for columns in COLUMNS:
            x = torch.randn(nodes, columns)
            csr = milliseconds(lambda m=matrix, x=x: m @ x)
            ours = milliseconds(lambda m=matrix, x=x: product(m, x))
            print(
                f"{nodes:>8}{nodes * degree:>10}{columns:>9}{csr:>10.3f}{ours:>10.3f}"
                f"{csr / ours:>8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
