"""Pages from their templates, each put in its place whole."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulations.report.drawing import INK, MUTED, RULE, SHADE


def write_page(
    path: Path, template: str, values: Mapping[str, Any], **filters: Callable[..., Any]
) -> Path:
    """Fill in a template and write the page, which replaces the one before it or fails whole.

    Args:
        path: The file to write; its folder exists.
        template: A file of this folder that extends ``base.html.jinja``.
        values: What the template shows; all text in it is escaped.
        **filters: What the template formats it with.

    Returns:
        The path.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    palette = {"ink": INK, "muted": MUTED, "rule": RULE, "shade": SHADE}
    page = environment.get_template(template).render(values, palette=palette)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(page, encoding="utf-8", newline="\n")
    temporary.replace(path)
    return path
