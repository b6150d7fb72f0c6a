"""What is done with one batch: perturb its images, run the network, reduce at every operation, update the states."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stabjax import features, perturb
from stabjax._arguments import value_of
from stabjax._numerics import row_sum
from stabjax._pixels import normalize_channels
from stabjax._types import AnyArray, Perturbation, PRNGKey
from stabjax.probe._batching import ALL_KINDS, Kinds, Step
from stabjax.probe._checks import check_front, finite_rows, like_image, real
from stabjax.probe._context import Batch, Rows, make_context
from stabjax.probe._effort import rules_of
from stabjax.probe._relative_stability import RelativeStability

Normalization: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]] | None
"""Mean and deviation of each channel."""
Measurements: TypeAlias = Mapping[str, Any]
"""Each `Measurement` by its name, as `_arguments.as_tree` hands it over."""

INPUT = "input"
"""Name and kind of the images' own row."""
_VERSION = "stabjax_version"


def perturb_batch(
    images: Array,
    positions: Int[Array, " size"],
    counted: Bool[Array, " size"],
    first_draw: Int[Array, ""],
    key: PRNGKey,
    deformation: Perturbation | None,
    noise: Perturbation | None,
    *,
    step: Step,
    normalization: Normalization,
) -> Batch:
    """Make all versions of a batch of images.

    Args:
        images: ``(size, *image)``; bytes are divided by 255.
        positions: Of the images among all.
        counted: False for images that fill up the batch.
        first_draw: Number of the first draw of this step.
        key: Key of the run.
        deformation: The deformation, if there is one.
        noise: The noise; by default that of the size of the deformation.
        step: What passes together.
        normalization: Mean and deviation to normalize by.
    """
    if normalization is not None:
        images = normalize_channels(jnp.asarray(images), *normalization)
    finite = finite_rows(images)
    # Blank where not finite: NaN times a weight of zero would be NaN.
    clean = jnp.where(jnp.expand_dims(finite, tuple(range(1, images.ndim))), images, 0)
    # The key of an image depends on its position among all, so that batches and their size change nothing.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    of_image = partial(perturb_image, deformation, noise, first_draw, step.draws, step.kinds)
    # (draws, size, *image) of each kind.
    perturbed = jax.vmap(of_image, out_axes=1)(keys, clean)
    of_kind = dict(zip(step.kinds, perturbed, strict=True))
    return Batch(
        versions=jnp.concatenate([clean[None], *perturbed]),
        positions=positions,
        finite=finite,
        counted=counted & finite,
        weights=(counted & finite & (first_draw == 0)).astype(jnp.float32),
        keys=keys,
        first_draw=first_draw,
        changed={kind: _differs(x, clean, step.separate) for kind, x in of_kind.items()},
        sizes={kind: jax.vmap(_distances, (0, None))(x, clean) for kind, x in of_kind.items()},
    )


def perturb_image(
    deformation: Perturbation | None,
    noise: Perturbation | None,
    first_draw: Int[Array, ""] | int,
    draws: int,
    kinds: Kinds,
    key: PRNGKey,
    image: Array,
) -> tuple[Float[AnyArray, " draws *image"], ...]:
    """Deform one image, and add noise to it, for so many draws from the first on; only what ``kinds`` names."""

    def perturb_once(draw: Int[Array, ""]) -> tuple[AnyArray, ...]:
        deformation_key, noise_key = jax.random.split(jax.random.fold_in(key, draw))
        found = {}
        if deformation is not None:
            found["deformed"] = like_image("deformation", deformation(deformation_key, image), image)
        if "noisy" in kinds and noise is not None:
            found["noisy"] = like_image("noise", noise(noise_key, image), image)
        elif "noisy" in kinds:
            # On the sphere through the deformed image.
            found["noisy"] = perturb.noise_like(noise_key, image, found["deformed"], spatial=image.shape[:-1])
        return tuple(found[kind].astype(image.dtype) for kind in kinds)

    return jax.vmap(perturb_once)(jnp.asarray(first_draw) + jnp.arange(draws))


