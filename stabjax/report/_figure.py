"""The figure of one network or several, and what is said where the pointer rests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stabjax import plot
from stabjax.report._measured import Measured, have_same_layers
from stabjax.report._numbers import show, show_interval
from stabjax.stability import Stability

_PAGE_WIDTH = 11.0
"""Inches of the figure on the page, which is drawn as wide as the page is."""
QUANTITIES = (("D", "deformation"), ("G", "noise"), ("R", "relative"))


def draw(several: Sequence[Measured], *, width: float | int | None = None) -> Any:
    """Draw the curves of all networks: by layer where these are the same, by relative depth where they differ.

    Args:
        several: one network or more.
        width: of the figure in inches; by default as wide as it needs.
    """
    if len(several) == 1:
        return plot.layerwise(several[0].result, width=width)
    results = {each.label: each.result for each in several}
    if have_same_layers(several):
        return plot.layerwise(results, width=width)
    return plot.by_depth(results, width=width or 8.0)


def draw_svg(several: Sequence[Measured]) -> str:
    """Return the figure as a part of the page; its columns name the operation, and its numbers."""
    return plot.to_svg(draw(several, width=_PAGE_WIDTH), notes=_notes(several))


def _notes(several: Sequence[Measured]) -> dict[float, str]:
    same = have_same_layers(several)
    notes: dict[float, list[str]] = {}
    for each in several:
        result = each.result
        places = range(len(result.layers)) if same else np.linspace(0, 1, len(result.layers)).tolist()
        for k, place in enumerate(places):
            lines = notes.setdefault(float(place), [])
            if not (lines and same):
                lines.append(f"{result.layers[k]} ({result.kinds[k]})")
            if len(several) > 1:
                lines.append(f"{each.label}:")
            lines += _describe(result, k)
    return {place: "\n".join(lines) for place, lines in notes.items()}


def _describe(result: Stability, k: int) -> list[str]:
    """Return a line for each number of a layer, with its interval."""
    lines = []
    for symbol, name in QUANTITIES:
        value, ends = (np.asarray(getattr(result, attribute))[k] for attribute in (name, f"{name}_interval"))
        lines.append(f"{symbol} = {show(value)} {show_interval(*ends)}".rstrip())
    return lines
