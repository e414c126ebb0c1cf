"""What the commands share: the console, lines that can be copied, and settings typed by hand.

The modules of commands import what computes in their functions: nobody who asks for help, or
mistypes an option, should wait for torch.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn

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
        found[key.strip()] = text if key.strip() in texts else _scalar(text)
    return found


def _scalar(text: str) -> "Scalar":
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("\"'")
