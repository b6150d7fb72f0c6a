"""Results to figures: functions of results that return a Matplotlib figure, and draw nothing on the screen.

Figures of one's own start from `panels` and end with `save`, which puts the numbers beside them.
"""

from stabjax.plot._figure import COLORS, panels, plain_ticks, save, shades
from stabjax.plot._layerwise import MARKERS, by_depth, layerwise
from stabjax.plot._names import name_points
from stabjax.plot._svg import to_svg

__all__ = [
    "COLORS",
    "MARKERS",
    "by_depth",
    "layerwise",
    "name_points",
    "panels",
    "plain_ticks",
    "save",
    "shades",
    "to_svg",
]
