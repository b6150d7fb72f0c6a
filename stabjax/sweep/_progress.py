"""A bar with the time left."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of cells computed; silent where there is no terminal."""
    console = Console(stderr=True)
    if not (shown and total and console.is_terminal):
        yield lambda count: None
        return
    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=300) as progress:
        task = progress.add_task("sweep", total=total)
        yield lambda count: progress.advance(task, count)
