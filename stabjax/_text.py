"""Results as text: tables for the screen, plain numbers for files."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Return a title and rows of cells under the first one, columns as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, lines[0], "-" * max(map(len, lines)), *lines[1:]])


def plain(values: Any) -> Any:
    """Return numbers as JSON takes them, in lists: None where one is not finite."""
    return [plain(v) for v in values] if np.ndim(values) else (float(values) if np.isfinite(values) else None)
