"""The table of the page: a row for each operation, sorted by any column."""

from collections.abc import Sequence
from html import escape

import numpy as np

from stabjax.report._figure import QUANTITIES
from stabjax.report._measured import Measured
from stabjax.report._numbers import show, show_interval, sort_value


def draw_table(several: Sequence[Measured], *, caption: str) -> str:
    """Return an HTML table of networks with the same layers: a column of ``D``, ``G`` and ``R`` for each.

    Headings are buttons, so that they are reached from the keyboard; the script of the page sorts by ``data-value``, or
    by the text of a cell that has none.
    """
    first = several[0].result
    headings = ['<th scope="col" aria-sort="ascending"><button type="button"><span>#</span></button></th>']
    headings += [_heading(name) for name in ("operation", "kind")]
    columns = []
    for symbol, name in QUANTITIES:
        for each in several:
            headings.append(_heading(symbol, each.label if len(several) > 1 else ""))
            values, ends = (np.asarray(getattr(each.result, part)) for part in (name, f"{name}_interval"))
            columns.append([_number(value, *pair) for value, pair in zip(values, ends, strict=True)])
    headings.append(_heading("valid"))
    valid = np.all([np.asarray(each.result.valid) for each in several], axis=0)
    rows = []
    for k, (layer, kind) in enumerate(zip(first.layers, first.kinds, strict=True)):
        cells = [f'<td data-value="{k}">{k}</td>', f'<th scope="row">{escape(layer)}</th>', f"<td>{escape(kind)}</td>"]
        cells += [column[k] for column in columns]
        cells.append(f"<td>{'yes' if valid[k] else 'no'}</td>")
        mark = "" if valid[k] else ' class="invalid"'
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="sortable">'
        f"<caption>{escape(caption)}</caption><thead><tr>{''.join(headings)}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _heading(name: str, label: str = "") -> str:
    below = f"<small>{escape(label)}</small>" if label else ""
    return f'<th scope="col" aria-sort="none"><button type="button"><span>{escape(name)}</span>{below}</button></th>'


def _number(value: float, low: float, high: float) -> str:
    interval = show_interval(low, high)
    below = f"<small>{interval}</small>" if interval else ""
    return f'<td class="number" data-value="{sort_value(value)}">{show(value)}{below}</td>'
