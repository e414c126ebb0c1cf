"""The linear probe: how well a frozen embedding tells the classes of nodes apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphcl.datasets.protocols import as_splits
from graphcl.errors import DataError, GraphCLError
from graphcl.training import numpy_rng, torch_rng


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What :func:`linear_probe` found; every array has one entry per split.

    Attributes:
        val_accuracy: The best validation accuracy, in ``[0, 1]``.
        test_accuracy: Test accuracy at the first epoch of that validation accuracy.  Test labels
            decide nothing about it.
        leaking_test_accuracy: The largest test accuracy over all epochs that tie or raise the best
            validation accuracy so far, if asked for, else None.  It **chooses by test labels** and
            is too high; it is here only for comparison with tables made that way, PolyGCL's among
            them.
        best_epoch: The epoch of ``test_accuracy``; the state after the first step is epoch 1.
        weight_decay: The weight decay in use, chosen on validation accuracy where there were
            several.
    """

    val_accuracy: np.ndarray
    test_accuracy: np.ndarray
    leaking_test_accuracy: np.ndarray | None
    best_epoch: np.ndarray
    weight_decay: np.ndarray

    @property
    def mean(self) -> float:
        """Mean of ``test_accuracy`` over the splits."""
        return float(self.test_accuracy.mean())

    @property
    def std(self) -> float:
        """Population standard deviation of ``test_accuracy`` over the splits."""
        return float(self.test_accuracy.std())

    @property
    def confidence(self) -> float:
        """The 95 % :func:`bootstrap_half_width` of ``mean``."""
        return bootstrap_half_width(self.test_accuracy)


