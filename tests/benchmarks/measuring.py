"""What benchmarks share: a case in a process of its own, its cost, slopes, intervals.

A process of its own, because the peak of a process's memory never goes down again.
"""

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

Cost = dict[str, float]


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_fresh_process(script: str, *case: object) -> str:
    """Run ``script --case ...`` and return what it prints."""
    command = [sys.executable, script, "--case", *map(str, case)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def numbers(text: str) -> list[float]:
    """Return the numbers that a case has printed."""
    return [float(word) for word in text.split()]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent of a power law fitted to points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def interval(values: Sequence[float], digits: int) -> str:
    """Return a mean and the half-width of its 95 % interval; the value if there is one."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def cost(
    loss: Callable[[], Tensor], warm_up: Callable[[], Tensor], leaves: Sequence[Tensor], goes: int
) -> Cost:
    """Return the fastest seconds forward and backward on one thread, and the extra MiB at the peak.

    Beside them the loss, and the norm of the gradient of the first leaf.

    Args:
        loss: What is measured.
        warm_up: A small one before, so that the libraries' own buffers belong to the baseline.
        leaves: What gradients reach.
        goes: How often it is measured.
    """
    torch.set_num_threads(1)

    def forget() -> None:
        for leaf in leaves:
            leaf.grad = None

    warm_up().backward()
    baseline, seconds = peak(), []
    for _ in range(goes):
        forget()
        start = time.perf_counter()
        value = loss()
        value.backward()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": min(seconds),
        "mib": peak() - baseline,
        "loss": value.item(),
        "gradient": leaves[0].grad.norm().item(),
    }


def compare(script: str, size_name: str, cases: Iterable[tuple[str, int]]) -> None:
    """Print what ``script --case NAME SIZE`` costs, beside the first one of each size."""
    print(
        f"{size_name:>9} {'case':<8} {'s':>8} {'ratio':>6} {'MiB':>8} {'ratio':>6} "
        f"{'loss':>10} gradient"
    )
    first: dict[int, Cost] = {}
    for name, size in cases:
        found: Cost = json.loads(in_fresh_process(script, name, size))
        beside = first.setdefault(size, found)
        print(
            f"{size:>9} {name:<8} {found['seconds']:>8.2f} "
            f"{found['seconds'] / beside['seconds']:>6.2f} {found['mib']:>8.0f} "
            f"{found['mib'] / beside['mib']:>6.3f} {found['loss']:>10.6f} {found['gradient']:.6e}",
            flush=True,
        )
