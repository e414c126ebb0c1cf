"""The one exception family of the project.

A message says what was wrong, where, and what to do about it.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints


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


def check_fields(
    config: Any, names: Sequence[str], allowed: Callable[[float], bool], rule: str
) -> None:
    """Refuse numbers of a configuration that break a rule.

    Raises:
        GraphCLError: The message names the field, its value and the rule.
    """
    for name in names:
        value = getattr(config, name)
        if not allowed(value):
            raise GraphCLError(f"{name} is {value}, must be {rule}")


def check_choices(config: Any) -> None:
    """Refuse what the ``Literal`` type of a configuration's field does not offer.

    Raises:
        GraphCLError: The message names the field, its value and the choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal and getattr(config, name) not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise GraphCLError(f"{name} is {getattr(config, name)!r}, must be one of {choices}")
