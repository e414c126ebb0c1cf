"""The one place where a metric is defined."""

from graphcl.metrics.classification import accuracy, roc_auc

__all__ = ["accuracy", "roc_auc"]
