"""One training step, compiled once for all steps, epochs and seeds."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stabjax._types import AnyArray
from stabjax.train._layout import Layout, Weights
from stabjax.train._prepare import crop, flip, normalise
from stabjax.train._recipe import Recipe, loss, optimiser, schedule


class Carry(NamedTuple):
    """Everything that changes during training."""

    params: dict[str, jax.Array]
    rest: dict[str, jax.Array]
    """The variables that are not trained: batch statistics, keys of dropout, frozen layers."""
    moments: Any
    """The optimiser's state."""
    step: jax.Array
    loss: jax.Array
    """Sum over the steps of this epoch."""
    hits: jax.Array
    """Likewise."""
    diverged: jax.Array
    """The step that went wrong, or -1."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is static in a training; hashable, so that equal trainings share their compiled programs."""

    layout: Layout
    trained: frozenset[str]
    recipe: Recipe
    images: int
    per_epoch: int
    vectorised: bool

    def start(self, weights: Weights) -> Carry:
        """The carry before the first step, of one seed."""
        params = {k: jnp.asarray(v) for k, v in weights.items() if k in self.trained}
        rest = {k: jnp.asarray(v) for k, v in weights.items() if k not in self.trained}
        zero = jnp.zeros((), jnp.float32)
        moments = optimiser(self.recipe).init(params)
        return Carry(params, rest, moments, jnp.zeros((), jnp.int32), zero, zero, jnp.full((), -1, jnp.int32))

    def step(
        self, carry: Carry, key: jax.Array, order: jax.Array, images: jax.Array, labels: jax.Array, perturbation: Any
    ) -> Carry:
        """One step of one seed. A step whose loss or update is not finite is not taken."""
        recipe, size = self.recipe, self.recipe.batch_size
        position = carry.step % self.per_epoch
        chosen = jax.lax.dynamic_slice_in_dim(order, position * size, size)
        batch = self._prepared(jax.random.fold_in(key, carry.step), images[chosen], perturbation)

        def objective(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
            model = self.layout.model({**params, **carry.rest}, training=True)
            each, hit = loss(model(batch), labels[chosen], kind=recipe.loss, smoothing=recipe.smoothing)
            after = self.layout.weights(model)
            return jnp.mean(each), (jnp.sum(hit), {k: after[k] for k in carry.rest})

        (value, (hits, rest)), gradients = jax.value_and_grad(objective, has_aux=True)(carry.params)
        updates, moments = optimiser(recipe).update(gradients, carry.moments, carry.params)
        rate = schedule(recipe, self.per_epoch)(carry.step)
        params = jax.tree.map(lambda p, u: p - rate.astype(p.dtype) * u, carry.params, updates)

        good = jnp.isfinite(value) & functools.reduce(
            jnp.logical_and, [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(params)]
        )
        alive = good & (carry.diverged < 0)
        taken = (params, rest, moments)
        kept = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), taken, (carry.params, carry.rest, carry.moments)
        )
        first = position == 0
        return Carry(
            *kept,
            step=carry.step + 1,
            loss=jnp.where(first, 0, carry.loss) + value.astype(jnp.float32),
            hits=jnp.where(first, 0, carry.hits) + hits.astype(jnp.float32),
            diverged=jnp.where(good | (carry.diverged >= 0), carry.diverged, carry.step),
        )

    def _prepared(self, key: jax.Array, batch: jax.Array, perturbation: Any) -> jax.Array:
        recipe = self.recipe
        crop_key, flip_key, perturb_key = jax.random.split(key, 3)
        if recipe.crop:
            batch = crop(crop_key, batch, recipe.crop)
        if recipe.flip:
            batch = flip(flip_key, batch)
        batch = normalise(batch, mean=recipe.mean, deviation=recipe.deviation)
        if perturbation is None:
            return batch
        return jax.vmap(perturbation)(jax.random.split(perturb_key, len(batch)), batch)


@functools.partial(jax.jit, static_argnames="images")
def order(key: jax.Array, epoch: AnyArray, *, images: int) -> jax.Array:
    """Indices of the images of one epoch, in the order of training; one row per key where there are several."""

    def one(key: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), images)

    return jax.vmap(one)(key) if key.ndim else one(key)


class Machine(NamedTuple):
    """The compiled functions of a program, over the seeds where it is vectorised."""

    start: Callable[[Weights], Carry]
    step: Callable[..., Carry]
    until: Callable[..., Carry]
    """All steps up to a given one in one compiled loop; the number is traced, so a short last part compiles nothing."""

    def must_step(self, carry: Carry, *fixed: Any) -> bool:
        """Whether the steps have to be single calls instead of one compiled loop.

        On the CPU, XLA brings convolutions into the layout of its fast routine only outside of loops: the gradients of
        a plain convolution were measured to take 25 times longer inside. Where all convolutions have that layout
        already, the loop is the faster one, since its buffers are allocated once.
        """
        if next(iter(carry.step.devices())).platform != "cpu":
            return False
        step: Any = self.step
        text = step.lower(carry, *fixed).as_text()
        return any("stablehlo.convolution" in line and not _CHANNELS_LAST.search(line) for line in text.splitlines())


_CHANNELS_LAST = re.compile(
    r"= \[b, [\d, ]*f\]x\[[\d, ]*i, o\]->\[b, [\d, ]*f\].*lhs_dilate = \[1(, 1)*\].*feature_group_count = 1 "
)


@functools.lru_cache(maxsize=8)
def machine(program: Program) -> Machine:
    """The compiled functions of a program; equal programs share them."""

    def until(carry: Carry, stop: jax.Array, *fixed: Any) -> Carry:
        return jax.lax.while_loop(lambda c: c.step < stop, lambda c: program.step(c, *fixed), carry)

    def over(f: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        return jax.vmap(f, in_axes=axes) if program.vectorised else f

    return Machine(
        jax.jit(over(program.start, 0)),
        jax.jit(over(program.step, 0, 0, 0, None, None, None), donate_argnums=0),
        jax.jit(over(until, 0, None, 0, 0, None, None, None), donate_argnums=0),
    )
