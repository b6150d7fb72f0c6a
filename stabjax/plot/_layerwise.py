"""Results to figures: functions of results that return a Matplotlib figure, and draw nothing on the screen.

Figures of one's own start from `panels` and end with `save`, which puts the numbers beside them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float

from stabjax.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MARKERS", "layerwise", "name_points", "panels", "plain_ticks", "save", "shades"]

Curve: TypeAlias = Float[np.ndarray, " layers"]
Seeds: TypeAlias = Stability | Sequence[Stability]

MARKERS = {
    "input": "*",
    "conv": "s",
    "norm": "D",
    "activation": "^",
    "pool": "v",
    "dense": "o",
    "residual": "P",
    "other": "x",
    "output": "*",
}
"""Marker of each kind of operation."""

_PANELS = (
    ("deformation", "deformation stability  $D$"),
    ("noise", "noise stability  $G$"),
    ("relative", "relative stability  $R = D/G$"),
)
COLOURS = ("0.55", "#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e", "#d35ca8")
"""Grey for what is compared with, then one colour per curve."""


def layerwise(results: Mapping[str, Seeds], *, title: str = "") -> "Figure":
    """``D``, ``G`` and ``R`` against depth: one curve per result, one marker per kind of operation.

    A result of one network is drawn with its bootstrap interval over images. Several networks of one architecture are
    drawn as the geometric mean over them, with a band of one standard deviation of the logarithm. Layers whose numbers
    are not defined are left out of the curve.

    Args:
        results: by label (``{"at initialisation": ..., "trained": ...}``), each a `stabjax.stability.Stability` or a
            sequence of them, all with the same layers. The first is drawn in grey.
        title: over the figure.

    Returns:
        the figure, of three panels over one axis of operations.

    Raises:
        ValueError: if there is no result, or their layers differ.
    """
    named = {label: _listed(given) for label, given in results.items()}
    if not named or not all(named.values()):
        raise ValueError(f"expected at least one result per label, got {[len(given) for given in named.values()]}")
    first = next(iter(named.values()))[0]
    for label, given in named.items():
        for result in given:
            if result.layers != first.layers or np.ndim(result.deformation) != 1:
                raise ValueError(
                    f"expected results of one network's layers, got others for {label!r}: {result.layers} instead of "
                    f"{first.layers}; draw different networks in figures of their own"
                )
    count = len(first.layers)
    figure, grid = panels(len(_PANELS), 1, size=(max(6.4, 2.2 + 0.27 * count), 2.8), sharex=True)
    column: list[Axes] = grid[:, 0].tolist()
    for axes, (name, ylabel) in zip(column, _PANELS, strict=True):
        for colour, (label, given) in zip(_colours(len(named)), named.items(), strict=True):
            _curve(axes, given, name, colour=colour, label=label)
        axes.set_yscale("log")
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", which="major", color="0.9")
        axes.set_axisbelow(True)
    column[-1].axhline(1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    column[-1].set_xticks(range(count), first.layers, rotation=90, fontsize=7)
    column[-1].set_xlabel("operation, in order of execution")
    column[-1].set_xlim(-0.7, count - 0.3)
    _legends(column[0], tuple(dict.fromkeys(first.kinds)))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def name_points(axes: "Axes", points: Mapping[str, tuple[float, float]], *, size: float = 6.5) -> None:
    """Write names beside points, where they cover neither points nor each other nor leave the axes.

    Each name takes the first free place around its point; if there is none, one that may be covered.

    Args:
        axes: scaled and drawn on already; later changes of scale undo the arrangement.
        points: place by name, in the units of the data. Points that are not finite are left out.
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
    at = {name: axes.transData.transform(xy) for name, xy in points.items() if np.all(np.isfinite(xy))}
    taken = [np.concatenate([xy - 4, xy + 4]) for xy in at.values()]
    if (legend := axes.get_legend()) is not None:
        taken.append(np.array(legend.get_window_extent().extents))

    def cost(box: np.ndarray) -> float:
        sides = [np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) for other in taken]
        outside = np.maximum(frame[:2] - box[:2], 0) + np.maximum(box[2:] - frame[2:], 0)
        return float(sum(np.prod(np.maximum(side, 0)) for side in sides) + 100 * np.sum(outside))

    for name in at:
        tried: list[tuple[float, Any, np.ndarray]] = []
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
            tried.append((cost(box), text, box))
            if tried[-1][0] == 0:
                break
        best = min(tried, key=lambda each: each[0])
        for each in tried:
            if each is not best:
                each[1].remove()
        taken.append(best[2])


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


