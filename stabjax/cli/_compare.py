"""``stabjax compare``: two measurements side by side."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stabjax import report
from stabjax.cli._refusal import Refusal, refusing


@dataclass(frozen=True)
class Compare:
    """Draw two measurements together, of two networks or of two checkpoints: one figure, and one page with both."""

    first: Annotated[Path, tyro.conf.Positional]
    """A folder that ``stabjax measure --out`` has written."""
    second: Annotated[Path, tyro.conf.Positional]
    """Another one."""
    labels: tuple[str, str] | None = None
    """What they are called; by default the names of the networks, or of the folders where those are the same."""
    out: Path = Path("comparison")
    """Folder of the figure, its numbers and the page."""
    traceback: bool = False
    """Show where an error was raised."""


def run(compare: Compare, words: list[str], console: Console) -> None:
    """Read both folders, print the numbers of the outputs and what was measured differently, write the folder."""
    folders = [compare.first, compare.second]
    if compare.first.resolve() == compare.second.resolve():
        raise Refusal(f"expected two folders, got {compare.first} twice: measure the other network with another --out")
    with refusing(kinds=(ValueError, OSError)):
        both = [report.read(folder) for folder in folders]
    labels = compare.labels or tuple(each.label for each in both)
    if len(set(labels)) < 2:
        labels = tuple(map(str, folders))
    both = [replace(each, label=label) for each, label in zip(both, labels, strict=True)]
    console.print(_outputs(both))
    for line in _differences(both):
        console.print(f"[yellow]note[/] {escape(line)}", highlight=False)
    with refusing(f"the folder {compare.out} cannot be written", kinds=(OSError,)):
        files = report.write(both, compare.out, command=shlex.join(["stabjax", *words]))
    console.print(f"page: {escape(str(files[0]))}", highlight=False, soft_wrap=True)


def _outputs(both: list[report.Measured]) -> Table:
    """Return a table of the numbers at the outputs."""
    table = Table(title="at the output", title_justify="left")
    for heading in ("network", "D", "G", "R = D / G"):
        table.add_column(heading)
    for each in both:
        row = [escape(each.label)]
        for name in ("deformation", "noise", "relative"):
            value, ends = (getattr(each.result, part)[-1] for part in (name, f"{name}_interval"))
            row.append(escape(f"{float(value):.3g} [{float(ends[0]):.2g}, {float(ends[1]):.2g}]"))
        table.add_row(*row)
    return table


def _differences(both: list[report.Measured]) -> list[str]:
    """Say what keeps two measurements from being compared number by number."""
    first, second = both
    lines = [
        f"{term}: {first.settings.get(term, 'not said')!r} in {first.label}, "
        f"{second.settings.get(term, 'not said')!r} in {second.label}"
        for term in dict.fromkeys([*first.settings, *second.settings])
        if term not in ("network", "arguments", "weights") and first.settings.get(term) != second.settings.get(term)
    ]
    if first.result.layers != second.result.layers:
        common = len(set(first.result.layers) & set(second.result.layers))
        lines.append(
            f"the layers differ ({len(first.result.layers)} and {len(second.result.layers)}, {common} of the same "
            "name): drawn against relative depth, each with a table of its own"
        )
    return lines
