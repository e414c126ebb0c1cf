"""One seed decides everything: named, independent random streams derived from it.

A stream belongs to a purpose, such as ``("fit", server_round, partition_id)``. It never depends on
which process draws from it or on what was drawn before, so that a run repeats on any carrier and
a resumed run needs no generator state from its first half.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose under the experiment's seed.

    Args:
        seed: The experiment's seed.
        *purpose: Strings and integers that name the stream, e.g. ``"fit", 3, 7``.
    """
    parts = [int(seed), *(p if isinstance(p, str) else int(p) for p in purpose)]
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "big") >> 1


def numpy_rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return a NumPy generator for one purpose (see :func:`derive_seed`)."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def torch_rng(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU torch generator for one purpose (see :func:`derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def seed_everything(seed: int, *purpose: str | int) -> None:
    """Seed Python's, NumPy's and torch's global generators for one purpose.

    Layers such as dropout draw from torch's global generator; call this at the start of every unit
    of work that must repeat.
    """
    value = derive_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)
    # torch.manual_seed would also queue a call, with a stack trace, for devices never used.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(value)


@contextmanager
def keeps_randomness() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's global generators as they were found.

    What seeds them for its own work is wrapped in it, or decorated with it; else a caller who draws
    afterwards would draw the same numbers every time.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
