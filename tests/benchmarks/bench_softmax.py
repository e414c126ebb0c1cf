"""Cross-entropy over a catalogue, forward and backward: every logit at once against blocks.

Run ``python tests/benchmarks/bench_softmax.py``, or with sizes of the catalogue behind it. Every
case has a process of its own, because the peak of a process's memory never goes down again. Dense
is left out where it would exceed 8 GiB.
"""

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
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


def peak_mib() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(case: str, num_items: int) -> dict[str, float]:
    """Run one case in this process: fastest seconds, extra MiB at the peak, loss and gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, items = torch.randn(POSITIONS, WIDTH), 0.1 * torch.randn(num_items, WIDTH)
    hidden.requires_grad_()
    items.requires_grad_()
    target = torch.randint(1, num_items, (POSITIONS,))
    # The libraries' own buffers belong to the baseline; large enough for auto to choose blocks.
    CASES[case](hidden[:512], items[:1024], target[:512] % 1024).backward()
    hidden.grad = items.grad = None
    baseline = peak_mib()
    seconds = []
    for _ in range(REPEATS):
        hidden.grad = items.grad = None
        start = time.perf_counter()
        loss = CASES[case](hidden, items, target)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "mib": peak_mib() - baseline,
        "loss": loss.item(),
        "gradient": items.grad.norm().item(),
    }


def main(catalogues: list[int]) -> None:
    print(
        f"M={POSITIONS}, D={WIDTH}, one thread, fastest of {REPEATS}, ratios to the first of its V"
    )
    print(
        f"{'V':>9} {'case':<8} {'s':>8} {'ratio':>6} {'MiB':>8} {'ratio':>6} {'loss':>10} gradient"
    )
    for num_items in catalogues:
        reference: dict[str, float] = {}
        for case in CASES:
            if case == "dense" and DENSE_BYTES * POSITIONS * num_items > LIMIT:
                print(f"{num_items:>9} dense    left out: it would exceed {LIMIT >> 30} GiB")
                continue
            command = [sys.executable, __file__, case, str(num_items)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output)
            reference = reference or result
            print(
                f"{num_items:>9} {case:<8} {result['seconds']:>8.2f} "
                f"{result['seconds'] / reference['seconds']:>6.2f} {result['mib']:>8.0f} "
                f"{result['mib'] / reference['mib']:>6.3f} {result['loss']:>10.6f} "
                f"{result['gradient']:.6e}",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CASES:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main([int(size) for size in sys.argv[1:]] or list(CATALOGUES))
