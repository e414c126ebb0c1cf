"""A matplotlib figure as SVG inside a page: the page's font and colours, ids of its own.

Every colour used here stands for a CSS variable of the page, so that a plot follows its light and
dark mode; the light value is what matplotlib draws with.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from federation.tables import STRATEGIES

INK, MUTED, RULE, SHADE = "#1f2430", "#69707d", "#dfe3e8", "#4a90d9"
WIDTH = 420  # of every plot, in units of its view box

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "graphcl",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True)
class Look:
    """How a strategy looks in every plot and table.

    Attributes:
        light: Its colour on white.
        dark: Its colour on black.
        marker: Its marker in plots.
        glyph: The same shape as a character.
    """

    light: str
    dark: str
    marker: str
    glyph: str


# Okabe and Ito's colours, which stay apart for colour-blind readers; lighter ones on black.
_LOOKS = (
    Look("#8a6d00", "#f0e442", "s", "\N{BLACK SQUARE}"),
    Look("#009e73", "#2fc99b", "^", "\N{BLACK UP-POINTING TRIANGLE}"),
    Look("#2b8a4b", "#74d69a", "8", "\N{HORIZONTAL BLACK OCTAGON}"),
    Look("#006b5e", "#4fd0bf", "H", "\N{HORIZONTAL BLACK HEXAGON}"),
    Look("#b8578f", "#e59cc4", "v", "\N{BLACK DOWN-POINTING TRIANGLE}"),
    Look("#7a4fb5", "#b99cf0", "<", "\N{BLACK LEFT-POINTING TRIANGLE}"),
    Look("#4f7f1e", "#9fd062", ">", "\N{BLACK RIGHT-POINTING TRIANGLE}"),
    Look("#d55e00", "#ff9042", "D", "\N{BLACK DIAMOND}"),
    Look("#00767d", "#40d5dc", "h", "\N{BLACK HEXAGON}"),
    Look("#0072b2", "#56b4e9", "o", "\N{BLACK CIRCLE}"),
    Look("#9c2f26", "#ff8a80", "P", "\N{HEAVY GREEK CROSS}"),
    Look("#55606e", "#aab4c0", "p", "\N{BLACK PENTAGON}"),
    Look("#3f7d20", "#9bd770", "*", "\N{BLACK STAR}"),
    Look("#a0522d", "#e0a37e", "d", "\N{BLACK LOZENGE}"),
    Look("#1d5c63", "#7cc7cf", "X", "\N{HEAVY MULTIPLICATION X}"),
)
LOOKS = dict(zip(STRATEGIES, _LOOKS, strict=True))


@dataclass(frozen=True)
class Plot:
    """A plot, ready for the page.

    Attributes:
        title: Its heading.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        view_box: The view box of its SVG.
        body: What is inside the SVG.
    """

    title: str
    alt: str
    caption: str
    view_box: str
    body: Markup


def draw(
    name: str,
    title: str,
    alt: str,
    caption: str,
    paint: Callable[[Axes], None],
    height: float = 250,
) -> Plot:
    """Draw a plot; the same data give the same bytes.

    Args:
        name: Sets its ids apart from those of other plots on the page.
        title: Its heading.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        paint: Puts the data on empty axes.
        height: Of the view box.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
        paint(figure.add_subplot())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return Plot(title, alt, caption, f"0 0 {WIDTH} {height:g}", _inline(file.getvalue(), name))


def _inline(svg: str, name: str) -> Markup:
    """Return the inside of an SVG document as a part of the page."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would hold for the page
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"(?<=\n) +", "", body)
    for variable, colour in _variables().items():
        body = body.replace(colour, f"var(--{variable})")
    return Markup(body)  # noqa: S704 - matplotlib escapes what it writes


def _variables() -> dict[str, str]:
    looks = {name: look.light for name, look in LOOKS.items()}
    return {"ink": INK, "muted": MUTED, "rule": RULE, "shade": SHADE, **looks}
