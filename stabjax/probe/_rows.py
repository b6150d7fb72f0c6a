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
        # Of several processes each fetches what its own devices have.
        fetched = [
            jax.tree.map(lambda row: _of_images(_local_rows(row), counted), step, is_leaf=_is_rows) for step in steps
        ]
        self.rows.append(jax.tree.map(lambda *of_steps: _join_draws(of_steps), *fetched, is_leaf=_is_rows))
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
    return jax.tree.map(
        lambda *of_batches: Rows(
            jax.tree.map(lambda *x: np.concatenate(x), *(each.per_image for each in of_batches)),
            jax.tree.map(lambda *x: np.concatenate(x, axis=1), *(each.per_draw for each in of_batches)),
        ),
        *rows,
        is_leaf=_is_rows,
    )


def sort_rows(positions: np.ndarray, rows: Any) -> Any:
    """Put rows in the order of the positions of their images."""
    order = np.argsort(positions, kind="stable")

    def in_order(row: Rows) -> Rows:
        return Rows(jax.tree.map(lambda x: x[order], row.per_image), jax.tree.map(lambda x: x[:, order], row.per_draw))

    return jax.tree.map(in_order, rows, is_leaf=_is_rows)


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

    return jax.tree.map(
        lambda row: Rows(jax.tree.map(of_images, row.per_image), jax.tree.map(of_draws, row.per_draw)),
        rows,
        is_leaf=_is_rows,
    )


def _of_images(rows: Rows, counted: np.ndarray) -> Rows:
    """Make one axis of images of those of batches and images, without images that do not count."""

    def of_draws(x: np.ndarray) -> np.ndarray:
        # (batches, draws, size, ...) -> (draws, images, ...).
        return np.moveaxis(x[: len(counted)], 0, 1)[:, counted]

    return Rows(
        jax.tree.map(lambda x: x[: len(counted)][counted], rows.per_image), jax.tree.map(of_draws, rows.per_draw)
    )


def _join_draws(of_steps: tuple[Rows, ...]) -> Rows:
    """Join the rows of all steps over the draws of one batch."""
    per_draw = jax.tree.map(lambda *x: np.concatenate(x), *(step.per_draw for step in of_steps))
    return Rows(of_steps[0].per_image, per_draw)


def _local_rows(rows: Rows) -> Rows:
    per_draw = jax.tree.map(lambda x: local_part(x, 2), rows.per_draw)
    return Rows(jax.tree.map(lambda x: local_part(x, 1), rows.per_image), per_draw)


def _is_rows(x: Any) -> bool:
    return isinstance(x, Rows)
