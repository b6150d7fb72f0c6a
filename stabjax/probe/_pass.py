"""The pass over the images: perturb, run, reduce at every tap, and carry the moments along."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from stabjax import features, perturb
from stabjax._numerics import centered, row_sum, scatter
from stabjax._types import AnyArray, Perturbation, PRNGKey
from stabjax.probe._batching import Batches
from stabjax.probe._checks import check_front, finite_rows, like_image, real
from stabjax.stability import Stability, summarize

Radius: TypeAlias = Literal["each", "mean"]
Position: TypeAlias = tuple[Int[Array, "*steps"], Int[Array, "*steps"], Int[Array, "*steps"]]
Whole: TypeAlias = Float[Array, " n *spatial channels"]
Batch: TypeAlias = Float[Array, " size *spatial channels"]

_VERSION = "stabjax_version"
_INPUT = "input"  # name and kind of the images' own row
_BOOTSTRAP = np.uint32(2**32 - 1)  # the bootstrap takes the key of an image that no set has


class Row(NamedTuple):
    """What is kept of one activation of a batch."""

    changes: Float[Array, "changed size"]
    """Squared change of every version but the clean one."""
    distances: Float[Array, " size"]
    """Squared distance of every clean row to their mean."""
    mean: Float[Array, " units"]
    """Mean of the clean rows."""


@partial(jax.jit, static_argnames=("radius", "batches", "average", "select", "confidence"))
def measure(
    traced: features.Traced,
    images: Whole,
    key: PRNGKey,
    deformation: Perturbation,
    noise: Perturbation | None,
    *,
    radius: Radius,
    batches: Batches,
    average: Literal["mean", "median"],
    select: features.Select,
    confidence: float,
) -> Stability:
    """Measure as `stabjax.probe.stability` does, in these batches; see there."""
    if not batches.separate:
        traced.check_rows(otherwise=f", or pass all images as one batch, batch_size={batches.images}")
    starts, lengths, firsts = batches.steps()
    steps = jnp.asarray(starts), jnp.asarray(lengths), jnp.asarray(firsts)
    if noise is None and radius == "mean":
        mean_radius = _mean_radius(images, key, deformation, steps, batches)
        noise_of = as_noise(perturb.SphericalNoise(mean_radius, spatial=images.shape[1:-1]))
    else:
        noise_of = as_noise(noise)

    def step(carried: tuple[Array, dict[str, Array]], position: Position) -> tuple[Any, Any]:
        (seen, means), (start, length, draw) = carried, position
        # (size, *image); pairs: deformed and noisy, (draws, size, *image) each.
        clean, finite, keys = _read_batch(images, key, start, batches)
        of_image = partial(perturb_pairs, deformation, noise_of, draw, batches.draws_per_step)
        pairs = jax.vmap(of_image, out_axes=1)(keys, clean)
        versions = jnp.concatenate([clean[None], *pairs])  # clean, deformed by each draw, noisy by each draw
        # (size,): zero for what fills the batch up and for images that are not finite. Further draws of the same images
        # must not count again.
        weights = ((jnp.arange(batches.size) < length) & finite & (draw == 0)).astype(seen.dtype)
        rows = _run(traced, versions, weights, batches, select)
        # Running means of every layer: mean += (mean of the batch - mean) * weight of the batch / weight so far.
        seen = seen + jnp.sum(weights)
        share = jnp.sum(weights) / jnp.maximum(seen, 1)
        # The first shift is from zero, which is no mean: nothing stands before it, so `scatter` gives it no weight. Nor
        # does it to the shifts of further draws, which move no mean.
        shifts = {name: row.mean - means[name] for name, row in rows.items()}
        means = {name: means[name] + shift * share.astype(shift.dtype) for name, shift in shifts.items()}
        changed = _has_changed(versions, batches)
        found = {
            # Of each layer: changes (2 draws, size), distances (size,), and the squared shift of its mean, ().
            name: (jnp.where(changed, row.changes, 0), row.distances, jnp.sum(jnp.square(shifts[name])))
            for name, row in rows.items()
        }
        radii = jax.vmap(_distances, (0, None))(pairs[1], clean)
        return (seen, means), (found, radii, finite[None], weights)

    layers, kinds, empty = _layers(traced, batches, select)
    # The steps become the first axis of all that is found. Means and their weight are carried, and forgotten.
    _, (found, radii, finite, weights) = jax.lax.scan(step, (jnp.zeros((), jnp.float32), empty), steps)

    def numerators(changes: Float[Array, "steps changed size"]) -> Float[Array, "two draws n"]:
        # (per_batch, two draws_per_step, n): deformed by each draw, then noisy. Once `two` stands in front, steps and
        # draws of a step are the draws in their order.
        pairs = jnp.reshape(batches.by_image(changes), (-1, 2, batches.draws_per_step, batches.images))
        return jnp.reshape(jnp.moveaxis(pairs, 1, 0), (2, batches.draws, batches.images))

    def stack_layers(which: int) -> Array:
        dtype = jnp.result_type(*[found[name][which].dtype for name in layers])
        return jnp.stack([found[name][which].astype(dtype) for name in layers])

    changes = jax.vmap(numerators)(stack_layers(0))
    distances, shifts = stack_layers(1), stack_layers(2)
    # (steps, 1): measured images of each step.
    number = jnp.sum(weights, axis=1, keepdims=True).astype(distances.dtype)
    # An unbiased share of each image in <|f(x) - f(z)|^2>: 2 |f_i - batch mean|^2 B / (B - 1). Where no other image of
    # the batch is finite it is unknown: the image itself is the mean.
    unbiased = jnp.where(number > 1, number / jnp.maximum(number - 1, 1), jnp.nan)
    spread = 2 * distances * unbiased[None]
    # (layers,): squared distances to the mean over all images, so that <|f(x) - f(z)|^2> = 2 total / n.
    total = scatter(distances, shifts, weights.astype(distances.dtype))
    return summarize(
        jax.random.fold_in(key, _BOOTSTRAP),
        layers=layers,
        kinds=kinds,
        deformation_numerators=changes[:, 0],
        noise_numerators=changes[:, 1],
        # (layers, steps, 1, size) -> (layers, per_batch, 1, n): the steps of the first draw alone have weight.
        spread=jax.vmap(batches.by_image)(spread[:, :, None])[:, 0, 0],
        pair_distance=2 * total / jnp.sum(number),
        noise_radius=jnp.reshape(batches.by_image(radii), (batches.draws, batches.images)),
        measured=batches.by_image(finite)[0, 0],
        average=average,
        confidence=confidence,
    )


def _read_batch(
    images: Whole, key: PRNGKey, start: Int[Array, ""], batches: Batches
) -> tuple[Batch, Bool[Array, " size"], Key[Array, " size"]]:
    """Read the clean images of a batch, which of them are finite (the others are blanked), and their keys."""
    clean = jax.lax.dynamic_slice_in_dim(images, start, batches.size)
    finite = finite_rows(clean)
    blanked = jnp.where(jnp.expand_dims(finite, tuple(range(1, clean.ndim))), clean, 0)
    # The key of an image depends on its position among all, so that batches and their size change nothing.
    return blanked, finite, jax.vmap(jax.random.fold_in, (None, 0))(key, start + jnp.arange(batches.size))


def perturb_pairs(
    deformation: Perturbation,
    noise_of: Callable[..., AnyArray],
    first: Int[Array, ""] | int,
    draws: int,
    key: PRNGKey,
    image: Array,
) -> tuple[Float[AnyArray, " draws *image"], Float[AnyArray, " draws *image"]]:
    """Deform one image, and add noise to it, for so many draws from the first on."""

    def pair(draw: Int[Array, ""]) -> tuple[AnyArray, AnyArray]:
        deformation_key, noise_key = jax.random.split(jax.random.fold_in(key, draw))
        deformed = like_image("deformation", deformation(deformation_key, image), image)
        return deformed, like_image("noise", noise_of(noise_key, image, deformed), image)

    return jax.vmap(pair)(jnp.asarray(first) + jnp.arange(draws))


def _mean_radius(
    images: Whole, key: PRNGKey, deformation: Perturbation, steps: Position, batches: Batches
) -> Float[Array, ""]:
    """Average ``|tau x - x|`` over finite images and draws, by a pass that deforms and runs no network."""

    def step(position: Position) -> tuple[Array, Array]:
        start, _, draw = position
        clean, finite, keys = _read_batch(images, key, start, batches)
        pairs = partial(perturb_pairs, deformation, lambda key, image, deformed: deformed, draw, batches.draws_per_step)
        deformed, _ = jax.vmap(pairs, out_axes=1)(keys, clean)
        return jax.vmap(_distances, (0, None))(deformed, clean), finite[None]

    # (per_batch, draws_per_step, n), and (per_batch, 1, n): an image is finite or not in all draws alike.
    radii, finite = (batches.by_image(values) for values in jax.lax.map(step, steps))
    return jnp.mean(radii, where=jnp.broadcast_to(finite[:1, :1], radii.shape))


def as_noise(noise: Perturbation | None) -> Callable[..., AnyArray]:
    """Return the noisy image as a function of key, image and deformed image; None is the sphere through the latter."""
    if noise is None:
        return lambda key, image, deformed: perturb.noise_like(key, image, deformed, spatial=image.shape[:-1])
    return lambda key, image, deformed: noise(key, image)


def _has_changed(versions: Float[Array, "versions size *image"], batches: Batches) -> Bool[Array, "_ _"]:
    """Tell of each perturbed image whether it differs from the clean one at all.

    Where it does not, no layer changes: what one shows then is rounding, which differs from row to row of a batch. With
    batch statistics an image changes with the others of its batch, so there it is the whole batch that counts.
    """
    differs = jnp.reshape(versions[1:] != versions[:1], (batches.versions - 1, batches.size, -1))
    return jnp.any(differs, axis=(1, 2))[:, None] if batches.separate else jnp.any(differs, axis=2)


def _distances(x: Float[AnyArray, " size *image"], y: Float[AnyArray, " size *image"]) -> Float[Array, " size"]:
    return jnp.sqrt(row_sum(jnp.square(real(x) - real(y))))


def _run(
    traced: features.Traced, versions: Array, weights: Float[Array, " size"], batches: Batches, select: features.Select
) -> dict[str, Row]:
    """Run the network on all versions, and reduce at every tap to one `Row` per operation, the images first."""

    def reduce(tap: features.Tap, activation: Array) -> Row:
        rows = _with_rows_first(tap, activation, batches)
        return _reduce(jax.lax.all_gather(rows, _VERSION) if batches.separate else rows, weights, batches)

    def capture(x: Array) -> Mapping[str, Row]:
        return traced.capture(x, select=select, reduce=reduce)[1]

    if batches.separate:
        # For the network each version is a batch of its own. At the taps the versions meet (`all_gather`), so that
        # every one finds the same row, which therefore has no axis of versions.
        found = jax.vmap(capture, axis_name=_VERSION, out_axes=None)(versions)
    else:
        found = capture(jnp.reshape(versions, (batches.rows, *versions.shape[2:])))
    input_row = _reduce(versions, weights, batches)
    return {_INPUT: input_row} | {_rename_input(name): row for name, row in found.items()}


def _reduce(activation: Array, weights: Float[Array, " size"], batches: Batches) -> Row:
    # (versions, size, units): the clean images first.
    versions = jnp.reshape(real(activation), (batches.versions, batches.size, -1))
    # The clean images' change from themselves is computed too: on the CPU leaving it out would copy all the others.
    changes = jnp.sum(jnp.square(versions - versions[:1]), axis=-1)[1:]
    mean, distances = centered(versions[0], weights=weights.astype(versions.dtype))
    return Row(changes, distances, mean)


def _with_rows_first(tap: features.Tap, activation: Array, batches: Batches) -> Array:
    """Reshape an activation to one row per image; parts of an image that stand in front (windows) go to its row."""
    check_front(tap, activation, batches.rows)
    return jnp.reshape(activation, (batches.rows, -1))


def _layers(
    traced: features.Traced, batches: Batches, select: features.Select
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Array]]:
    """Return names and kinds of the rows in the order of execution, and the means before the first batch."""
    batch = traced.batch
    versions = jax.ShapeDtypeStruct((batches.versions, batches.size, *batch.shape[1:]), batch.dtype)
    weights = jax.ShapeDtypeStruct((batches.size,), jnp.float32)
    # Shapes alone, so that names and sizes of the rows are known before the first batch.
    rows = jax.eval_shape(partial(_run, traced, batches=batches, select=select), versions, weights)
    kinds = {_INPUT: _INPUT} | {_rename_input(tap.name): tap.kind for tap in traced.taps}
    layers = tuple(name for name in kinds if name in rows)
    empty = {name: jnp.zeros(rows[name].mean.shape, rows[name].mean.dtype) for name in layers}
    return layers, tuple(kinds[name] for name in layers), empty


def _rename_input(name: str) -> str:
    return f"{_INPUT}:1" if name == _INPUT else name
