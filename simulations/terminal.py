"""What the commands share: the console, lines that can be copied, and settings typed by hand.

The modules of commands import what computes in their functions: nobody who asks for help, or
mistypes an option, should wait for torch.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.status import Status

from graphcl.errors import ConfigError

if TYPE_CHECKING:
    from federation.experiment import Scalar

console = Console()
COLUMNS = (  # of a progress bar
    TextColumn("{task.description:<9}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TextColumn("{task.fields[figures]}"),
    TimeElapsedColumn(),
)


def say(text: str) -> None:
    """Print a line that is never broken, so that a path in it can be copied."""
    console.print(text, soft_wrap=True, highlight=False)


def loading() -> Status:
    """Show that something is under way while torch is imported, which takes seconds."""
    return console.status("Loading PyTorch")


def check_folder(out: Path, option: str = "--out") -> None:
    """Refuse a folder in which nothing can be written, before anything is computed.

    Args:
        out: Made later, with its parents, if it is not there.
        option: What it was named by.

    Raises:
        ConfigError: It is a file, or lies in one, or nobody may write there.
    """
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{option} {out}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{option} {out}: nothing may be written in {there}; name another folder")


def check_file(out: Path, option: str = "--out") -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Args:
        out: May be there, and is overwritten then.
        option: What it was named by.

    Raises:
        ConfigError: It is a folder, or lies in none in which one may write.
    """
    folder = out.absolute().parent
    if out.is_dir():
        raise ConfigError(f"{option} {out}: this is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"{option} {out}: there is no folder {out.parent}; make it first")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {out}: nothing may be written in {folder}; name another file")


def parse_settings(
    settings: list[str], known: Iterable[tuple[str, object, str]]
) -> "dict[str, Scalar]":
    """Read ``KEY=VALUE`` as ``--set`` takes it.

    Args:
        settings: What was typed.
        known: Key, default and meaning of every key: one that holds text takes what was typed, be
            it a number.

    Raises:
        ConfigError: One has no ``=``.
    """
    texts = {key for key, default, _ in known if isinstance(default, str)}
    found: dict[str, Scalar] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: write KEY=VALUE, e.g. --set run.rounds=5")
        text = value.strip()
        found[key.strip()] = _unquoted(text) if key.strip() in texts else _scalar(text)
    return found


def _scalar(text: str) -> "Scalar":
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return _unquoted(text)


def _unquoted(text: str) -> str:
    """Return what quotes hold, as a TOML value has them."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text
