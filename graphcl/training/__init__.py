"""The one training loop, seeding and devices."""

from graphcl.training.devices import select_device
from graphcl.training.loop import fit
from graphcl.training.seeding import derive_seed, numpy_rng, seed_everything, torch_rng

__all__ = [
    "derive_seed",
    "fit",
    "numpy_rng",
    "seed_everything",
    "select_device",
    "torch_rng",
]
