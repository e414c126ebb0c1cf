"""Metrics for predicted counts, such as the outages of a storm.

Every metric works in float64 and takes counts of any real or integer type.
"""

import torch
from torch import Tensor

from graphcl.errors import GraphCLError


def mean_absolute_error(predicted: Tensor, y: Tensor) -> float:
    """Return the mean distance from the counts, in their unit.

    Shapes:
        - **predicted**, **y**: any, the same

    Raises:
        GraphCLError: If the shapes differ, nothing is given, or an entry is not finite.
    """
    predicted, y = _checked("mean_absolute_error", predicted=predicted, y=y)
    return float((predicted - y).abs().mean())


def root_mean_squared_error(predicted: Tensor, y: Tensor) -> float:
    """Return the root of the mean squared distance from the counts, in their unit.

    Shapes:
        - **predicted**, **y**: any, the same

    Raises:
        GraphCLError: If the shapes differ, nothing is given, or an entry is not finite.
    """
    predicted, y = _checked("root_mean_squared_error", predicted=predicted, y=y)
    return float((predicted - y).square().mean().sqrt())


def mape(predicted: Tensor, y: Tensor) -> float:
    """Return the mean absolute error in percent of the total, over events with outages.

    Shapes:
        - **predicted**, **y**: ``[num_events]``, totals

    Raises:
        GraphCLError: If no event has outages, or the totals are unlike, missing or not finite.
    """
    predicted, y = _checked("mape", predicted=predicted, y=y)
    hit = y > 0
    if not hit.any():
        raise GraphCLError(f"mape: y is 0 in all {len(y)} events; give one event with outages")
    return float(100 * ((predicted - y).abs() / y)[hit].mean())


def r2(predicted: Tensor, y: Tensor) -> float:
    """Return the share of the totals' variance that is explained, at most 1.

    It is 0 for the mean of the totals and negative for what is worse; hydrologists call it the
    Nash-Sutcliffe efficiency.

    Shapes:
        - **predicted**, **y**: ``[num_events]``, totals

    Raises:
        GraphCLError: If there are fewer than two different totals, or the totals are unlike,
            missing or not finite.
    """
    predicted, y = _checked("r2", predicted=predicted, y=y)
    if y.min() == y.max():
        raise GraphCLError(
            f"r2: y is {float(y[0])} in all {len(y)} events; give two events with unlike totals"
        )
    return float(1 - (predicted - y).square().sum() / (y - y.mean()).square().sum())


def crmse(predicted: Tensor, y: Tensor) -> float:
    """Return the centred root mean squared error: that of the totals without their bias.

    Source: Yang, Cerrai and Anagnostou, *Forecasting* 2021, 3(3), 31.

    Shapes:
        - **predicted**, **y**: ``[num_events]``, totals

    Raises:
        GraphCLError: If the totals are unlike, missing or not finite.
    """
    predicted, y = _checked("crmse", predicted=predicted, y=y)
    difference = predicted - y
    return float((difference - difference.mean()).square().mean().sqrt())


def ncrmse(predicted: Tensor, y: Tensor) -> float:
    """Return :func:`crmse` in percent of the mean total.

    Shapes:
        - **predicted**, **y**: ``[num_events]``, totals

    Raises:
        GraphCLError: If the mean total is not positive, or the totals are unlike, missing or not
            finite.
    """
    mean = float(_checked("ncrmse", predicted=predicted, y=y)[1].mean())
    if mean <= 0:
        raise GraphCLError(f"ncrmse: y has the mean {mean}; give one event with outages")
    return 100 * crmse(predicted, y) / mean


def morisita_horn(predicted: Tensor, y: Tensor) -> float:
    """Return how alike two patterns over locations are, in [0, 1], whatever their totals.

    It is 1 for proportional counts and 0 where no location has a share of both.  Two patterns
    without any outage are alike (1); one such pattern is unlike any other (0).

    Source: Horn, *The American Naturalist* 1966, 100(914).

    Shapes:
        - **predicted**, **y**: ``[num_locations]``, none negative

    Raises:
        GraphCLError: If the shapes differ, nothing is given, or an entry is negative or not finite.
    """
    predicted, y = _counts("morisita_horn", predicted=predicted, y=y)
    totals = predicted.sum(), y.sum()
    if not all(totals):
        return float(totals[0] == totals[1])
    p, q = predicted / totals[0], y / totals[1]
    return float(2 * (p * q).sum() / (p.square() + q.square()).sum())


def interval_coverage(low: Tensor, high: Tensor, y: Tensor) -> float:
    """Return the share of counts inside their interval, whose bounds belong to it.

    Shapes:
        - **low**, **high**, **y**: any, the same

    Raises:
        GraphCLError: If ``low`` is above ``high``, the shapes differ, nothing is given, or an
            entry is not finite.
    """
    low, high, y = _checked("interval_coverage", low=low, high=high, y=y)
    _check_order("interval_coverage", low, high)
    return float(((low <= y) & (y <= high)).double().mean())


def _checked(metric: str, **given: Tensor) -> list[Tensor]:
    """Return what a metric was given in float64, after checking what all metrics ask of it."""
    shapes = {name: list(values.shape) for name, values in given.items()}
    if len(set(map(tuple, shapes.values()))) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise GraphCLError(f"{metric}: the shapes differ ({listed}); give them one shape")
    for name, values in given.items():
        if not values.numel():
            raise GraphCLError(f"{metric}: {name} is empty; a mean needs at least one entry")
        _refuse(metric, name, values, ~torch.isfinite(values), "must be finite; leave it out")
    return [values.double() for values in given.values()]


def _counts(metric: str, **given: Tensor) -> list[Tensor]:
    checked = _checked(metric, **given)
    for name, values in zip(given, checked, strict=True):
        _refuse(metric, name, values, values < 0, "must not be negative; clamp it")
    return checked


def _refuse(metric: str, name: str, values: Tensor, bad: Tensor, rule: str) -> None:
    if bad.any():
        entry = torch.nonzero(bad)[0].tolist()
        value = values[tuple(entry)].item()
        raise GraphCLError(f"{metric}: {name}{entry} is {value} ({int(bad.sum())} such): {rule}")


def _check_order(metric: str, low: Tensor, high: Tensor) -> None:
    bad = low > high
    if bad.any():
        entry = tuple(torch.nonzero(bad)[0].tolist())
        raise GraphCLError(
            f"{metric}: low{list(entry)} is {low[entry].item()}, above high, {high[entry].item()} "
            f"({int(bad.sum())} such): swap the bounds"
        )
