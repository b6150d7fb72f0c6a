"""`to_svg`: a figure as a part of a web page."""

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 72
"""Points to the inch, the unit of the lengths in the file."""


_PAGE_COLORS = {
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#666666": "currentColor",
    "#e6e6e6": "var(--grid, #e6e6e6)",
}
"""Black and grays of the figures, as they are on a page of any color: for text and marks, and for lines of a grid."""


def to_svg(figure: "Figure", *, notes: Mapping[float | int, str] | None = None) -> str:
    """Return a figure as an SVG element that stands inside of an HTML page and needs nothing else.

    Black becomes the color of the text around it, and there is no background: the figure follows the page from light
    to dark.

    Args:
        figure: of axes above each other over one linear x axis, if there are notes.
        notes: text by place along x, in the units of the data. Each place gets a column over all axes, halfway to its
            neighbors: an element ``rect`` of the class ``column``, whose ``title`` is the text. Browsers show it where
            the pointer rests.

    Raises:
        ValueError: for notes over a logarithmic axis.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    # Text stays text. A salt makes the names of the marks the same at every call.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "stabjax"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # What a file needs, and a part of a page does not: a size, namespaces, and who made it.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for attribute in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?)\s{attribute}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\sxmlns(?::\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for gray, instead in _PAGE_COLORS.items():
        svg = svg.replace(gray, instead)
    columns = _draw_columns(figure, notes) if notes else ""
    return svg.replace("<svg", '<svg fill="currentColor"', 1).removesuffix("</svg>") + f"{columns}</svg>"


def _draw_columns(figure: "Figure", notes: Mapping[float | int, str]) -> str:
    """Return a transparent rectangle over all axes for every note."""
    axes = figure.axes[0]
    if axes.get_xscale() != "linear":
        raise ValueError(f"expected axes with a linear x axis below the notes, got a {axes.get_xscale()} one")
    inches = figure.get_size_inches()
    boxes = [each.get_position() for each in figure.axes]
    # Figures count from the bottom, pages from the top.
    top, bottom = (
        _POINTS * inches[1] * (1 - edge) for edge in (max(box.y1 for box in boxes), min(box.y0 for box in boxes))
    )
    places = np.array(sorted(notes))
    middles = (places[1:] + places[:-1]) / 2
    low, high = axes.get_xlim()
    edges = np.clip([low, *middles, high], low, high)
    # Data -> a fraction of the axes -> a fraction of the figure -> points.
    edges = _POINTS * inches[0] * (boxes[0].x0 + boxes[0].width * (edges - low) / (high - low))
    return "".join(
        f'<rect class="column" x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}" '
        f'fill="transparent"><title>{escape(notes[place])}</title></rect>'
        for place, left, right in zip(places.tolist(), edges[:-1], edges[1:], strict=True)
    )
