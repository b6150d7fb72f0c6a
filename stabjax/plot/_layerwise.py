"""`layerwise`: stability against depth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from stabjax.plot._figure import COLORS, panels
from stabjax.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve: TypeAlias = Float[np.ndarray, " layers"]
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


def layerwise(results: Seeds | Mapping[str, Seeds], *, title: str = "") -> "Figure":
    """Draw ``D``, ``G`` and ``R`` against depth: one curve per result, one marker per kind of operation.

    A result of one network is drawn with its bootstrap interval over images. Several networks of one architecture are
    drawn as the geometric mean over them, with a band of one standard deviation of the logarithm. Layers whose numbers
    are not defined are left out of the curve. A logarithmic axis has no zero: zeros stand at its foot, as open markers.

    Args:
        results: by label (``{"at initialization": ..., "trained": ...}``), each a `stabjax.stability.Stability`, one
            stacked under `jax.vmap`, or a sequence of them, all with the same layers. The first is drawn in gray. One
            alone needs no label.
        title: over the figure.

    Returns:
        the figure, of three panels over one axis of operations.

    Raises:
        TypeError: for anything but such results.
        ValueError: if there is no result, or their layers differ.
    """
    is_mapping = isinstance(results, Mapping)
    by_label = {label: _as_list(group) for label, group in (results if is_mapping else {"": results}).items()}
    if not by_label or not all(by_label.values()):
        raise ValueError(f"expected at least one result per label, got {[len(group) for group in by_label.values()]}")
    first = next(iter(by_label.values()))[0]
    for label, group in by_label.items():
        for result in group:
            if result.layers != first.layers:
                raise ValueError(
                    f"expected results of one network's layers, got others for {label!r}: {result.layers} instead of "
                    f"{first.layers}; draw different networks in figures of their own"
                )
    count = len(first.layers)
    figure, grid = panels(len(_PANELS), 1, size=(max(6.4, 2.2 + 0.27 * count), 2.8), sharex=True)
    column: list[Axes] = grid[:, 0].tolist()
    colors = _curve_colors(len(by_label)) if is_mapping else [COLORS[1]]
    for axes, (name, ylabel) in zip(column, _PANELS, strict=True):
        seen: set[str] = set()
        for color, (label, group) in zip(colors, by_label.items(), strict=True):
            seen |= _draw_curve(axes, group, name, color=color, label=label)
        _scale_axis(axes, seen, unit=name == "relative")
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", which="major", color="0.9")
        axes.set_axisbelow(True)
    column[-1].set_xticks(range(count), first.layers, rotation=90, fontsize=7)
    column[-1].set_xlabel("operation, in order of execution")
    column[-1].set_xlim(-0.7, count - 0.3)
    _add_legends(column[0], tuple(dict.fromkeys(first.kinds)))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


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


def _draw_curve(axes: "Axes", group: list[Stability], name: str, *, color: str, label: str) -> set[str]:
    """Draw one curve; return what there was in it, of ``positive`` and ``zero``."""
    middle, low, high = _mean_and_band(group, name)
    position, zero = np.arange(len(middle)), middle == 0
    # NaN breaks the line, so nothing is drawn to a zero that the axis does not have.
    positive = np.where(zero, np.nan, middle)
    axes.plot(position, positive, color=color, linewidth=1.2, label=label, zorder=2)
    # Where the upper end is zero or NaN there is nothing to fill on a logarithmic axis.
    band = high > 0
    axes.fill_between(position, np.where(band, low, np.nan), high, color=color, alpha=0.25, linewidth=0, zorder=1)
    kinds = np.asarray(group[0].kinds)
    for kind in dict.fromkeys(group[0].kinds):
        here = kinds == kind
        style: dict[str, Any] = {"color": color, "markersize": 5, "linestyle": "none", "zorder": 3}
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
