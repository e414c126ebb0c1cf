"""The keys of a configuration that is a dataclass, with what its docstring says of each."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pydantic import ValidationInfo, ValidatorFunctionWrapHandler

from federation.experiment import Scalar
from graphcl.errors import GraphCLError


def describe_config(config: type, prefix: str, *like: type) -> Iterator[tuple[str, Scalar, str]]:
    """Yield every dotted key of a configuration with its default and its meaning.

    Args:
        config: A dataclass.
        prefix: Of its keys, e.g. ``aspect.``.
        like: Configurations whose docstrings say what this one's leaves unsaid.
    """
    meanings: dict[str, str] = {}
    for kind in (*like, *reversed(config.__mro__[:-1])):
        meanings |= _meanings(kind)
    for field in fields(config):
        default: Any = field.default
        yield prefix + field.name, default, meanings.get(field.name, "")


def named_by_key(
    cls: type, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> object:
    """Turn a configuration's own complaint, which begins with a field, into one of a key.

    For the tables of a file, as a validator of mode ``"wrap"``.
    """
    try:
        return handler(value)
    except GraphCLError as error:
        raise ValueError(f"{info.field_name}.{error}") from None


def _meanings(kind: type) -> dict[str, str]:
    """Return what a docstring says of each attribute."""
    found: dict[str, str] = {}
    entries = re.findall(
        r"^ {8}(\w[\w, ]*): (.*(?:\n {12}.*)*)", kind.__doc__ or "", flags=re.MULTILINE
    )
    for names, text in entries:
        plain = re.sub(r":class:`(?:[\w.]*\.)?(\w+)`|``", r"\1", " ".join(text.split()))
        found |= dict.fromkeys(names.split(", "), plain)
    return found