def bootstrap_half_width(
    values: np.ndarray, *, level: float = 0.95, num_samples: int = 1000, seed: int = 0
) -> float:
    """Return the half width of the bootstrap confidence interval of a mean.

    Of the two distances from the mean to the percentile interval's ends, the larger.

    Shapes:
        values: ``[S]``.

    Args:
        values: One number per split.
        level: The share of resampled means inside the interval.
        num_samples: How many times to draw S values with replacement.
        seed: Same seed, same draws.

    Raises:
        GraphCLError: There are no values, or the level is no share.

    Source:
        The "+-" of Chen et al., PolyGCL, ICLR 2024, and of the papers that share its protocol.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not 0 < level < 1 or num_samples < 1:
        raise GraphCLError(
            f"bootstrap_half_width: values of shape {values.shape}, level {level} and num_samples "
            f"{num_samples}; pass at least one value, a level between 0 and 1 and one sample"
        )
    rng = numpy_rng(seed, "bootstrap")
    means = values[rng.integers(len(values), size=(num_samples, len(values)))].mean(axis=1)
    ends = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(np.abs(ends - values.mean()).max())


@torch.no_grad()
def linear_probe(
    embedding: Tensor,
    y: Tensor,
    train_mask: Tensor,
    val_mask: Tensor,
    test_mask: Tensor,
    *,
    epochs: int = 2000,
    lr: float = 0.01,
    weight_decay: float | Sequence[float] = 0.0,
    patience: int | None = None,
    leaking: bool = False,
    standardize: bool = False,
    seed: int = 0,
) -> ProbeResult:
    """Return how well multinomial logistic regression on a frozen embedding does on each split.

    One linear layer per split, full-batch Adam on the mean cross entropy; all splits start from
    the same weights and train at once, none depending on another.

    Shapes:
        embedding: ``[N, D]``; y: ``[N]`` integers; masks: ``[N]`` or ``[N, S]`` booleans.

    Args:
        embedding: One row per node; never changed, no gradient reaches it. Its device does the
            work, in its precision (float32 for half precision).
        y: Class ids from 0; those of nodes outside all masks are not read.
        train_mask: The nodes to train on.
        val_mask: The nodes that choose the epoch and the weight decay.
        test_mask: The nodes to report on.
        epochs: How many steps.
        lr: Adam's learning rate.
        weight_decay: Adam's L2 penalty, on weights and bias. Of several, each split takes the one
            with the best validation accuracy, the earlier of equal ones.
        patience: A split's result is final after so many epochs without a better validation
            accuracy, and training ends when all are; None takes every epoch.
        leaking: Whether to return ``leaking_test_accuracy`` too. It knows no patience, so that all
            epochs are trained for it.
        standardize: Whether to shift and scale each column to mean 0 and standard deviation 1 over
            all N nodes, which takes no labels. Report it where you use it.
        seed: Decides the first weights.

    Raises:
        DataError: The embedding, the labels or the masks do not fit or hold what they must not, a
            split has an empty part, or numbers overflowed in training.
        GraphCLError: A setting is impossible.

    Source:
        The protocol of Chen et al., PolyGCL, ICLR 2024, whose script reports
        ``leaking_test_accuracy``.

    Example:
        >>> y = torch.arange(60) % 3
        >>> part = torch.arange(60) // 20
        >>> masks = [part == i for i in range(3)]
        >>> linear_probe(torch.eye(3)[y], y, *masks, epochs=100).mean
        1.0
    """
    decays = list(weight_decay) if isinstance(weight_decay, Sequence) else [weight_decay]
    if epochs < 1 or not lr > 0 or (patience is not None and patience < 1):
        raise GraphCLError(
            f"linear_probe: epochs is {epochs}, lr {lr} and patience {patience}; all must be "
            "positive (patience may be None)"
        )
    if not decays or not all(0 <= decay < float("inf") for decay in decays):
        raise GraphCLError(
            f"linear_probe: weight_decay is {weight_decay}; pass a number that is not negative, or "
            "a sequence of such"
        )
    z = _check_embedding(embedding)
    splits = as_splits(train_mask, val_mask, test_mask)
    masks = torch.stack([mask.t() for mask in splits]).to(z.device)  # [3, S, N]
    labels = _check_labels(y, masks, len(z)).to(z.device)
    if standardize:
        spread, mean = torch.std_mean(z, dim=0, correction=0)
        z = (z - mean) / torch.where(spread > 0, spread, 1)
    # A node in no mask of any split costs time and changes nothing.
    used = masks.any(0).any(0)
    z, labels, masks = z[used], labels[used], masks[:, :, used]

    runs = [
        _train(
            z,
            labels,
            masks,
            epochs=epochs,
            lr=lr,
            decay=decay,
            patience=epochs if patience is None else patience,
            leaking=leaking,
            seed=seed,
        )
        for decay in decays
    ]
    # [4, S, weight decays]; argmax takes the first of equal ones.
    found = np.stack([run.cpu().numpy() for run in runs], axis=-1)
    chosen = found[0].argmax(-1)
    val, test, leaked, epoch = np.take_along_axis(found, chosen[None, :, None], -1)[..., 0]
    num_val, num_test = masks[1:].sum(-1).cpu().numpy()
    return ProbeResult(
        val_accuracy=val / num_val,
        test_accuracy=test / num_test,
        leaking_test_accuracy=leaked / num_test if leaking else None,
        best_epoch=epoch,
        weight_decay=np.asarray(decays, dtype=np.float64)[chosen],
    )


def _train(
    z: Tensor,
    y: Tensor,
    masks: Tensor,
    *,
    epochs: int,
    lr: float,
    decay: float,
    patience: int,
    leaking: bool,
    seed: int,
) -> Tensor:
    """Train every split's layer; return ``[4, S]``: val, test, leaking test hits, best epoch."""
    _, num_splits, num_nodes = masks.shape
    num_classes = int(y.max()) + 1
    train, held_out = masks[0], masks[1:]
    # One product with the whole embedding gives the logits of all splits and parts.  It wastes the
    # gradient of the rows that a split does not train on, and is still several times faster than a
    # batch of narrow products with each split's rows.  Classes come first, since what is reduced
    # along a short last axis is slow.
    weight, bias = _initial_weights(z, num_classes, num_splits, seed)
    optimizer = torch.optim.Adam([weight, bias], lr=lr, weight_decay=decay, fused=True)
    target = torch.nn.functional.one_hot(y, num_classes).t()[:, None].to(z.dtype)  # [C, 1, N]
    share = train / train.sum(-1, keepdim=True).to(z.dtype)  # [S, N]

    best, strict, leaked, best_epoch = z.new_full((4, num_splits), -1, dtype=torch.int64)
    record = best.clone()  # the best validation hits whatever the patience
    running = torch.ones_like(best, dtype=torch.bool)
    logits = torch.addmm(bias, weight, z.t()).view(num_classes, num_splits, num_nodes)
    for epoch in range(1, epochs + 1):
        error = logits.softmax(0).sub_(target).mul_(share)
        weight.grad = error.view(len(weight), num_nodes) @ z
        bias.grad = error.sum(-1).view(len(weight), 1)
        optimizer.step()
        # The logits after this step judge it and give the next one's gradient.
        logits = torch.addmm(bias, weight, z.t()).view(num_classes, num_splits, num_nodes)
        val, test = (held_out & (logits.max(0).indices == y)).sum(-1)
        better = running & (val > best)
        leaked = torch.where(val >= record, torch.maximum(leaked, test), leaked)
        record = torch.maximum(record, val)
        strict = torch.where(better, test, strict)
        best = torch.where(better, val, best)
        best_epoch = torch.where(better, epoch, best_epoch)
        running = epoch - best_epoch < patience
        if not (leaking or running.any()):
            break
    if not torch.isfinite(logits).all():
        raise DataError(
            f"linear_probe: logits are not finite after epoch {epoch}: rescale the embedding, for "
            "example with standardize=True"
        )
    return torch.stack([best, strict, leaked, best_epoch])


