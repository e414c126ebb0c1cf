"""The one training loop, seeding, devices and models on disk."""

from graphcl.training.checkpoints import load_weights, save_weights
from graphcl.training.clipping import clip_gradients
from graphcl.training.devices import select_device
from graphcl.training.loop import fit
from graphcl.training.seeding import (
    derive_seed,
    keeps_randomness,
    numpy_rng,
    seed_everything,
    torch_rng,
)
from graphcl.training.stopping import fit_best
from graphcl.training.threads import num_threads

__all__ = [
    "clip_gradients",
    "derive_seed",
    "fit",
    "fit_best",
    "keeps_randomness",
    "load_weights",
    "num_threads",
    "numpy_rng",
    "save_weights",
    "seed_everything",
    "select_device",
    "torch_rng",
]
