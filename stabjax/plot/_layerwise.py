"""`layerwise` and `by_depth`: stability against depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Num

from stabjax.plot._figure import COLORS, panels, plain_ticks
from stabjax.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve: TypeAlias = Num[np.ndarray, " layers"]
Seeds: TypeAlias = Stability | Sequence[Stability]

MARKERS = {
    "input": "*",
    "conv": "s",
    "norm": "D",
    "activation": "^",
    "pool": "v",
    "dense": "o",
    "attention": "h",
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

_NAME_PITCH = 0.27
"""Inches between the names of operations, where the figure is as wide as they need."""
_NAME_HEIGHT = 0.13
"""Inches that a name needs at least."""
_NAME_LENGTH = 32
"""Letters of a name in a figure of a given width."""


def layerwise(results: Seeds | Mapping[str, Seeds], *, title: str = "", width: float | int | None = None) -> "Figure":
    """Draw ``D``, ``G`` and ``R`` against depth: one curve per result, one marker per kind of operation.

    A result of one network is drawn with its bootstrap interval over images. Several networks of one architecture are
    drawn as the geometric mean over them, with a band of one standard deviation of the logarithm. Layers whose numbers
    are not defined are left out of the curve. A logarithmic axis has no zero: zeros stand at its foot, as open markers.

    Args:
        results: by label (``{"at initialization": ..., "trained": ...}``), each a `stabjax.stability.Stability`, one
            stacked under `jax.vmap`, or a sequence of them, all with the same layers. The first is drawn in gray. One
            alone needs no label.
        title: over the figure.
        width: of the figure, in inches; names of operations are then left out and shortened so that all have room. By
            default it is as wide as all names need.

    Returns:
        the figure, of three panels over one axis of operations: the first stands at 0, the second at 1.

    Raises:
        TypeError: for anything but such results.
        ValueError: if there is no result, or their layers differ.
    """
    by_label = _by_label(results)
    first = next(iter(by_label.values()))[0]
    _check_layers(by_label, dict.fromkeys(by_label, first.layers), "; draw them against depth, plot.by_depth")
    count = len(first.layers)
    figure, column = _draw_panels(
        by_label,
        {label: np.arange(count) for label in by_label},
        width=width or max(6.4, 2.2 + _NAME_PITCH * count),
        has_labels=isinstance(results, Mapping),
    )
    names, step = list(first.layers), 1
    if width is not None:
        names = [_shorten(name) for name in names]
        step = max(1, round(np.ceil(count * _NAME_HEIGHT / max(width - 1, 1))))
    column[-1].set_xticks(range(0, count, step), names[::step], rotation=90, fontsize=7)
    column[-1].set_xlabel("operation, in order of execution")
    column[-1].set_xlim(-0.7, count - 0.3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def by_depth(results: Mapping[str, Seeds], *, title: str = "", width: float | int = 6.4) -> "Figure":
    """Draw ``D``, ``G`` and ``R`` of networks with different layers against relative depth.

    The images stand at 0 and the output at 1; between them the operations of each network stand at equal distances.
    Curves, bands and markers are those of `layerwise`.

    Args:
        results: by label, each a `stabjax.stability.Stability`, one stacked under `jax.vmap`, or a sequence of them
            with the same layers. The first is drawn in gray.
        title: over the figure.
        width: of the figure, in inches.

    Returns:
        the figure, of three panels over one axis of relative depth.

    Raises:
        TypeError: for anything but such results.
        ValueError: if there is no result, or those of one label differ in their layers.
    """
    by_label = _by_label(results)
    _check_layers(by_label, {label: group[0].layers for label, group in by_label.items()}, "; give each its own label")
    places = {label: np.linspace(0, 1, len(group[0].layers)) for label, group in by_label.items()}
    figure, column = _draw_panels(by_label, places, width=width, has_labels=True)
    column[-1].set_xlabel("relative depth: images at 0, output at 1")
    column[-1].set_xlim(-0.02, 1.02)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _by_label(results: Seeds | Mapping[str, Seeds]) -> dict[str, list[Stability]]:
    by_label = {
        label: _as_list(group) for label, group in (results if isinstance(results, Mapping) else {"": results}).items()
    }
    if not by_label or not all(by_label.values()):
        raise ValueError(f"expected at least one result per label, got {[len(group) for group in by_label.values()]}")
    return by_label


def _check_layers(
    by_label: Mapping[str, list[Stability]], expected: Mapping[str, tuple[str, ...]], remedy: str
) -> None:
    for label, group in by_label.items():
        for result in group:
            if result.layers != expected[label]:
                raise ValueError(
                    f"expected results of one network's layers, got others for {label!r}: {result.layers} instead of "
                    f"{expected[label]}{remedy}"
                )


def _draw_panels(
    by_label: Mapping[str, list[Stability]], places: Mapping[str, Curve], *, width: float | int, has_labels: bool
) -> tuple["Figure", list["Axes"]]:
    """Draw the curves of every label at its places along x, and the legends; return the figure and its axes."""
    figure, grid = panels(len(_PANELS), 1, size=(width, 2.8), sharex=True)
    column: list[Axes] = grid[:, 0].tolist()
    colors = _curve_colors(len(by_label)) if has_labels else [COLORS[1]]
    # Points between two operations: markers leave some of it free, down to a size at which they can be told apart.
    pitch = 72 * (width - 1) / max(map(len, places.values()))
    size = min(5.0, max(3.0, 0.75 * pitch))
    for axes, (name, ylabel) in zip(column, _PANELS, strict=True):
        seen: set[str] = set()
        for color, (label, group) in zip(colors, by_label.items(), strict=True):
            seen |= _draw_curve(axes, group, name, places[label], color=color, label=label, size=size)
        _scale_axis(axes, seen, unit=name == "relative")
        if "positive" in seen:
            plain_ticks(axes.yaxis)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", which="major", color="0.9")
        axes.set_axisbelow(True)
    kinds = tuple(dict.fromkeys(kind for group in by_label.values() for kind in group[0].kinds))
    _add_legends(column[0], kinds)
    return figure, column


def _shorten(name: str) -> str:
    """Return the end of a long name, which tells operations apart."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def _as_list(group: Any) -> list[Stability]:
    """Return the results of several networks, one by one."""
    if not isinstance(group, Stability):
        if isinstance(group, str) or not isinstance(group, Sequence):
            raise TypeError(
                f"expected a stabjax.stability.Stability or a sequence of them, got {type(group).__name__}: give what "
                "probe.stability returns, or {label: result}"
            )
        return [each for one in group for each in _as_list(one)]
    if np.ndim(group.deformation) == 1:
        return [group]
    # One axis is taken off per round, until each result has layers alone.
    stacked = jax.tree.map(np.asarray, group)
    return [
        each for k in range(len(stacked.deformation)) for each in _as_list(jax.tree.map(lambda x, k=k: x[k], stacked))
    ]


