"""Results to figures: functions of results that return a Matplotlib figure, and draw nothing on the screen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Float

from stabjax.stability import Stability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MARKERS", "layerwise"]

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
_COLOURS = ("0.55", "#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e")


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
    from matplotlib.figure import Figure

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
    figure = Figure(figsize=(max(6.4, 2.2 + 0.27 * count), 8.4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(len(_PANELS), sharex=True)
    for axes, (name, ylabel) in zip(panels, _PANELS, strict=True):
        for colour, (label, given) in zip(_colours(len(named)), named.items(), strict=True):
            _curve(axes, given, name, colour=colour, label=label)
        axes.set_yscale("log")
        axes.set_ylabel(ylabel)
        axes.grid(axis="y", which="major", color="0.9")
        axes.set_axisbelow(True)
    panels[-1].axhline(1, color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    panels[-1].set_xticks(range(count), first.layers, rotation=90, fontsize=7)
    panels[-1].set_xlabel("operation, in order of execution")
    panels[-1].set_xlim(-0.7, count - 0.3)
    _legends(panels[0], tuple(dict.fromkeys(first.kinds)))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _listed(given: Seeds) -> list[Stability]:
    return [given] if isinstance(given, Stability) else list(given)


def _colours(count: int) -> list[str]:
    return [_COLOURS[0], *[_COLOURS[1 + k % (len(_COLOURS) - 1)] for k in range(count - 1)]]


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
