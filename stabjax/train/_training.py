"""The part of a training that moves: its steps, epochs and saved states."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax.train import _files
from stabjax.train._evaluate import batched, total_of
from stabjax.train._history import History
from stabjax.train._layout import from_host, to_host
from stabjax.train._program import Machine, Program, order
from stabjax.train._recipe import Real, schedule

# Seconds of training between two looks at the clock.
PATIENCE = 2.0
TEST_BATCH = 100


class Training:
    """The part of a training that moves."""

    def __init__(self, program: Program, machine: Machine, initial: tuple[Any, ...], keys: list[jax.Array]) -> None:
        self.program, self.machine = program, machine
        seeds = len(initial)
        # One carry for all seeds, or one for each.
        self.carries = [machine.start(w) for w in (_together(initial) if program.vectorized else initial)]
        split = [jnp.stack([k[i] for k in keys]) for i in (1, 2)]
        self.order_keys, self.step_keys = ([k] if program.vectorized else list(k) for k in split)
        self.step, self.seconds = 0, 0.0
        self.history = History.empty(seeds)
        self.best = [to_host(w) for w in initial]
        self.best_accuracy = np.full(seeds, -1.0)
        self.best_step = np.zeros(seeds, np.int64)

    @property
    def seeds(self) -> int:
        return len(self.best)

    @property
    def diverged(self) -> np.ndarray:
        return np.concatenate([np.array(c.diverged, np.int64).reshape(-1) for c in self.carries])

    def weights(self) -> list[dict[str, np.ndarray]]:
        """Of each seed, on the host: the averages where there are any."""
        flat = self._flat(tuple({**c.params, **c.rest, **c.average} for c in self.carries))
        return [{k: np.array(v[s]) for k, v in flat.items()} for s in range(self.seeds)]

    def run(
        self,
        total: int,
        data: tuple[jax.Array, jax.Array],
        perturbation: Any,
        test: tuple[jax.Array, jax.Array] | None,
        path: Path | None,
        kept: set[int],
        save_every: Real,
        report: Callable[[int, History], None],
    ) -> None:
        """All steps that are left; ends early when no seed is left."""
        per_epoch, chunk = self.program.per_epoch, 1
        orders, ordered, by_step = [], -1, False
        clock = saved = time.perf_counter()
        begun, compiled = clock - self.seconds, False
        saved_step = self.step if self.step else -1
        while self.step < total and np.any(self.diverged < 0):
            epoch = self.step // per_epoch
            if epoch != ordered:
                orders, ordered = (
                    [order(k, np.array(epoch, np.int32), images=self.program.images) for k in self.order_keys],
                    epoch,
                )
            fixed = [(k, o, *data, perturbation) for k, o in zip(self.step_keys, orders)]
            if not compiled:
                by_step = self.machine.must_step(self.carries[0], *fixed[0])
            end = min((epoch + 1) * per_epoch, total)
            stop = min(end, self.step + chunk)
            for i, f in enumerate(fixed):
                if by_step:
                    for _ in range(self.step, stop):
                        self.carries[i] = self.machine.step(self.carries[i], *f)
                else:
                    self.carries[i] = self.machine.until(self.carries[i], np.array(stop, np.int32), *f)
            jax.block_until_ready(self.carries)
            taken, self.step = stop - self.step, stop
            now = time.perf_counter()
            # The first call compiles: it says nothing about the speed.
            chunk = max(1, int(taken * PATIENCE / (now - clock))) if compiled else 1
            compiled = True
            self.seconds = now - begun
            if np.all(self.diverged >= 0):
                self.step = int(np.max(self.diverged))
                break
            if self.step == end:
                self._close_epoch(test)
                self.seconds = time.perf_counter() - begun
                if path is not None and self.step in kept:
                    _files.save_weights(path, self.step, stacked(self.weights()))
            if path is not None and time.perf_counter() - saved >= save_every:
                self._save(path, test is not None)
                saved, saved_step = time.perf_counter(), self.step
            report(self.step, self.history)
            clock = time.perf_counter()
        if path is not None and saved_step != self.step:
            self._save(path, test is not None)

    def _close_epoch(self, test: tuple[jax.Array, jax.Array] | None) -> None:
        """Score the test images, keep the best, write the row of the history."""
        recipe, per_epoch = self.program.recipe, self.program.per_epoch
        custom = self.program.custom_optimizer is not None
        taken = (self.step - 1) % per_epoch + 1
        lost = self.diverged >= 0
        sums = [
            np.concatenate([np.array(getattr(c, n), np.float64).reshape(-1) for c in self.carries])
            for n in ("loss", "hits")
        ]
        scores = np.full((2, self.seeds), np.nan)
        if test is not None:
            batch = batched(self.program.layout, recipe.loss, recipe.mean, recipe.deviation, recipe.test_flip)
            for s, weights in enumerate(self.weights()):
                if not lost[s]:
                    device = self.program.layout.on_device(weights)
                    scores[:, s] = total_of(batch, device, *test, size=TEST_BATCH) / len(test[0])
                if scores[1, s] > self.best_accuracy[s]:
                    self.best[s], self.best_accuracy[s], self.best_step[s] = weights, scores[1, s], self.step
        self.history = self.history.with_row(
            epoch=self.step / per_epoch,
            step=self.step,
            rate=np.nan if custom else float(schedule(recipe, per_epoch)(self.step - 1)),
            seconds=self.seconds,
            train_loss=np.where(lost, np.nan, sums[0] / taken),
            train_accuracy=np.where(lost, np.nan, sums[1] / (taken * recipe.batch_size)),
            test_loss=scores[0],
            test_accuracy=scores[1],
        )

    def _save(self, path: Path, best: bool) -> None:
        arrays = self._flat(tuple(c._asdict() for c in self.carries))
        if best:
            arrays |= {f"best/{k}": v for k, v in stacked(self.best).items()}
        notes = {
            "seconds": self.seconds,
            "history": self.history.to_json(),
            "best_accuracy": self.best_accuracy.tolist(),
            "best_step": self.best_step.tolist(),
        }
        _files.save_state(path, self.step, arrays, notes)

    def restore(self, arrays: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.step, self.seconds = notes["step"], notes["seconds"]
        self.history = History.from_json(notes["history"], seeds=self.seeds)
        self.best_accuracy, self.best_step = np.array(notes["best_accuracy"]), np.array(notes["best_step"])
        for s, best in enumerate(self.best):
            best |= {k: np.array(arrays[f"best/{k}"][s]) for k in best if f"best/{k}" in arrays}
        vectorized = self.program.vectorized
        for i, old in enumerate(self.carries):
            own = arrays if vectorized else {k: np.array(v[i]) for k, v in arrays.items()}
            self.carries[i] = from_host(own, old)

    def _flat(self, trees: tuple[Any, ...]) -> dict[str, np.ndarray]:
        """``{name: (seeds, ...)}`` on the host."""
        return to_host(trees[0]) if self.program.vectorized else stacked([to_host(t) for t in trees])


def _together(weights: tuple[Any, ...]) -> list[Any]:
    return [jax.tree.map(lambda *x: jnp.stack(x), *weights)]


def stacked(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """``{name: (seeds, ...)}`` from one dictionary per seed."""
    return {k: np.stack([p[k] for p in parts]) for k in parts[0]}
