"""What the tables of a configuration are made of: keys with rules, and lists inside a string."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def key(default: Any, meaning: str, **rules: Any) -> Any:
    """Declare a key: its default, its meaning for ``graphcl keys``, and its rules."""
    return Field(default, description=meaning, **rules)


class Table(BaseModel):
    """A table of the experiment file: frozen, typed, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans(cls, value: object, info: ValidationInfo) -> object:
        """Tell switches from numbers: Python takes true and false for 1 and 0."""
        switch = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) != switch:
            raise ValueError(f"must {'' if switch else 'not '}be true or false")
        return value


def known_names(text: str, known: tuple[str, ...], what: str) -> str:
    """Check a comma-separated list of names; return it in its normal form."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"unknown {what} '{name}'{hint} (known: {', '.join(known)})")
    return ", ".join(names)


def listed(text: str) -> str:
    """Return a comma-separated list in its normal form."""
    return ", ".join(name.strip() for name in text.split(",") if name.strip())


def pairs(text: str) -> str:
    """Check a comma-separated list of pairs ``a=b``; return it in its normal form."""
    found = [[part.strip() for part in pair.split("=")] for pair in listed(text).split(", ")]
    for pair in found:
        if pair != [""] and (len(pair) != 2 or not all(pair)):
            raise ValueError(f"write pairs such as 'event=storm, district=city', not '{pair[0]}'")
    return ", ".join("=".join(pair) for pair in found)


def split_pairs(text: str) -> dict[str, str]:
    """Return the pairs of :func:`pairs` by their first half."""
    return dict(pair.split("=") for pair in text.split(", ") if pair)
