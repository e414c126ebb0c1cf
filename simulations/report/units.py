"""Numbers as people read them; what is missing is a dash."""

from federation.scores import Score

DASH = "\N{EN DASH}"
_DIGITS = 4  # of a score that is no percentage
_SPACE = "\N{NO-BREAK SPACE}"
_SIZES = ("B", "kB", "MB", "GB", "TB")


def percent(share: float | None) -> str:
    """Return a share as a percentage with one decimal."""
    return DASH if share is None else f"{100 * share:.1f}{_SPACE}%"


def scored(value: float | None, score: Score) -> str:
    """Return a score as a percentage, or with four digits and all of those before its point."""
    if value is None or score.percent:
        return percent(value)
    whole = len(str(int(abs(value))))
    return number(value, max(_DIGITS - whole, 0))


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
