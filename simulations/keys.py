"""The keys of a configuration that is a dataclass, with what its docstring says of each."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from federation.experiment import Scalar


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
