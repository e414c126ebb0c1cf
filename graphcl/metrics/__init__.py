"""The one place where a metric is defined."""

from graphcl.metrics.classification import accuracy

__all__ = ["accuracy"]
