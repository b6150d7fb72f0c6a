"""Figures: their panels, colors and ticks, and the files that they are saved to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLORS = ("0.55", "#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#b9770e", "#d35ca8")
"""Gray for what is compared with, then one color per curve."""


def panels(
    rows: int, columns: int, *, size: tuple[float, float] = (4.2, 3.2), **options: Any
) -> tuple["Figure", np.ndarray]:
    """Make a figure of equal panels that belongs to no window.

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


def save(figure: "Figure", path: Path | str, record: Mapping[str, Any] | Any) -> str:
    """Write a figure as PNG and PDF, and its numbers beside it as JSON.

    Args:
        figure: what is drawn.
        path: without suffix; folders that are missing are made.
        record: the numbers, and all it takes to draw them again: settings and versions. Results are written as their
            ``to_json``, one alone may be the whole record. Not-a-number is written as null, which every reader of JSON
            understands.

    Returns:
        a line that says what was written.

    Raises:
        TypeError: for a record of anything but numbers, text, lists, mappings and results; nothing is written then.
    """
    path, text = Path(path), json.dumps(_to_json(record), indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = figure.get_layout_engine()
    for suffix in ("png", "pdf"):
        figure.savefig(path.with_name(f"{path.name}.{suffix}"), dpi=130)
        figure.set_layout_engine("none")  # laid out once: both files show the same
    figure.set_layout_engine(engine)
    path.with_name(f"{path.name}.json").write_text(text + "\n")
    return f"figure and numbers: {path}.png, .pdf, .json"


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Return colors from dark to light for curves in an order, such as strengths or times.

    Args:
        count: number of curves.
    """
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * k / max(count - 1, 1)) for k in range(count)]


def _to_json(value: Any) -> Any:
    """Convert a value to what JSON has: arrays as lists, not-a-number as null."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(entry) for entry in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if hasattr(value, "to_json"):
        return _to_json(value.to_json())
    value_as_list = np.asarray(value).tolist()
    if not isinstance(value_as_list, bool | int | float | str | list):
        raise TypeError(f"expected a record of numbers, text, lists and mappings, got {type(value).__name__} in it")
    return _to_json(value_as_list)
