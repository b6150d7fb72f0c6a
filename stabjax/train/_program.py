"""One training step, compiled once for all steps, epochs and seeds."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stabjax._arguments import ComparedByContents, is_key
from stabjax._types import AnyArray
from stabjax.train._augment import crop, flip, normalize
from stabjax.train._recipe import Recipe, loss, optimizer
from stabjax.train._state_dict import Layout, Weights


class TrainState(NamedTuple):
    """All that changes from step to step, of one seed or (with an axis in front) of all."""

    params: dict[str, jax.Array]
    rest: dict[str, jax.Array]
    """The variables that are not trained: batch statistics, keys of dropout, frozen layers."""
    average: dict[str, jax.Array]
    """Moving averages of trained weights and batch statistics; empty where the recipe asks for none."""
    optimizer_state: Any
    step: jax.Array
    loss: jax.Array
    """Sum over the steps of this epoch."""
    hits: jax.Array
    """Likewise."""
    diverged: jax.Array
    """The step that went wrong, or -1."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed during a training; hashable, so that equal trainings share their compiled programs."""

    layout: Layout
    trained: frozenset[str]
    parameters: frozenset[str]
    """Trained or not: what is computed with in the precision of the recipe."""
    statistics: frozenset[str]
    recipe: Recipe
    outputs: int
    images: int
    per_epoch: int
    vectorized: bool
    custom_optimizer: ComparedByContents | None
    """In place of the recipe's."""

    def start(self, weights: Weights) -> TrainState:
        """Return the state before the first step, of one seed."""
        params = {k: jnp.asarray(v) for k, v in weights.items() if k in self.trained}
        rest = {k: jnp.asarray(v) for k, v in weights.items() if k not in self.trained}
        # Copies, since every buffer of the state is donated.
        averaged = _floating_names(weights, self.trained | self.statistics) if self.recipe.averaging else ()
        average = {k: jnp.copy(weights[k]) for k in averaged}
        # The state of an optimizer may begin as the parameters themselves.
        optimizer_state = jax.tree.map(_copy, self._optimizer().init(params))
        zero = jnp.zeros((), jnp.float32)
        return TrainState(
            params, rest, average, optimizer_state, jnp.zeros((), jnp.int32), zero, zero, jnp.full((), -1, jnp.int32)
        )

    def step(
        self,
        state: TrainState,
        key: jax.Array,
        order: jax.Array,
        images: jax.Array,
        labels: jax.Array,
        perturbation: Any,
    ) -> TrainState:
        """Take one step of one seed, unless its loss or update is not finite.

        Args:
            state: before the step.
            key: of the seed; the step's own is ``fold_in(key, step)``.
            order: ``(images,)``, the images of this epoch as they come.
            images: ``(n, *spatial, channels)``.
            labels: ``(n,)``.
            perturbation: ``(key, image) -> image``, or None.
        """
        recipe, size = self.recipe, self.recipe.batch_size
        # Batch `position` of the epoch: images position * size, ... of its order. What is left over after the last
        # whole batch is never reached.
        position = state.step % self.per_epoch
        chosen = jax.lax.dynamic_slice_in_dim(order, position * size, size)
        batch = self._augment_batch(jax.random.fold_in(key, state.step), images[chosen], perturbation)

        def objective(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
            # The gradient is that for `params` alone. What the network wrote while it ran (batch statistics, keys)
            # comes out beside the loss, by the names it had before.
            outputs, variables = self._forward({**params, **state.rest}, batch)
            losses, hits = loss(outputs, labels[chosen], kind=recipe.loss, smoothing=recipe.smoothing)
            return jnp.mean(losses), (jnp.sum(hits), {k: variables[k] for k in state.rest})

        (value, (hits, rest)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, optimizer_state = self._optimizer().update(gradients, state.optimizer_state, state.params, value=value)
        params: Any = optax.apply_updates(state.params, updates)
        # After the update: the averages follow the new weights.
        average = self._update_averages(state, {**params, **rest})

        # A step that is not finite leaves all as it was, and so do all steps behind it: the seed has diverged. Only the
        # counter goes on, for the sake of the other seeds in one vmap.
        finite = jnp.isfinite(value) & functools.reduce(
            jnp.logical_and, [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves((params, average))]
        )
        accepted = finite & (state.diverged < 0)
        after_step = (params, rest, average, optimizer_state)
        before_step = (state.params, state.rest, state.average, state.optimizer_state)
        variables = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), after_step, before_step)
        # The sums over an epoch begin anew with its first step.
        first = position == 0
        return TrainState(
            *variables,
            step=state.step + 1,
            loss=jnp.where(first, 0, state.loss) + value.astype(jnp.float32),
            hits=jnp.where(first, 0, state.hits) + hits.astype(jnp.float32),
            # The first step that was not finite stays; it is -1 as long as all were.
            diverged=jnp.where(finite | (state.diverged >= 0), state.diverged, state.step),
        )

    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Return the transformation that was given, or the recipe's."""
        if self.custom_optimizer is None:
            return optimizer(self.recipe, self.per_epoch, outputs=self.outputs)
        return optax.with_extra_args_support(self.custom_optimizer.value)

    def _forward(self, weights: dict[str, jax.Array], batch: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the network's outputs in training mode, and its variables afterwards.

        In bfloat16 the parameters and the batch are rounded on their way in. Batch statistics are not: they change by
        less than its spacing. A normalization of Flax that holds them has to be told the type of its result, or it
        would take all layers behind it back to float32.
        """
        if self.recipe.precision == "float32":
            model = self.layout.model(weights, training=True)
            return model(batch), self.layout.weights(model)
        low = jnp.bfloat16
        rounded = _floating_names(weights, self.trained | self.parameters)
        model = self.layout.model({**weights, **{k: weights[k].astype(low) for k in rounded}}, training=True)
        for _, node in nnx.iter_graph(model):
            if isinstance(node, nnx.BatchNorm) and node.dtype is None:
                node.dtype = low
        outputs = model(batch.astype(low)).astype(jnp.float32)
        # What was rounded on its way in comes back as it was: the weights themselves are never rounded.
        return outputs, {**self.layout.weights(model), **{k: weights[k] for k in rounded}}

    def _update_averages(self, state: TrainState, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Update the moving averages in step ``t``, counted from 0.

        They are ``a <- a + (1 - d) (w - a)`` with ``d = min(averaging, (1 + t) / (10 + t))``.

        The warm-up is that of TensorFlow's ``ExponentialMovingAverage(num_updates=t)``: the average reaches back over
        about a tenth of the training, until ``averaging`` makes that shorter.
        """
        t = state.step.astype(jnp.float32)
        # 1 - d = 9 / (10 + t) at first, 0.9 in step 0, and 1 - averaging from where that is larger.
        share = 1 - jnp.minimum(self.recipe.averaging, (1 + t) / (10 + t))
        return {k: a + share.astype(a.dtype) * (weights[k] - a) for k, a in state.average.items()}

    def _augment_batch(self, key: jax.Array, batch: jax.Array, perturbation: Any) -> jax.Array:
        """Crop, flip, normalize and perturb the images of one step."""
        recipe = self.recipe
        crop_key, flip_key, perturb_key = jax.random.split(key, 3)
        if recipe.crop:
            batch = crop(crop_key, batch, recipe.crop)
        if recipe.flip:
            batch = flip(flip_key, batch)
        batch = normalize(batch, mean=recipe.mean, deviation=recipe.deviation)
        if perturbation is None:
            return batch
        # A key for each image, so that no two of a batch share a deformation.
        return jax.vmap(perturbation)(jax.random.split(perturb_key, len(batch)), batch)


def _copy(x: Any) -> jax.Array:
    """Return a copy of an array, or a number as an array of its type."""
    x = jnp.asarray(x)
    return x if is_key(x) else jnp.array(x, x.dtype, copy=True)


def _floating_names(weights: Weights, names: frozenset[str]) -> list[str]:
    """Return those of the names that are variables of real numbers."""
    return [k for k, v in weights.items() if k in names and jnp.issubdtype(v.dtype, jnp.floating)]


@functools.partial(jax.jit, static_argnames="images")
def epoch_order(key: jax.Array, epoch: AnyArray, *, images: int) -> jax.Array:
    """Return the indices of the images of one epoch, in the order of training, for each of several keys."""

    def one(key: jax.Array) -> jax.Array:
        # Of key and epoch alone: a run that goes on finds the same order without having kept it.
        return jax.random.permutation(jax.random.fold_in(key, epoch), images)

    return jax.vmap(one)(key) if key.ndim else one(key)


class CompiledSteps(NamedTuple):
    """The compiled functions of a program, mapped over the seeds where it is vectorized."""

    start: Callable[[Weights], TrainState]
    step: Callable[..., TrainState]
    run_until: Callable[..., TrainState]
    """All steps up to a given one in one compiled loop; the number is traced, so a short last part compiles nothing."""

    def needs_single_steps(self, state: TrainState, *fixed: Any) -> bool:
        """Tell whether the steps have to be single calls instead of one compiled loop.

        On the CPU, XLA brings convolutions into the layout of its fast routine only outside of loops: the gradients of
        a plain convolution were measured to take 25 times longer inside. Where all convolutions have that layout
        already, the loop is the faster one, since its buffers are allocated once.
        """
        if next(iter(state.step.devices())).platform != "cpu":
            return False
        step: Any = self.step
        text = step.lower(state, *fixed).as_text()
        return any("stablehlo.convolution" in line and not _CHANNELS_LAST.search(line) for line in text.splitlines())


# In StableHLO: batch first and channels last, no dilation of the input (that of a gradient by strides), one group.
_CHANNELS_LAST = re.compile(
    r"= \[b, [\d, ]*f\]x\[[\d, ]*i, o\]->\[b, [\d, ]*f\].*lhs_dilate = \[1(, 1)*\].*feature_group_count = 1 "
)


@functools.lru_cache(maxsize=8)
def compile_steps(program: Program) -> CompiledSteps:
    """Compile the functions of a program at their first call; equal programs share them."""

    def run_until(state: TrainState, stop: jax.Array, *fixed: Any) -> TrainState:
        # Under `vmap` the loop runs until no seed is below `stop`; all count alike, so none takes a step too many.
        return jax.lax.while_loop(lambda s: s.step < stop, lambda s: program.step(s, *fixed), state)

    def over(f: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        return jax.vmap(f, in_axes=axes) if program.vectorized else f

    return CompiledSteps(
        jax.jit(over(program.start, 0)),
        # Axes of the arguments over seeds: state, keys and orders have one, data and perturbation are shared. The state
        # is donated: its buffers hold the next one, and the old one must not be used again.
        jax.jit(over(program.step, 0, 0, 0, None, None, None), donate_argnums=0),
        jax.jit(over(run_until, 0, None, 0, 0, None, None, None), donate_argnums=0),
    )