def sum_sizes(batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of ``|tau x - x|`` over the images that count and draws, and their number."""
    sizes = batch.sizes["deformed"]
    counted = jnp.broadcast_to(batch.counted, sizes.shape)
    return jnp.sum(sizes, where=counted), jnp.sum(counted).astype(sizes.dtype)


def pass_batch(
    traced: features.Traced,
    measurements: Measurements,
    states: Mapping[str, Any],
    batch: Batch,
    deformation: Perturbation | None,
    *,
    select: features.Select,
    step: Step,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Run the network on all versions of a batch; return the state of every measurement, and the rows."""
    reduced = reduce_batch(traced, measurements, batch, deformation, select=select, step=step)
    context = make_context(batch, step.draws, deformation, traced)
    updated, rows = {}, {}
    for name, measurement in measurements.items():
        found = value_of(measurement).update(states[name], in_order(traced, reduced[name]), context)
        updated[name], rows[name] = check_update(name, found, states[name], step)
    return updated, rows


def check_update(name: str, found: Any, state: Any, step: Step) -> tuple[Any, Rows]:
    """Return the state and the rows that a measurement gives; raise unless they are of the form they must have."""
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Rows):
        raise TypeError(
            f"expected update of {name!r} to return a state and probe.Rows, got {_form(found)}: where there are no "
            "numbers of each image, return state, probe.Rows()"
        )
    if _form(state) != _form(found[0]):
        raise TypeError(
            f"expected update of {name!r} to return a state like the one it takes, {_form(state)}, got "
            f"{_form(found[0])}: give init and update the same shapes and dtypes"
        )
    for what, tree, front in (
        ("per_image", found[1].per_image, (step.size,)),
        ("per_draw", found[1].per_draw, (step.draws, step.size)),
    ):
        for leaf in jax.tree.leaves(tree):
            if np.shape(leaf)[: len(front)] != front:
                raise ValueError(
                    f"expected {what} of the rows of {name!r} to begin with {front}, got shape {np.shape(leaf)}: "
                    "images come first, behind draws where there are any"
                )
    return found


def _form(tree: Any) -> str:
    """Describe a pytree by its structure, dtypes and shapes."""
    return str(jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(np.shape(x))}", tree))


@partial(jax.jit, static_argnames=("select", "step"))
def reduce_batch(
    traced: features.Traced,
    measurements: Measurements,
    batch: Batch,
    deformation: Perturbation | None,
    *,
    select: features.Select,
    step: Step,
) -> dict[str, dict[str, Any]]:
    """Return what each measurement finds at each operation.

    A program of its own, so that the shapes of what is found can be asked for without tracing the network again.
    """
    context = make_context(batch, step.draws, deformation, traced)

    def reduce(tap: features.Tap, activation: Array) -> dict[str, Any]:
        rows = by_image(tap, activation, step.rows)
        if step.separate:
            # For the network each version is a batch of its own. Here they meet, so that every version finds the same.
            versions = jax.lax.all_gather(rows, _VERSION)
        else:
            versions = jnp.reshape(rows, (step.versions, step.size, *rows.shape[1:]))
        return reduce_versions(tap, versions)

    def reduce_versions(tap: features.Tap, versions: Array) -> dict[str, Any]:
        clean, perturbed = versions[0], versions[1:]
        tap = dataclasses.replace(tap, shape=clean.shape)
        of_kind = {kind: perturbed[k * step.draws : (k + 1) * step.draws] for k, kind in enumerate(step.kinds)}
        found = {}
        for name, measurement in measurements.items():
            value, kinds = value_of(measurement), kinds_of(measurement)
            # In one array, without copies; not where a class made from it reduces in its own way.
            if getattr(type(value), "reduce", None) is RelativeStability.reduce and kinds == step.kinds:
                found[name] = value.reduce_versions(tap, versions, context)
                continue
            looked_at = [of_kind.get(kind) if kind in kinds else None for kind in ALL_KINDS]
            found[name] = value.reduce(tap, clean, *looked_at, context)
        return found

    def capture(x: Array) -> Mapping[str, dict[str, Any]]:
        return traced.capture(x, select=select, reduce=reduce, rules=rules_of(traced))[1]

    if step.separate:
        found = jax.vmap(capture, axis_name=_VERSION, out_axes=None)(batch.versions)
    else:
        found = capture(jnp.reshape(batch.versions, (step.rows, *batch.versions.shape[2:])))
    of_images = {INPUT: reduce_versions(input_tap(batch.versions), batch.versions)}
    of_layers = of_images | {rename_input(name): value for name, value in found.items()}
    return {name: {layer: value[name] for layer, value in of_layers.items()} for name in measurements}


