"""The Gaussian mechanism on a client's classes: what is bounded, what is noised, what leaves.

Neighbouring inputs differ by one labelled sample of one client, added or removed, with the encoder
and all other embeddings as they are. A sample lies in one class. With embeddings cut to length
``clip``, it changes the vector of all class sums by at most ``clip`` and that of all counts by 1;
counts are scaled by ``clip``, so that sums and counts together change by at most ``√2 · clip``.
Noise of ``noise_multiplier`` times that is put on both, for all classes, held or not, at once: one
Gaussian mechanism per client and round. All else (thresholds on the noised counts, the division,
the cut of the means) only reads what was noised and costs nothing.

The noise has 64-bit floats and the samples' exact values do not: this is not hardened against
attacks on the rounding of floating-point numbers (Mironov, CCS 2012).

Source:
    Dwork and Roth, The Algorithmic Foundations of Differential Privacy, 2014.
"""

import math
import os

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from federation.privacy.table import Privacy


def clip_rows(values: Tensor, norm: float) -> Tensor:
    """Cut rows to a length; shorter ones stay as they are, 0 leaves all.

    Shapes:
        - **values**, **output**: ``[num_rows, channels]``
    """
    if not norm:
        return values
    lengths = values.norm(dim=1, keepdim=True)
    return values * (norm / lengths.clamp(min=norm))


def gaussian(shape: tuple[int, ...], source: str) -> Tensor:
    """Draw standard normal noise, in float64.

    Args:
        shape: Of the output.
        source: ``system`` draws from the operating system's generator, which nobody can repeat.
            ``seed`` draws from torch's global generator, which a client seeds from the
            experiment's seed, the round and its partition: a server that knows the seed can
            subtract the noise, so that this is for simulations alone.
    """
    if source == "seed":
        return torch.randn(shape, dtype=torch.float64)
    bits = np.frombuffer(os.urandom(8 * math.prod(shape)), dtype=np.uint64) >> np.uint64(12)
    # The middles of 2^52 equal intervals: never 0 or 1, where the quantile is infinite.
    return torch.from_numpy(ndtri((bits + 0.5) / 2.0**52)).reshape(shape)


def class_sums(embedding: Tensor, y: Tensor, num_classes: int, clip: float) -> Tensor:
    """Return what the noise is put on: sums of all classes, and their counts times ``clip``.

    One sample more or less changes it by at most ``√2 · clip``.

    Shapes:
        - **embedding**: ``[num_samples, channels]``, **y**: ``[num_samples]``
        - **output**: ``[num_classes, channels + 1]``, float64
    """
    rows = clip_rows(embedding.double().cpu(), clip)
    rows = torch.cat((rows, torch.full((len(rows), 1), clip, dtype=torch.float64)), 1)
    return rows.new_zeros(num_classes, rows.size(1)).index_add(0, y.cpu(), rows)


def noised_means(
    embedding: Tensor, y: Tensor, num_classes: int, privacy: Privacy
) -> tuple[Tensor, Tensor, Tensor]:
    """Return noised means of all classes whose noised count is enough.

    A class that the client does not hold has a noised count, too, and may be among them.

    Shapes:
        - **embedding**: ``[num_samples, channels]``, **y**: ``[num_samples]``

    Returns:
        Classes ``[released]``, means ``[released, channels]`` in float32, counts ``[released]``.
    """
    sums = class_sums(embedding, y, num_classes, privacy.clip)
    deviation = privacy.noise_multiplier * math.sqrt(2) * privacy.clip
    sums = sums + deviation * gaussian(tuple(sums.shape), privacy.noise)
    support = (sums[:, -1] / privacy.clip).round().long()
    classes = (support >= privacy.min_support).nonzero().flatten()
    means = sums[classes, :-1] / support[classes, None]
    # The true means are no longer than that either.
    return classes, clip_rows(means, privacy.clip).float(), support[classes]