def panels(
    rows: int, columns: int, *, size: tuple[float, float] = (4.2, 3.2), **options: Any
) -> tuple["Figure", np.ndarray]:
    """A figure of equal panels that belongs to no window.

    Args:
        rows: panels above each other.
        columns: panels side by side.
        size: width and height of one panel, in inches.
        **options: what Matplotlib's ``Figure.subplots`` takes (``sharex``, ``sharey``, ``gridspec_kw``, ...).

    Returns:
        the figure, and its axes as an array ``(rows, columns)``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def plain_ticks(axis: "Axis") -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade, or closer, as plain numbers.

    An axis of many decades, or of less than two such marks, is left as it is.

    Args:
        axis: ``axes.xaxis`` or ``axes.yaxis``, scaled and drawn on already.
    """
    from matplotlib.ticker import NullFormatter

    low, high = axis.get_view_interval()
    if high > 300 * low:
        return
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [digit * decade for decade in decades for digit in digits if low <= digit * decade <= high]
        if len(ticks) > 2:
            break
    if len(ticks) < 2:
        return
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def save(figure: "Figure", path: Path | str, record: Mapping[str, Any]) -> str:
    """Write a figure as PNG and PDF, and its numbers beside it as JSON.

    Args:
        figure: what is drawn.
        path: without suffix; folders that are missing are made.
        record: the numbers, and all it takes to draw them again: settings and versions. Not-a-number is written as
            null, which every reader of JSON understands.

    Returns:
        a line that says what was written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = figure.get_layout_engine()
    for suffix in ("png", "pdf"):
        figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=130)
        figure.set_layout_engine("none")  # laid out once: both files show the same
    figure.set_layout_engine(engine)
    text = json.dumps(_plain(record), indent=1, allow_nan=False)
    path.with_name(f"{path.name}.json").write_text(text + "\n")
    return f"figure and numbers: {path}.png, .pdf, .json"


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Colours from dark to light for curves in an order, such as strengths or times.

    Args:
        count: number of curves.
    """
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * k / max(count - 1, 1)) for k in range(count)]


def _plain(value: Any) -> Any:
    """As JSON has it: arrays as lists, not-a-number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return _plain(np.asarray(value).tolist())


def _listed(given: Seeds) -> list[Stability]:
    return [given] if isinstance(given, Stability) else list(given)


def _colours(count: int) -> list[str]:
    return [COLOURS[0], *[COLOURS[1 + k % (len(COLOURS) - 1)] for k in range(count - 1)]]


def _middle_and_band(given: list[Stability], name: str) -> tuple[Curve, Curve, Curve]:
    """Curve, and the lower and upper end of its band."""
    values = np.stack([np.asarray(getattr(result, name), np.float64) for result in given])
    valid = np.stack([np.asarray(result.valid) for result in given])
    values = np.where(valid & (values > 0), values, np.nan)
    if len(given) == 1:
        interval = np.asarray(getattr(given[0], f"{name}_interval"), np.float64)
        return values[0], interval[:, 0], interval[:, 1]
    logarithm = np.log(values)
    middle, deviation = logarithm.mean(0), logarithm.std(0, ddof=1)
    return np.exp(middle), np.exp(middle - deviation), np.exp(middle + deviation)


def _curve(axes: "Axes", given: list[Stability], name: str, *, colour: str, label: str) -> None:
    middle, low, high = _middle_and_band(given, name)
    position = np.arange(len(middle))
    axes.plot(position, middle, color=colour, linewidth=1.2, label=label, zorder=2)
    axes.fill_between(position, low, high, color=colour, alpha=0.25, linewidth=0, zorder=1)
    kinds = np.asarray(given[0].kinds)
    for kind in dict.fromkeys(given[0].kinds):
        here = kinds == kind
        marker = MARKERS.get(kind, "x")
        axes.plot(position[here], middle[here], marker, color=colour, markersize=5, linestyle="none", zorder=3)


def _legends(axes: "Axes", kinds: tuple[str, ...]) -> None:
    from matplotlib.lines import Line2D

    curves = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False, fontsize=9)
    axes.add_artist(curves)
    handles = [
        Line2D([], [], color="0.2", marker=MARKERS.get(kind, "x"), linestyle="none", markersize=5, label=kind)
        for kind in kinds
        if kind != "output"
    ]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1, 1.0),
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        handletextpad=0.1,
        columnspacing=0.9,
    )
