"""`name_points`: names beside points."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def name_points(axes: "Axes", points: Mapping[str, tuple[float, float]], *, size: float = 6.5) -> None:
    """Write names beside points, where they cover neither points nor each other nor leave the axes.

    Each name takes the first free place around its point; if there is none, one that may be covered.

    Args:
        axes: scaled and drawn on already; later changes of scale undo the arrangement.
        points: place by name, in the units of the data. Points that are not finite are left out, and those that a
            logarithmic axis has no place for, as zero.
        size: of the letters.

    Raises:
        ValueError: if the axes belong to no figure.
    """
    from matplotlib.text import Text

    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("expected axes of a figure, got axes that were removed from theirs")
    figure.draw_without_rendering()  # before that, nothing has its place
    frame = np.array(axes.get_window_extent().extents)
    lowest = [0 if scale == "log" else -np.inf for scale in (axes.get_xscale(), axes.get_yscale())]
    drawable = {name: xy for name, xy in points.items() if np.all(np.isfinite(xy)) and np.all(np.greater(xy, lowest))}
    at = {name: axes.transData.transform(xy) for name, xy in drawable.items()}
    occupied = [np.concatenate([xy - 4, xy + 4]) for xy in at.values()]
    if (legend := axes.get_legend()) is not None:
        occupied.append(np.array(legend.get_window_extent().extents))

    def cost(box: np.ndarray) -> float:
        """Add the area covered of other boxes, and how far the box leaves the axes."""
        sides = [np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) for other in occupied]
        outside = np.maximum(frame[:2] - box[:2], 0) + np.maximum(box[2:] - frame[2:], 0)
        return float(sum(np.prod(np.maximum(side, 0)) for side in sides) + 100 * np.sum(outside))

    for name in at:
        candidates: list[tuple[float, Any, np.ndarray]] = []
        for offset, horizontal, vertical in _PLACES:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"} if max(map(abs, offset)) > 8 else None
            text = axes.annotate(
                name,
                points[name],
                xytext=offset,
                textcoords="offset points",
                fontsize=size,
                ha=horizontal,
                va=vertical,
                arrowprops=line,
            )
            text.get_window_extent()  # moves the name to its place; what it gives holds the line too
            box = np.array(Text.get_window_extent(text).extents)
            candidates.append((cost(box), text, box))
            if candidates[-1][0] == 0:
                break
        best = min(candidates, key=lambda candidate: candidate[0])
        for candidate in candidates:
            if candidate is not best:
                candidate[1].remove()
        occupied.append(best[2])


_PLACES = tuple(
    ((far * x, far * y), horizontal, vertical)
    for far in (1.0, 1.8, 2.8, 4.0)
    for x, y, horizontal, vertical in (
        (5, 3, "left", "bottom"),
        (5, -3, "left", "top"),
        (-5, 3, "right", "bottom"),
        (-5, -3, "right", "top"),
        (0, 6, "center", "bottom"),
        (0, -6, "center", "top"),
    )
)
"""Offsets of a name from its point, in points, and which of its sides is there."""