def _initial_weights(
    z: Tensor, num_classes: int, num_splits: int, seed: int
) -> tuple[Tensor, Tensor]:
    # As nn.Linear draws them.  All splits share one draw, so that a split does not depend on which
    # others train beside it.
    bound = z.shape[1] ** -0.5
    generator = torch_rng(seed, "linear_probe")
    one = torch.rand(num_classes, z.shape[1] + 1, generator=generator, dtype=torch.float64)
    both = one.mul_(2).sub_(1).mul_(bound).to(z).repeat_interleave(num_splits, dim=0)
    return both[:, :-1].contiguous(), both[:, -1:].contiguous()


def _check_embedding(embedding: Tensor) -> Tensor:
    if embedding.ndim != 2 or embedding.numel() == 0 or not embedding.is_floating_point():
        raise DataError(
            f"embedding has shape {list(embedding.shape)} and type {embedding.dtype}, must be "
            "[N, D] floating point numbers, N and D at least 1"
        )
    bad = torch.nonzero(~torch.isfinite(embedding))
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            f"embedding[{row}, {column}] is {embedding[row, column].item()} ({len(bad)} such): "
            "the embedding must be finite"
        )
    return embedding.detach().to(torch.promote_types(embedding.dtype, torch.float32))


def _check_labels(y: Tensor, masks: Tensor, num_nodes: int) -> Tensor:
    if y.shape != (num_nodes,) or y.is_floating_point() or y.dtype == torch.bool:
        raise DataError(
            f"y has shape {list(y.shape)} and type {y.dtype}, must be one integer for each of the "
            f"{num_nodes} rows of the embedding"
        )
    if masks.shape[2] != num_nodes:
        raise DataError(
            f"the masks are of {masks.shape[2]} nodes, but the embedding has {num_nodes} rows"
        )
    for field, mask in zip(("train_mask", "val_mask", "test_mask"), masks, strict=True):
        empty = torch.nonzero(~mask.any(-1)).flatten().tolist()
        if empty:
            raise DataError(f"{field} of split {empty[0]} is empty ({len(empty)} such)")
    y = y.to(torch.int64)
    read = masks.any(0).any(0).to(y.device)
    # More classes than nodes are no classes but, say, the numbers of users.
    bad = torch.nonzero(read & ((y < 0) | (y >= num_nodes))).flatten()
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"y[{row}] is {int(y[row])} ({len(bad)} such): class ids run from 0 to C - 1, with no "
            f"more classes than the {num_nodes} nodes"
        )
    return y
