"""`main`: the command line, and what it does with errors."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import tyro
from rich.console import Console

from stabjax._compilation_cache import keep_compiled_programs
from stabjax._provenance import versions
from stabjax.cli import _compare, _demo, _measure
from stabjax.cli._refusal import Refusal


@dataclass(frozen=True)
class Info:
    """Print versions and devices."""


Chosen: TypeAlias = _demo.Demo | _measure.Measure | _compare.Compare | Info


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command ``stabjax``.

    What a person has to change is said in one line on standard error, and ends the process with the code 2.

    Args:
        argv: command-line arguments; those of the process if None.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    chosen: Chosen = tyro.cli(
        Annotated[_demo.Demo, tyro.conf.subcommand("demo")]  # pyright: ignore[reportArgumentType]
        | Annotated[_measure.Measure, tyro.conf.subcommand("measure")]
        | Annotated[_compare.Compare, tyro.conf.subcommand("compare")]
        | Annotated[Info, tyro.conf.subcommand("info")],
        args=words,
        prog="stabjax",
        description=sys.modules["stabjax.cli"].__doc__,
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    try:
        _run(chosen, words, console)
    except Refusal as refusal:
        if getattr(chosen, "traceback", False):
            raise
        # Not by a console, which would break the line and read brackets as markup.
        print(f"stabjax: {refusal}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(chosen: Chosen, words: list[str], console: Console) -> None:
    if isinstance(chosen, Info):
        for name, value in versions().items():
            console.print(f"{name:10} {value}")
        return
    keep_compiled_programs()
    if isinstance(chosen, _demo.Demo):
        _demo.run(chosen, console)
    elif isinstance(chosen, _measure.Measure):
        _measure.run(chosen, words, console)
    else:
        _compare.run(chosen, words, console)
