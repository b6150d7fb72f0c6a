"""Numbers of each image, collected step by step and put in the order of the images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax.probe._batching import Batches
from stabjax.probe._context import Rows
from stabjax.probe._devices import local_part
from stabjax.probe._source import Window


class RowCollector:
    """Keep the rows of every window in the memory of the host, where they have room whatever the number of images.

    Rows of the last window stay on the device until the next one is under way: to fetch them is to wait for them.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Window, list[Any]] | None = None
        self.positions: list[np.ndarray] = []
        """Of the images that count, window by window."""
        self.rows: list[Any] = []
        """Rows of a window, with all draws."""
        self._saved = 0

    def add(self, window: Window, steps: list[Any]) -> None:
        """Add the rows of a window, one pytree of `Rows` for each of its steps over the draws."""
        self.fetch()
        self._waiting = window, steps

    def fetch(self) -> None:
        """Bring what waits on the device to the host."""
        if self._waiting is None:
            return
        window, steps = self._waiting
        self._waiting = None
        counted = window.counted[: window.number]
        fetched = [_of_images(step, counted) for step in steps]
        # What is per image is the same in all steps over the draws.
        self.rows.append(Rows.map(lambda *x: x[0], lambda *x: np.concatenate(x), *fetched))
        self.positions.append(window.positions[: window.number][counted])

    def restore(self, structure: Any, rows: list[list[np.ndarray]], positions: list[np.ndarray]) -> None:
        """Put in front what was saved: leaves of rows, and positions of their images."""
        self.rows = [jax.tree.unflatten(structure, leaves) for leaves in rows]
        self.positions = list(positions)
        self._saved = len(rows)

    def take_new(self) -> tuple[Any, np.ndarray]:
        """Return rows and positions since the last time, to be saved."""
        self.fetch()
        new = slice(self._saved, None)
        self._saved = len(self.rows)
        return _concatenate(self.rows[new]), np.concatenate(self.positions[new])

    def finish(self) -> tuple[np.ndarray, Any]:
        """Return the positions of all images that count, and their rows."""
        self.fetch()
        return np.concatenate(self.positions), _concatenate(self.rows)


def _concatenate(rows: list[Any]) -> Any:
    """Join rows of consecutive batches."""
    return Rows.map(lambda *x: np.concatenate(x), lambda *x: np.concatenate(x, axis=1), *rows)


def sort_rows(positions: np.ndarray, rows: Any) -> Any:
    """Put rows in the order of the positions of their images."""
    order = np.argsort(positions, kind="stable")
    return Rows.map(lambda x: x[order], lambda x: x[:, order], rows)


def order_rows(rows: Any, batches: Batches) -> Any:
    """Put the rows of all steps, stacked along a leading axis, in the order of the images, inside a program."""
    counted = np.flatnonzero(np.arange(batches.size)[None] < batches.lengths()[:, None])
    per_batch = len(batches.first_draws())

    def of_images(x: Any) -> Any:
        # (steps, size, ...): the steps of the first draws -> (number * size, ...).
        return jnp.reshape(x[::per_batch], (-1, *x.shape[2:]))[counted]

    def of_draws(x: Any) -> Any:
        # (number, per_batch, draws_per_step, size, ...) -> (draws, number * size, ...).
        x = jnp.moveaxis(jnp.reshape(x, (batches.number, -1, *x.shape[1:])), 0, 2)
        return jnp.reshape(x, (batches.draws, -1, *x.shape[4:]))[:, counted]

    return Rows.map(of_images, of_draws, rows)


def _of_images(rows: Any, counted: np.ndarray) -> Any:
    """Make one axis of images of those of batches and images, without images that do not count."""

    def of_draws(x: np.ndarray) -> np.ndarray:
        # (batches, draws, size, ...) -> (draws, images, ...).
        return np.moveaxis(x[: len(counted)], 0, 1)[:, counted]

    # Of several processes each fetches what its own devices have.
    local = Rows.map(lambda x: local_part(x, 1), lambda x: local_part(x, 2), rows)
    return Rows.map(lambda x: x[: len(counted)][counted], of_draws, local)
