"""InfoNCE with intra-view negatives, forward and backward: all pairs at once against row blocks.

Run ``python tests/benchmarks/bench_contrast.py``.
"""

import json
import sys

import torch
from measuring import Cost, compare, cost
from torch import Tensor
from torch.nn.functional import normalize

from graphcl.contrast import info_nce

NODES = (2708, 8192)
WIDTH = 256
TEMPERATURE = 0.2
REPEATS = 3


def naive(z1: Tensor, z2: Tensor) -> Tensor:
    """The loss as it is commonly written, with every pair in memory."""

    def direction(u: Tensor, v: Tensor) -> Tensor:
        between = torch.exp(u @ v.T / TEMPERATURE)
        within = torch.exp(u @ u.T / TEMPERATURE)
        denominator = between.sum(1) + within.sum(1) - within.diagonal()
        return -(between.diagonal() / denominator).log().mean()

    u, v = normalize(z1), normalize(z2)
    return (direction(u, v) + direction(v, u)) / 2


def dense(z1: Tensor, z2: Tensor) -> Tensor:
    return info_nce(z1, z2, temperature=TEMPERATURE, block_size=None)


def blocked(z1: Tensor, z2: Tensor) -> Tensor:
    return info_nce(z1, z2, temperature=TEMPERATURE)


CASES = {"naive": naive, "dense": dense, "blocked": blocked}


def measure(case: str, nodes: int) -> Cost:
    """Run one case in this process."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(nodes, WIDTH, generator=generator).requires_grad_() for _ in range(2)]
    loss = CASES[case]
    return cost(lambda: loss(*views), lambda: loss(*(z[:64] for z in views)), views, REPEATS)


def main() -> None:
    print(f"d={WIDTH}, tau={TEMPERATURE}, one thread, fastest of {REPEATS}, ratios to naive")
    compare(__file__, "N", [(case, nodes) for nodes in NODES for case in CASES])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
