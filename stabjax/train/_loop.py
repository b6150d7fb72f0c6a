"""The loop of a training: its steps, epochs and saved states."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax.train import _files
from stabjax.train._evaluate import compile_score, total_score
from stabjax.train._history import History
from stabjax.train._program import Program, compile_steps, epoch_order
from stabjax.train._recipe import Real, schedule
from stabjax.train._state_dict import from_host, to_host

PATIENCE = 2.0
"""Seconds of training between two looks at the clock."""
TEST_BATCH = 100


class TrainLoop:
    """A training under way.

    Attributes:
        program: what is fixed.
        compiled: its functions.
        states: one `TrainState` of all seeds where they are vectorized, else one for each.
        step: steps taken; that of the divergence where no seed is left.
        seconds: of training, those of earlier processes included.
        history: a row per epoch.
        best: weights of each seed at its best accuracy on the test images, on the host.
        best_accuracy: ``(seeds,)``, -1 before the first score.
        best_step: ``(seeds,)``.
    """

    def __init__(self, program: Program, initial: tuple[Any, ...], keys: list[jax.Array]) -> None:
        self.program, self.compiled = program, compile_steps(program)
        seeds = len(initial)
        self.states = [self.compiled.start(w) for w in (_stack_trees(initial) if program.vectorized else initial)]
        # Of the three keys of a seed the first has built its network; these are for the order and for the steps.
        split = [jnp.stack([k[i] for k in keys]) for i in (1, 2)]
        self.order_keys, self.step_keys = ([k] if program.vectorized else list(k) for k in split)
        self.step, self.seconds = 0, 0.0
        self.history = History.empty(seeds)
        self.best = [to_host(w) for w in initial]
        self.best_accuracy = np.full(seeds, -1.0)
        self.best_step = np.zeros(seeds, np.int64)

    @property
    def seeds(self) -> int:
        """Return the number of seeds."""
        return len(self.best)

    @property
    def diverged(self) -> np.ndarray:
        """Return, ``(seeds,)``, the step that was not finite, or -1."""
        return np.concatenate([np.array(c.diverged, np.int64).reshape(-1) for c in self.states])

    def weights(self) -> list[dict[str, np.ndarray]]:
        """Return the weights of each seed on the host: the averages where there are any."""
        # Averages have the names of the variables that they are of, and come last: they take their place.
        flat = self._flat(tuple({**c.params, **c.rest, **c.average} for c in self.states))
        return [{k: np.array(v[s]) for k, v in flat.items()} for s in range(self.seeds)]

    def run(
        self,
        total: int,
        data: tuple[jax.Array, jax.Array],
        perturbation: Any,
        test: tuple[jax.Array, jax.Array] | None,
        path: Path | None,
        kept_steps: set[int],
        save_every: Real,
        report: Callable[[int, History], None],
    ) -> None:
        """Take all steps that are left; end early when no seed is left.

        Steps are taken in stretches that end with an epoch at the latest, and after about `PATIENCE` seconds::

            epoch     |------------------------|-------------
            stretches |-|-|-----|-----|-----|--|-----|-----|
                       first: compiles         scores, keeps weights
                         second: one step, which is timed

        After each one the clock is looked at, a state saved where it is time, and ``report`` called.

        Args:
            total: number of steps of the whole training.
            data: images and labels on the device.
            perturbation: as the step takes it.
            test: likewise, scored after every epoch.
            path: folder of the run.
            kept_steps: steps whose weights are kept there.
            save_every: seconds between two saved states.
            report: called with the step and the history.
        """
        per_epoch, length = self.program.per_epoch, 1
        orders, ordered_epoch, single_steps = [], -1, False
        clock = last_save = time.perf_counter()
        begin, compiled = clock - self.seconds, False
        # Step of the newest state on disk. A run that begins has none, so that even step 0 is saved if none is taken.
        saved_step = self.step if self.step else -1
        while self.step < total and np.any(self.diverged < 0):
            epoch = self.step // per_epoch
            if epoch != ordered_epoch:
                orders = [
                    epoch_order(k, np.array(epoch, np.int32), images=self.program.images) for k in self.order_keys
                ]
                ordered_epoch = epoch
            fixed = [(k, o, *data, perturbation) for k, o in zip(self.step_keys, orders)]
            if not compiled:
                single_steps = self.compiled.needs_single_steps(self.states[0], *fixed[0])
            end = min((epoch + 1) * per_epoch, total)
            # A stretch never goes beyond an epoch: the order of the images changes there, and the scores are due.
            stop = min(end, self.step + length)
            for i, arguments in enumerate(fixed):
                if single_steps:
                    for _ in range(self.step, stop):
                        self.states[i] = self.compiled.step(self.states[i], *arguments)
                else:
                    self.states[i] = self.compiled.run_until(self.states[i], np.array(stop, np.int32), *arguments)
            # Calls return before they are done: without this the clock would measure their dispatch.
            jax.block_until_ready(self.states)
            count, self.step = stop - self.step, stop
            now = time.perf_counter()
            # The first call compiles: it says nothing about the speed.
            length = max(1, int(count * PATIENCE / (now - clock))) if compiled else 1
            compiled = True
            # `begin` lies back by the seconds of earlier processes, so this is their sum.
            self.seconds = now - begin
            if np.all(self.diverged >= 0):
                # The last seed has gone: the steps behind it changed nothing but the counter.
                self.step = int(np.max(self.diverged))
                break
            if self.step == end:
                self._close_epoch(test)
                self.seconds = time.perf_counter() - begin
                if path is not None and self.step in kept_steps:
                    # Weights before the state: a run that goes on from this state finds them kept, one from an earlier
                    # state keeps the same ones again.
                    _files.save_weights(path, self.step, stack_seeds(self.weights()))
            if path is not None and time.perf_counter() - last_save >= save_every:
                self._save(path, test is not None)
                last_save, saved_step = time.perf_counter(), self.step
            report(self.step, self.history)
            # Scores and files do not count for the speed of the steps.
            clock = time.perf_counter()
        if path is not None and saved_step != self.step:
            self._save(path, test is not None)

    def _close_epoch(self, test: tuple[jax.Array, jax.Array] | None) -> None:
        """Score the test images, keep the best, write the row of the history."""
        recipe, per_epoch = self.program.recipe, self.program.per_epoch
        custom = self.program.custom_optimizer is not None
        # Steps of this epoch, 1 to per_epoch; fewer than per_epoch if the training ends within it.
        steps = (self.step - 1) % per_epoch + 1
        diverged = self.diverged >= 0
        # (seeds,) each: a state is that of one seed, or of all.
        sums = [
            np.concatenate([np.array(getattr(c, n), np.float64).reshape(-1) for c in self.states])
            for n in ("loss", "hits")
        ]
        # Loss and accuracy of each seed. NaN is above nothing, so a seed without a score keeps the best it had.
        scores = np.full((2, self.seeds), np.nan)
        if test is not None:
            batch = compile_score(self.program.layout, recipe.loss, recipe.mean, recipe.deviation, recipe.test_flip)
            for s, weights in enumerate(self.weights()):
                if not diverged[s]:
                    device = self.program.layout.to_device(weights)
                    scores[:, s] = total_score(batch, device, *test, size=TEST_BATCH) / len(test[0])
                if scores[1, s] > self.best_accuracy[s]:
                    self.best[s], self.best_accuracy[s], self.best_step[s] = weights, scores[1, s], self.step
        self.history = self.history.with_row(
            epoch=self.step / per_epoch,
            step=self.step,
            rate=np.nan if custom else float(schedule(recipe, per_epoch)(self.step - 1)),
            seconds=self.seconds,
            train_loss=np.where(diverged, np.nan, sums[0] / steps),
            train_accuracy=np.where(diverged, np.nan, sums[1] / (steps * recipe.batch_size)),
            test_loss=scores[0],
            test_accuracy=scores[1],
        )

    def _save(self, path: Path, best: bool) -> None:
        arrays = self._flat(tuple(c._asdict() for c in self.states))
        if best:
            arrays |= {f"best/{k}": v for k, v in stack_seeds(self.best).items()}
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
            # In place: `best` is the dictionary in the list. A state without test images has no best, and the initial
            # one stays.
            best |= {k: np.array(arrays[f"best/{k}"][s]) for k in best if f"best/{k}" in arrays}
        vectorized = self.program.vectorized
        for i, old in enumerate(self.states):
            # On disk every array has the seeds in front; in memory only where they are vectorized.
            own = arrays if vectorized else {k: np.array(v[i]) for k, v in arrays.items()}
            self.states[i] = from_host(own, old)

    def _flat(self, trees: tuple[Any, ...]) -> dict[str, np.ndarray]:
        """Return ``{name: (seeds, ...)}`` on the host."""
        return to_host(trees[0]) if self.program.vectorized else stack_seeds([to_host(t) for t in trees])


def _stack_trees(weights: tuple[Any, ...]) -> list[Any]:
    return [jax.tree.map(lambda *x: jnp.stack(x), *weights)]


def stack_seeds(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return ``{name: (seeds, ...)}`` from one dictionary per seed."""
    return {k: np.stack([p[k] for p in parts]) for k in parts[0]}
