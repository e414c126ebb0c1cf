"""The one exception family of the project.

A message says what was wrong, where, and what to do about it.
"""


class GraphCLError(Exception):
    """Base of every error that graphcl, federation and simulations raise on purpose."""


class ConfigError(GraphCLError):
    """An experiment file that cannot run: the message holds the path of each offending key."""


class DataError(GraphCLError):
    """Data that break the rules of their container: the message names file, field, row and rule."""


class PartitionError(GraphCLError):
    """A data set that cannot be divided over the clients as asked."""


class ReplyError(GraphCLError):
    """A client's reply that must not enter the aggregate."""


class FederationError(GraphCLError):
    """A federation that cannot go on: too few nodes, too few successes, an unusable checkpoint."""
