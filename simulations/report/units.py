"""Numbers as people read them; what is missing is a dash."""

DASH = "\N{EN DASH}"
_SPACE = "\N{NO-BREAK SPACE}"
_SIZES = ("B", "kB", "MB", "GB", "TB")


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return DASH if share is None else f"{100 * share:.1f}{_SPACE}%"


def size(num_bytes: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    power = 0
    while num_bytes >= 999.5 and power < len(_SIZES) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g}{_SPACE}{_SIZES[power]}"


def duration(seconds: float) -> str:
    """Return a time in seconds, from two minutes on in minutes, from two hours on in hours."""
    if seconds < 120:
        return f"{seconds:.1f}{_SPACE}s"
    if seconds < 7200:
        return f"{seconds / 60:.1f}{_SPACE}min"
    return f"{seconds / 3600:.1f}{_SPACE}h"


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with so many decimals."""
    return DASH if value is None else f"{value:.{decimals}f}"
