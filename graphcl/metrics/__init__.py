"""The one place where a metric is defined."""

from graphcl.metrics.classification import accuracy, roc_auc
from graphcl.metrics.counts import (
    crmse,
    interval_coverage,
    mape,
    mean_absolute_error,
    morisita_horn,
    ncrmse,
    r2,
    root_mean_squared_error,
)
from graphcl.metrics.forecasts import masked_mae, masked_mape, masked_rmse

__all__ = [
    "accuracy",
    "crmse",
    "interval_coverage",
    "mape",
    "masked_mae",
    "masked_mape",
    "masked_rmse",
    "mean_absolute_error",
    "morisita_horn",
    "ncrmse",
    "r2",
    "roc_auc",
    "root_mean_squared_error",
]