def kinds_of(measurement: Any) -> Kinds:
    """Return which versions of an image a measurement looks at beside the clean one."""
    return tuple(getattr(value_of(measurement), "versions", ALL_KINDS))


def by_image(tap: features.Tap, activation: Array, rows: int) -> Array:
    """Reshape an activation to one entry per image; parts of an image that stand in front (windows) go to its entry."""
    check_front(tap, activation, rows)
    if activation.shape[0] == rows:
        return activation
    return jnp.reshape(activation, (rows, -1, *activation.shape[1:]))


def input_tap(versions: Any) -> features.Tap:
    """Return the tap of the images themselves."""
    return features.Tap(INPUT, INPUT, tuple(versions.shape[1:]), versions.dtype, versions.ndim - 2)


def rename_input(name: str) -> str:
    """Return the name of the row of an operation; one that is called as the images are gets a number."""
    return f"{INPUT}:1" if name == INPUT else name


def in_order(traced: features.Traced, reduced: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was found in the order of execution, which compiled programs do not keep."""
    names = (INPUT, *(rename_input(tap.name) for tap in traced.taps))
    return {name: reduced[name] for name in names if name in reduced}


def init_states(
    traced: features.Traced,
    measurements: Measurements,
    batch: Batch,
    deformation: Perturbation | None,
    *,
    select: features.Select,
    step: Step,
) -> tuple[dict[str, Any], tuple[features.Tap, ...]]:
    """Return the state of every measurement before the first batch, and the taps that are measured.

    Args:
        traced: The network.
        measurements: By name.
        batch: A batch, or shapes and dtypes of one.
        deformation: The deformation.
        select: Which operations.
        step: What passes together.
    """
    shapes = jax.eval_shape(partial(reduce_batch, select=select, step=step), traced, measurements, batch, deformation)
    states = {
        name: value_of(measurement).init(in_order(traced, shapes[name])) for name, measurement in measurements.items()
    }
    known = {INPUT: input_tap(batch.versions)}
    known |= {rename_input(tap.name): dataclasses.replace(tap, name=rename_input(tap.name)) for tap in traced.taps}
    found = next(iter(shapes.values()))
    return states, tuple(tap for name, tap in known.items() if name in found)


def _differs(
    perturbed: Float[AnyArray, "draws size *image"], clean: Float[Array, " size *image"], separate: bool
) -> Bool[Array, "draws size"]:
    """Tell which images differ from the clean ones.

    With batch statistics an image changes with the others of its batch, so there it is the whole batch that counts.
    """
    differs = jnp.any(jnp.reshape(perturbed != clean[None], (*perturbed.shape[:2], -1)), axis=2)
    return jnp.broadcast_to(jnp.any(differs, axis=1, keepdims=True), differs.shape) if separate else differs


def _distances(x: Float[AnyArray, " size *image"], y: Float[AnyArray, " size *image"]) -> Float[Array, " size"]:
    return jnp.sqrt(row_sum(jnp.square(real(x) - real(y))))
