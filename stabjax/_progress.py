"""One progress bar for all that takes long: what is running, how much is done, the time left."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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


DELAY = 3.0
"""Seconds before a bar appears that was not asked for."""


@contextlib.contextmanager
def image_bar(images: int | None, *, shown: bool | None) -> Iterator[Callable[[int], None]]:
    """Count images on standard error while the block runs, and yield ``update(images so far)``.

    Args:
        images: Of all, if that is known; then the time left is shown.
        shown: None shows the bar on a terminal only, once the block has taken some seconds.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None

        def update(done: int) -> None:
            nonlocal bar
            due = time.monotonic() - started >= DELAY and console.is_terminal if shown is None else shown
            if bar is None and due:
                columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
                left = (TextColumn("left"), TimeRemainingColumn()) if images else ()
                bar = stack.enter_context(Progress(*columns, *left, console=console, speed_estimate_period=300))
                bar.add_task("images", total=images, completed=done)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        yield update
