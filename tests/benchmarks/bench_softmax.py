"""Cross-entropy over a catalogue, forward and backward: every logit at once against blocks.

Run ``python tests/benchmarks/bench_softmax.py``, or with sizes of the catalogue behind it. Dense is
left out where it would exceed 8 GiB.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from measuring import Cost, compare, cost
from torch import Tensor

from graphcl.recommend import catalogue_cross_entropy, sampled_cross_entropy

CATALOGUES = (12_101, 100_000, 1_000_000)
POSITIONS = 6400
WIDTH = 64
NEGATIVES = 256
REPEATS = 3
LIMIT = 8 * 2**30
# Three matrices of logits in single precision, the peak that is measured at the smallest size.
DENSE_BYTES = 3 * 4


def sampled(hidden: Tensor, items: Tensor, target: Tensor) -> Tensor:
    """The cheap option, beside the exact ones: one sample for all positions."""
    candidates = len(items) - 1
    negatives = torch.randint(1, len(items), (NEGATIVES,))
    log_q = torch.full((NEGATIVES,), -math.log(candidates))
    return sampled_cross_entropy(hidden, items, target, negatives, log_q)


def by(method: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda *inputs: catalogue_cross_entropy(*inputs, method=method)


CASES = {method: by(method) for method in ("dense", "torch", "tiles", "auto")} | {
    "sampled": sampled
}


def measure(case: str, num_items: int) -> Cost:
    """Run one case in this process."""
    torch.manual_seed(0)
    hidden, items = torch.randn(POSITIONS, WIDTH), 0.1 * torch.randn(num_items, WIDTH)
    target = torch.randint(1, num_items, (POSITIONS,))
    leaves = [items.requires_grad_(), hidden.requires_grad_()]
    loss = CASES[case]
    return cost(
        lambda: loss(hidden, items, target),
        # Large enough for auto to choose blocks.
        lambda: loss(hidden[:512], items[:1024], target[:512] % 1024),
        leaves,
        REPEATS,
    )


def main(catalogues: list[int]) -> None:
    print(
        f"M={POSITIONS}, D={WIDTH}, one thread, fastest of {REPEATS}, ratios to the first of its V"
    )
    dense = {size for size in catalogues if DENSE_BYTES * POSITIONS * size <= LIMIT}
    for size in sorted(set(catalogues) - dense):
        print(f"dense is left out for {size} items: it would exceed {LIMIT >> 30} GiB")
    sizes = [(case, size) for size in catalogues for case in CASES]
    compare(__file__, "V", [(c, size) for c, size in sizes if c != "dense" or size in dense])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        sizes = "items in the catalogue, one or more, instead of those of the table"
        parser.add_argument("sizes", type=int, nargs="*", help=sizes)
        main(parser.parse_args().sizes or list(CATALOGUES))
