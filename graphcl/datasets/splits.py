"""Random splits of nodes into training, validation and test parts."""

import numpy as np
import torch

from graphcl.errors import DataError
from graphcl.training import numpy_rng


def split_nodes(
    y: torch.Tensor, train_ratio: float, val_ratio: float, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the nodes of each class at random into training, validation and test parts.

    Args:
        y: Class ids, int64 [N].
        train_ratio: Share of each class to train on, above 0; a class gives at least one node.
        val_ratio: Share of each class to validate on; the two sum to 1 at most.
        seed: Same seed, same split.

    Returns:
        ``train_mask``, ``val_mask``, ``test_mask``, bool [N]; every node is in exactly one.  What
        a mask holds of a class is less than 1.5 nodes off its share.

    Raises:
        DataError: There are no nodes, or the shares are impossible.
    """
    labels = np.asarray(y.cpu())
    if labels.ndim != 1 or len(labels) == 0:
        raise DataError(f"y has shape {list(labels.shape)}, must be [N] with at least one node")
    # Decimal shares that sum to 1 may sum to a little more in binary.
    if not (train_ratio > 0 and val_ratio >= 0 and train_ratio + val_ratio <= 1 + 1e-9):
        raise DataError(
            f"train_ratio {train_ratio} and val_ratio {val_ratio}: train_ratio must be above 0, "
            f"val_ratio not negative, and their sum at most 1"
        )
    rng = numpy_rng(seed, "split")
    masks = np.zeros((3, len(labels)), dtype=bool)
    for label in np.unique(labels):
        nodes = rng.permutation(np.flatnonzero(labels == label))
        train = max(1, round(train_ratio * len(nodes)))
        val = max(train, round((train_ratio + val_ratio) * len(nodes)))
        for mask, part in zip(masks, np.split(nodes, [train, val]), strict=True):
            mask[part] = True
    train_mask, val_mask, test_mask = torch.from_numpy(masks)
    return train_mask, val_mask, test_mask
