"""Metrics of forecasts against observations of which some are missing.

Every metric works in float64, in the unit of the data, and takes the mean over all observed entries
alike, whatever their step, node or channel.  Entries outside the mask are never looked at and may
be NaN.
"""

import torch
from torch import Tensor

from graphcl.errors import GraphCLError


def masked_mae(predicted: Tensor, y: Tensor, mask: Tensor) -> float:
    """Return the mean absolute error over what was observed, in the unit of the data.

    Shapes:
        - **predicted**, **y**: any, the same; **mask**: bool, the same, True where observed

    Raises:
        GraphCLError: If the shapes differ, nothing is observed, or an entry there is not finite.
    """
    predicted, y = _observed("masked_mae", predicted, y, mask)
    return float((predicted - y).abs().mean())


def masked_rmse(predicted: Tensor, y: Tensor, mask: Tensor) -> float:
    """Return the root of the mean squared error over what was observed, in the unit of the data.

    Shapes:
        - **predicted**, **y**: any, the same; **mask**: bool, the same, True where observed

    Raises:
        GraphCLError: If the shapes differ, nothing is observed, or an entry there is not finite.
    """
    predicted, y = _observed("masked_rmse", predicted, y, mask)
    return float((predicted - y).square().mean().sqrt())


def masked_mape(predicted: Tensor, y: Tensor, mask: Tensor, *, floor: float = 0.0) -> float:
    """Return the mean absolute error in percent of the observed, over what is not near zero.

    An error in percent of almost nothing says nothing and outweighs all others, so observations of
    at most ``floor`` in size are left out, as is the habit of the field: 0, the default, leaves out
    exact zeros, the rule for speeds; small flows and counts want a larger one, such as 10 per step.

    Source: Li et al., DCRNN, ICLR 2018, for the rule at 0.

    Shapes:
        - **predicted**, **y**: any, the same; **mask**: bool, the same, True where observed

    Args:
        predicted: The forecast.
        y: The observations.
        mask: Where there is one.
        floor: In the unit of the data; not negative.

    Raises:
        GraphCLError: If ``floor`` is negative or no observation exceeds it, the shapes differ, or
            an observed entry is not finite.
    """
    if not floor >= 0:
        raise GraphCLError(f"masked_mape: floor is {floor}, must not be negative")
    predicted, y = _observed("masked_mape", predicted, y, mask)
    counted = y.abs() > floor
    if not counted.any():
        raise GraphCLError(
            f"masked_mape: none of the {len(y)} observed entries of y exceeds the floor of {floor} "
            "in size; lower it, or use masked_mae"
        )
    return float(100 * ((predicted - y).abs() / y.abs())[counted].mean())


def _observed(metric: str, predicted: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the observed entries of both in float64, after checking them."""
    shapes = [list(values.shape) for values in (predicted, y, mask)]
    if shapes != shapes[:1] * 3:
        raise GraphCLError(
            f"{metric}: the shapes differ (predicted {shapes[0]}, y {shapes[1]}, mask "
            f"{shapes[2]}); give them one shape"
        )
    if mask.dtype != torch.bool:
        raise GraphCLError(f"{metric}: mask is {mask.dtype}, must be bool; True where observed")
    if not mask.any():
        raise GraphCLError(
            f"{metric}: nothing is observed in {mask.numel()} entries; a mean needs at least one"
        )
    for name, values in (("predicted", predicted), ("y", y)):
        bad = (mask & ~values.isfinite()).nonzero()
        if len(bad):
            entry = bad[0].tolist()
            raise GraphCLError(
                f"{metric}: {name}{entry} is {values[tuple(entry)].item()} ({len(bad)} such): must "
                "be finite where the mask is True"
            )
    return predicted[mask].double(), y[mask].double()
