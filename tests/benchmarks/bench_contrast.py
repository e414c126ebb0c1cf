"""InfoNCE with intra-view negatives, forward and backward: all pairs at once against row blocks.

Run ``python tests/benchmarks/bench_contrast.py``. Every case has a process of its own, because the
peak of a process's memory never goes down again.
"""

import json
import resource
import subprocess
import sys
import time

import torch
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


def peak_mib() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure(case: str, nodes: int) -> dict[str, float]:
    """Run one case in this process: fastest seconds, extra MiB at the peak, loss and gradient."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(nodes, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    # The libraries' own buffers belong to the baseline.
    CASES[case](z1[:64], z2[:64]).backward()
    z1.grad = z2.grad = None
    baseline = peak_mib()
    seconds = []
    for _ in range(REPEATS):
        z1.grad = z2.grad = None
        start = time.perf_counter()
        loss = CASES[case](z1, z2)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "mib": peak_mib() - baseline,
        "loss": loss.item(),
        "gradient": z1.grad.norm().item(),
    }


def main() -> None:
    print(f"d={WIDTH}, tau={TEMPERATURE}, one thread, fastest of {REPEATS}, ratios to naive")
    print(
        f"{'N':>6} {'case':<8} {'s':>8} {'ratio':>6} {'MiB':>8} {'ratio':>6} {'loss':>10} gradient"
    )
    for nodes in NODES:
        reference: dict[str, float] = {}
        for case in CASES:
            command = [sys.executable, __file__, case, str(nodes)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(output)
            reference = reference or result
            print(
                f"{nodes:>6} {case:<8} {result['seconds']:>8.2f} "
                f"{result['seconds'] / reference['seconds']:>6.2f} {result['mib']:>8.0f} "
                f"{result['mib'] / reference['mib']:>6.3f} {result['loss']:>10.6f} "
                f"{result['gradient']:.6e}"
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
