"""The pass within a program of the caller's (`jit`, `vmap`, `grad`): one loop over the batches of an array."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax import features, networks, perturb
from stabjax._types import Perturbation
from stabjax.probe._batching import Batches, divide
from stabjax.probe._context import Batch, Rows, Summary
from stabjax.probe._pass import init_states, pass_batch, perturb_batch, sum_sizes
from stabjax.probe._request import Request
from stabjax.probe._rows import order_rows


def pass_traced(network: networks.Network, images: Array, request: Request) -> dict[str, Any]:
    """Take the measurements as `stabjax.probe.run` does, of an array and in operations that JAX can trace."""
    batches = divide(len(images), request.draws, request.batch_size, kinds=request.kinds)
    step = batches.step
    shape = (step.rows, *images.shape[1:])
    dtype = jnp.float32 if request.normalization is not None and images.dtype == jnp.uint8 else images.dtype
    traced = features.trace(network, jax.ShapeDtypeStruct(shape, dtype))
    if not step.separate:
        traced.check_rows(otherwise=f", or pass all images as one batch, batch_size={len(images)}")
    deformation, noise = request.perturbations(images.shape[1:-1])
    perturbed = partial(
        _perturb, images, request.key, deformation, batches=batches, normalization=request.normalization
    )
    steps = _steps(batches)
    if request.radius == "mean":
        noise = perturb.SphericalNoise(_mean_size(perturbed, steps), spatial=images.shape[1:-1])
    batch_of = partial(perturbed, noise)
    shapes = jax.eval_shape(batch_of, jax.tree.map(lambda x: x[0], steps))
    options = {"select": request.select, "step": step}
    states, taps = init_states(traced, request.measurements, shapes, deformation, **options)

    def advance(states: Any, position: Any) -> tuple[Any, Any]:
        batch = batch_of(position)
        states, rows = pass_batch(traced, request.measurements, states, batch, deformation, **options)
        return states, (rows, Rows(batch.finite, batch.sizes))

    states, found = jax.lax.scan(advance, states, steps)
    rows, facts = order_rows(found, batches)
    return request.finish(states, rows, Summary(taps, request.key, facts.per_image, facts.per_draw))


def _mean_size(perturbed: Any, steps: Any) -> Float[Array, ""]:
    """Average ``|tau x - x|`` over finite images and draws, by a pass that deforms and runs no network."""

    def advance(sums: tuple[Array, Array], position: Any) -> tuple[tuple[Array, Array], None]:
        total, count = sum_sizes(perturbed(None, position))
        return (sums[0] + total, sums[1] + count), None

    (total, count), _ = jax.lax.scan(advance, (jnp.zeros(()), jnp.zeros(())), steps)
    return total / count


def _steps(batches: Batches) -> tuple[Array, Array, Array]:
    """Return the first image, the number of images and the first draw of each step."""
    draws = len(batches.first_draws())
    return (
        jnp.repeat(jnp.asarray(batches.starts(), jnp.int32), draws),
        jnp.repeat(jnp.asarray(batches.lengths(), jnp.int32), draws),
        jnp.tile(jnp.asarray(batches.first_draws(), jnp.int32), batches.number),
    )


def _perturb(
    images: Array,
    key: Array,
    deformation: Perturbation | None,
    noise: Perturbation | None,
    position: tuple[Array, Array, Array],
    *,
    batches: Batches,
    normalization: Any,
) -> Batch:
    start, length, draw = position
    clean = jax.lax.dynamic_slice_in_dim(images, start, batches.step.size)
    slots = jnp.arange(batches.step.size)
    return perturb_batch(
        clean,
        start + slots,
        slots < length,
        draw,
        key,
        deformation,
        noise,
        step=batches.step,
        normalization=normalization,
    )
