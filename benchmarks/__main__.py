"""Run the benchmarks and write their table: ``python -m benchmarks [name ...]``.

Every module here but this one has a ``run()`` that returns rows, dictionaries with a ``name``, times in milliseconds
and a ``ratio`` to a peer measured in the same run. The table goes to ``benchmarks/results_<device>.json``.
"""

import importlib
import json
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import stabjax as sj

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, all of them if there is none."""
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SystemExit(f"expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    versions = sj.cli.versions()
    path = HERE / f"results_{versions['device'].split()[0]}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name in names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").run()
        console.print(_table(name, rows))
        record[name] = {
            "versions": versions | _peers(),
            "machine": platform.processor() or platform.machine(),
            "rows": rows,
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
    console.print(f"written to {path.relative_to(HERE.parent)}")


def _table(name: str, rows: list[dict[str, object]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=name, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("name", "peer") else "right")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        table.add_row(*[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
    return table


def _peers() -> dict[str, str]:
    return {name: sys.modules[name].__version__ for name in ("torch", "kornia") if name in sys.modules}


if __name__ == "__main__":
    main(sys.argv[1:])
