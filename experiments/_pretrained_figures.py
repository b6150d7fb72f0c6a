"""The figures of `experiments.pretrained`: D, G and R block by block, and R near the output."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import stabjax as sj

ERRORS: Mapping[str, float] = {"Lite0": 0.249, "Lite1": 0.233, "Lite2": 0.224}
"""Top-1 error on ImageNet as the README of the TensorFlow implementation has it (2020)."""
STAGES = ("untrained", "trained")
QUANTITIES = {
    "deformation": "deformation stability  $D$",
    "noise": "noise stability  $G$",
    "relative": "relative stability  $R = D/G$",
}
PLACES = {"last block": "o", "pooled features": "s", "output": "*"}
"""Where R is drawn against the error, with a marker each."""


def block(layer: str) -> str:
    """Return the block of an operation: its number, stem (with the images before it) or head."""
    first, *rest = layer.split(".")
    if first == "_blocks":
        return rest[0]
    return "stem" if first in ("input", "_conv_stem", "_bn0") or layer == "_swish.activation_0" else "head"


def draw_layers(networks: Mapping[str, Mapping[str, Mapping[str, Any]]], *, title: str) -> Any:
    """Draw D, G and R after every operation, a column per network, with the blocks of the network below."""
    width = 4.9 if len(networks) > 1 else 8.0
    figure, grid = sj.plot.panels(len(QUANTITIES), len(networks), size=(width, 2.6), sharex="col", sharey="row")
    for column, (name, stages) in zip(grid.T, networks.items(), strict=True):
        blocks = [block(layer) for layer in stages["trained"]["layers"]]
        spans = {each: [k for k, other in enumerate(blocks) if other == each] for each in dict.fromkeys(blocks)}
        for axes, quantity in zip(column, QUANTITIES, strict=True):
            for positions in list(spans.values())[1::2]:
                axes.axvspan(positions[0] - 0.5, positions[-1] + 0.5, color="0.95", linewidth=0, zorder=0)
            for color, stage in zip(sj.plot.COLORS, STAGES, strict=False):
                _draw_curve(axes, stages[stage], quantity, color=color, label=stage, dots=[0, *_ends(spans)])
            axes.set_yscale("log")
            axes.grid(axis="y", color="0.9")
            axes.set_axisbelow(True)
            if quantity == "relative":
                axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=1)
            axes.tick_params(axis="x", length=0)
        column[0].set_title(f"EfficientNet-{name}, published error {100 * ERRORS[name]:.1f} %", fontsize=10)
        column[-1].set_xticks([float(np.mean(positions)) for positions in spans.values()], list(spans), fontsize=7)
        column[-1].tick_params(axis="x", rotation=90)
        column[-1].set_xlim(-1, len(blocks))
        column[-1].set_xlabel("block; dots: images, and the last operation of each block")
    for axes, label in zip(grid[:, 0], QUANTITIES.values(), strict=True):
        sj.plot.plain_ticks(axes.yaxis)
        axes.set_ylabel(label)
    grid[0, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(f"Trained on ImageNet by others, and untrained: {title}", fontsize=10)
    return figure


def _ends(spans: Mapping[str, Sequence[int]]) -> list[int]:
    return [positions[-1] for positions in spans.values()]


def _draw_curve(
    axes: Any, result: Mapping[str, Any], quantity: str, *, color: str, label: str, dots: Sequence[int]
) -> None:
    """Draw a quantity against the operations, with its interval, and dots on some of them."""
    values = np.array(result[quantity], float)
    low, high = np.array(result[f"{quantity}_interval"], float).T
    position = np.arange(len(values))
    axes.fill_between(position, low, high, color=color, alpha=0.25, linewidth=0, zorder=1)
    axes.plot(position, values, color=color, linewidth=1, label=label, zorder=2)
    axes.plot(dots, values[dots], "o", color=color, markersize=3, zorder=3)


def draw_output(networks: Mapping[str, Mapping[str, Any]], *, title: str) -> Any:
    """Draw R near the output against the published error, and R at the output for every photograph."""
    figure, grid = sj.plot.panels(1, 2, size=(5.8, 5.0))
    against, each = grid[0]
    colors = dict(zip(networks, sj.plot.COLORS[1:], strict=False))
    for name, network in networks.items():
        label = f"{name}, {100 * network['published_error']:.1f} %"
        for stage in STAGES:
            style = {"color": colors[name], "mfc": "none" if stage == "untrained" else colors[name]}
            for k, (place, marker) in enumerate(PLACES.items()):
                found = network[stage]["places"][place]
                ends = np.abs(np.array(found["interval"])[:, None] - found["R"])
                # Above each other, where they would cover each other.
                height = 100 * network["published_error"] + 0.15 * (1 - k)
                against.errorbar(found["R"], height, xerr=ends, marker=marker, markersize=6, linewidth=1, **style)
            deformed, noisy = (
                np.array(network[stage]["numerators_at_output"][key]) for key in ("deformation", "noise")
            )
            shift = 0.2 * (list(networks).index(name) - (len(networks) - 1) / 2)
            photographs = np.arange(len(deformed))[::-1] - shift
            label_here = label if stage == "trained" else None
            each.plot(deformed / noisy, photographs, "o", markersize=4, label=label_here, **style)
        against.text(0.31, 100 * network["published_error"], name, color=colors[name], ha="center", va="center")
    for place, marker in PLACES.items():
        against.plot([], [], marker, color="0.3", label=place)
    against.plot([], [], "o", color="0.3", mfc="none", label="open: untrained")
    against.set(ylabel="published top-1 error on ImageNet (%)", xlabel="relative stability  $R$")
    against.set_title(
        "near the output; bars: 95 % over photographs\nfew images, three networks: no correlation is claimed",
        fontsize=9,
    )
    each.set(xlabel="relative stability  $R$  at the output")
    each.set_title("of every photograph by itself", fontsize=9)
    each.plot([], [], "o", color="0.3", mfc="none", markersize=4, label="open: untrained")
    names = networks[next(iter(networks))]["trained"]["photographs"]
    each.set_yticks(np.arange(len(names))[::-1], [name.replace("_", " ") for name in names], fontsize=8)
    for axes in (against, each):
        axes.set_xscale("log")
        axes.axvline(1, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        sj.plot.plain_ticks(axes.xaxis)
    against.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(0, 0.64))
    each.legend(fontsize=7, frameon=False, loc="upper left")
    figure.suptitle(f"Trained on ImageNet by others, and untrained: {title}", fontsize=10)
    return figure