def _curve_colors(count: int) -> list[str]:
    """Return a color per curve, gray for the first."""
    return [COLORS[0], *[COLORS[1 + k % (len(COLORS) - 1)] for k in range(count - 1)]]


def _mean_and_band(group: list[Stability], name: str) -> tuple[Curve, Curve, Curve]:
    """Return the curve, and the lower and upper end of its band; zero in the curve is zero."""
    # (networks, layers); NaN where a number is not defined or cannot be drawn.
    values = np.stack([np.asarray(getattr(result, name), np.float64) for result in group])
    values = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
    if len(group) == 1:
        interval = np.asarray(getattr(group[0], f"{name}_interval"), np.float64)
        return values[0], interval[:, 0], interval[:, 1]
    # NaN for zero as well, without a warning; its mean and deviation are NaN where one network has none.
    logarithm = np.log(values, out=np.full_like(values, np.nan), where=values > 0)
    middle, deviation = logarithm.mean(0), logarithm.std(0, ddof=1)
    # One zero makes a geometric mean of zero, which has no band.
    zero = np.any(values == 0, axis=0) & ~np.any(np.isnan(values), axis=0)
    return np.where(zero, 0, np.exp(middle)), np.exp(middle - deviation), np.exp(middle + deviation)


def _draw_curve(
    axes: "Axes", group: list[Stability], name: str, position: Curve, *, color: str, label: str, size: float
) -> set[str]:
    """Draw one curve; return what there was in it, of ``positive`` and ``zero``."""
    middle, low, high = _mean_and_band(group, name)
    zero = middle == 0
    # NaN breaks the line, so nothing is drawn to a zero that the axis does not have.
    positive = np.where(zero, np.nan, middle)
    axes.plot(position, positive, color=color, linewidth=1.2, label=label, zorder=2)
    # Where the upper end is zero or NaN there is nothing to fill on a logarithmic axis.
    band = high > 0
    axes.fill_between(position, np.where(band, low, np.nan), high, color=color, alpha=0.25, linewidth=0, zorder=1)
    kinds = np.asarray(group[0].kinds)
    for kind in dict.fromkeys(group[0].kinds):
        here = kinds == kind
        style: dict[str, Any] = {"color": color, "markersize": size, "linestyle": "none", "zorder": 3}
        marker = MARKERS.get(kind, "x")
        axes.plot(position[here], positive[here], marker, **style)
        if np.any(here & zero):
            foot = axes.get_xaxis_transform()  # data along x, the panel along y
            at = position[here & zero]
            # At height 0 of the panel, whatever the limits of its axis become.
            axes.plot(at, 0 * at, marker, transform=foot, markerfacecolor="white", clip_on=False, **style)
    found = {"positive": positive > 0, "zero": zero}
    return {what for what, where in found.items() if np.any(where)}


def _scale_axis(axes: "Axes", seen: set[str], *, unit: bool) -> None:
    """Scale a panel for what is drawn in it, and say what has no place on a logarithmic axis."""
    if "positive" in seen:
        axes.set_yscale("log")
        if unit:
            axes.axhline(1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    else:
        # Only zeros, or nothing: without a positive number a logarithmic axis has no limits.
        axes.set_ylim(0, 1)
        axes.set_yticks([0] if "zero" in seen else [])
    text = "" if seen == {"positive"} else "at the foot: 0" if "zero" in seen else "undefined in all layers"
    axes.text(0.99, 0.96, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color="0.4")


def _add_legends(axes: "Axes", kinds: tuple[str, ...]) -> None:
    """Put a legend of the curves to the left above the panel, and one of the kinds to the right."""
    from matplotlib.lines import Line2D

    if axes.get_legend_handles_labels()[0]:  # one result alone needs no name
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
