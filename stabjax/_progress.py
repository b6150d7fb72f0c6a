"""One progress bar for all that takes long: what is running, how much is done, the time left."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Update = Callable[[int, str], None]
"""``update(completed, description)``."""


@contextlib.contextmanager
def progress_bar(total: int, *, shown: bool, completed: int = 0, console: Console | None = None) -> Iterator[Update]:
    """Show a bar while the block runs, and yield the function that moves it.

    Args:
        total: Number of steps (cells, batches) of the whole job.
        shown: False for a function that does nothing, and no output.
        completed: Steps that were done before.
        console: Where the bar appears, standard output by default.
    """
    if not (shown and total):
        yield lambda completed, description: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=300) as progress:
        task = progress.add_task("compiling", total=total, completed=completed)
        yield lambda completed, description: progress.update(task, completed=completed, description=description)
