"""What every experiment shares: its options, its small size, and the way from a command line to figures and records."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias, TypeVar

import tyro
from rich.console import Console

import stabjax as sj

Drawing: TypeAlias = tuple[Any, Mapping[str, Any]]
"""A figure, and the numbers behind it."""


@dataclass(frozen=True)
class Study:
    """Options of every experiment. A script adds its own as fields of a subclass, and sets ``SMOKE``."""

    SMOKE: ClassVar[Mapping[str, Any]] = {}
    """Values of options at the smoke size; they replace what the command line says."""

    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figures, each with its numbers beside it."""
    smoke: bool = False
    """A few seconds, at a small size, to see that everything runs."""

    def resize(self) -> Self:
        """Return the options at the smoke size if that is asked for, as they are if not."""
        return replace(self, **self.SMOKE) if self.smoke else self

    def record(self) -> dict[str, Any]:
        """Return what stands beside the numbers of every figure: command, settings, versions."""
        # The file has the name of the experiment; its module is called __main__ where it runs as a script.
        name = Path(inspect.getfile(type(self))).stem
        return {
            "command": sj.cli.command(f"experiments.{name}", self),
            "config": asdict(self),
            "versions": sj.cli.versions(),
        }


@dataclass(frozen=True)
class ResumableStudy(Study):
    """Options of an experiment that goes on from finished parts after a kill."""

    runs: Path = Path("runs")
    """Folder of checkpoints and of finished parts."""

    def folder(self, name: str) -> Path | None:
        """Return the folder of a part in ``runs``; None at the smoke size, where nothing is kept."""
        return None if self.smoke else self.runs / name


S = TypeVar("S", bound=Study)


def run(options: type[S], draw: Callable[[S, Console], Mapping[str, Drawing]], argv: Sequence[str] | None) -> Any:
    """Run an experiment from its command line to its files.

    Args:
        options: class of the options; its module describes the experiment and gives its name.
        draw: from options and console to figures with their numbers, by name of the file without suffix.
        argv: command line; that of the process if None.

    Returns:
        what is written beside the figures, by their names: ``{name: {"command": ..., "config": ..., ...}}``.
    """
    description = inspect.getdoc(inspect.getmodule(options))
    study = tyro.cli(options, args=None if argv is None else list(argv), description=description).resize()
    sj.cli.keep_compiled_programs()
    console = Console()
    common, records = study.record(), {}
    for name, (figure, numbers) in draw(study, console).items():
        records[name] = common | dict(numbers)
        console.print(sj.plot.save(figure, study.out / name, records[name]))
    return records
