"""What the scale benchmarks share: a case in a process of its own, its peak memory, slopes."""

import resource
import subprocess
import sys
from collections.abc import Sequence

import numpy as np


def peak() -> float:
    """Return the most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_fresh_process(script: str, *case: object) -> list[float]:
    """Run ``script --case ...`` and return the numbers that it prints."""
    command = [sys.executable, script, "--case", *map(str, case)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent of a power law fitted to points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
