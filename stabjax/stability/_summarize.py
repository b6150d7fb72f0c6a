"""From a few numbers per image, or from whole arrays, to a `Stability`: averages over images, and intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from stabjax._arguments import as_key
from stabjax._compilation import quick_jit
from stabjax._numerics import centered, permit_nan, safe_ratio
from stabjax._sharding import is_traced, without_explicit_axes
from stabjax._types import AnyArray, PRNGKey
from stabjax.stability._bootstrap import (
    Intervals,
    average_images,
    check_average,
    interval_ends,
    resample_images,
)
from stabjax.stability._formulas import Average, pair_distance, squared_change
from stabjax.stability._per_unit import per_unit
from stabjax.stability._result import AXES, Stability


@permit_nan()
def summarize(
    key: PRNGKey,
    *,
    layers: Sequence[str],
    kinds: Sequence[str],
    deformation_numerators: Float[AnyArray, "layers draws n"],
    noise_numerators: Float[AnyArray, "layers draws n"],
    spread: Float[AnyArray, "layers n"],
    pair_distance: Float[AnyArray, " layers"],
    noise_radius: Float[AnyArray, "draws n"],
    measured: Bool[AnyArray, " n"] | None = None,
    average: Average = "mean",
    confidence: float = 0.95,
) -> Stability:
    """Compute ``D``, ``G``, ``R`` and their intervals from a few numbers per image.

    The arguments are attributes of `Stability`. Several draws of one image are averaged first, then the images.

    Args:
        key: key of the bootstrap.
        layers: names of the layers.
        kinds: their kinds.
        deformation_numerators: ``|f(tau x) - f(x)|^2``.
        noise_numerators: ``|f(x + eta) - f(x)|^2``.
        spread: share of each image in the pair distance; NaN where it is not known, see `bootstrap`.
        pair_distance: denominator of ``D`` and ``G``.
        noise_radius: ``|eta|``.
        measured: False for images to leave out; all are taken by default.
        average: ``"mean"`` or ``"median"`` over images.
        confidence: probability that an interval covers.
    """
    measured = jnp.ones(spread.shape[-1], bool) if measured is None else jnp.asarray(measured)
    deformation_numerators, noise_numerators, spread, pair_distance, noise_radius, measured = without_explicit_axes(
        (deformation_numerators, noise_numerators, spread, pair_distance, noise_radius, measured)
    )
    numbers = {
        "deformation_numerators": deformation_numerators,
        "noise_numerators": noise_numerators,
        "spread": spread,
        "pair_distance": pair_distance,
    }
    ends = interval_ends(confidence, spread.dtype)
    of_images = {"noise_radius": noise_radius, "measured": measured}
    arrays = _summarize_layers(as_key(key), numbers, of_images, ends, check_average(average))
    return Stability(layers=tuple(layers), kinds=tuple(kinds), confidence=confidence, average=average, **arrays)


_LAYERS = 32


def _summarize_layers(
    key: PRNGKey, numbers: dict[str, Any], of_images: dict[str, Any], ends: Any, average: Average
) -> dict[str, Any]:
    """Call `_summarize` with layers in multiples of 32, so that one program serves networks of like depth.

    The last layer stands in for those that are missing. A median sorts every layer: there they would cost more than a
    program.
    """
    layers = len(numbers["pair_distance"])
    missing = -layers % _LAYERS
    if missing == 0 or average != "mean" or is_traced((key, numbers, of_images)):
        return _summarize(key, numbers, **of_images, ends=ends, average=average)
    # Padded and cut on the host: on a device each would be a program for every number of layers.
    repeated = np.minimum(np.arange(layers + missing), layers - 1)
    arrays = _summarize(
        key, {name: np.asarray(x)[repeated] for name, x in numbers.items()}, **of_images, ends=ends, average=average
    )
    return {
        name: jax.device_put(np.asarray(x)[:layers]) if AXES[name][0] == "layer" else x for name, x in arrays.items()
    }


@quick_jit(level=0, static_argnames="average")
def _summarize(
    key: PRNGKey,
    numbers: dict[str, Array],
    noise_radius: Array,
    measured: Array,
    ends: Array,
    *,
    average: Average,
) -> dict[str, Array]:
    """Return the arrays of a `Stability`. In one program: each operation by itself would be one to compile."""
    intervals = resample_images(key, **numbers, measured=measured, ends=ends, average=average)
    deformed = average_images(numbers["deformation_numerators"], measured, average)
    noisy = average_images(numbers["noise_numerators"], measured, average)
    return _assemble(deformed, noisy, intervals, measured, numbers | {"noise_radius": noise_radius})


def _assemble(
    deformed: Array, noisy: Array, intervals: Intervals, measured: Array, numbers: dict[str, Array]
) -> dict[str, Array]:
    """Return the arrays of a result from numerators averaged over images, and the numbers they were averaged from."""
    pairs = jnp.asarray(numbers["pair_distance"])
    # R is the ratio of the numerators, not of D and G: it is defined where the pair distance is not.
    d, g, r = safe_ratio(deformed, pairs), safe_ratio(noisy, pairs), safe_ratio(deformed, noisy)
    of_images = {
        # The last axis of all four is that of the images.
        name: jnp.where(jnp.broadcast_to(measured, numbers[name].shape), numbers[name], jnp.nan)
        for name in ("deformation_numerators", "noise_numerators", "spread", "noise_radius")
    }
    return {
        "deformation": d,
        "noise": g,
        "relative": r,
        "deformation_interval": intervals.deformation,
        "noise_interval": intervals.noise,
        "relative_interval": intervals.relative,
        "valid": jnp.isfinite(d) & jnp.isfinite(g) & jnp.isfinite(r),
        "measured": measured,
        "pair_distance": pairs,
        **of_images,
    }


@permit_nan()
def from_features(
    key: PRNGKey,
    clean: Mapping[str, AnyArray],
    deformed: Mapping[str, AnyArray],
    noisy: Mapping[str, AnyArray],
    *,
    kinds: Mapping[str, str] | None = None,
    noise_radius: Float[AnyArray, "draws n"] | None = None,
    average: Average = "mean",
    confidence: float = 0.95,
) -> Stability:
    """Compute ``D``, ``G`` and ``R`` from whole arrays of features, however they were computed.

    The headline figure of Petrini et al. 2021 is ``average="median_per_unit"`` of the output: numerators
    ``sum_u med_x (f_u(x') - f_u(x))^2``, here averaged over the draws, and ``med_{x,z} |f(x) - f(z)|^2`` below.
    `stabjax.probe.perturbed` makes the images it takes.

    Args:
        key: key of the bootstrap.
        clean: features of the clean images by layer, ``(n, *units)`` each.
        deformed: the same of the deformed images, ``(n, *units)``, or ``(draws, n, *units)`` for several draws.
        noisy: the same of the noisy images.
        kinds: kind of each layer; ``"other"`` by default.
        noise_radius: ``|eta|``, ``(draws, n)``; NaN by default.
        average: ``"mean"`` or ``"median"`` over images, or ``"median_per_unit"`` as published, see `deformation`.
        confidence: probability that an interval covers.

    Raises:
        ValueError: if the layers or the shapes disagree; for medians per unit of more than 65535 images.
    """
    key, layers = as_key(key), tuple(clean)
    clean, deformed, noisy, noise_radius = without_explicit_axes(
        (dict(clean), dict(deformed), dict(noisy), noise_radius)
    )
    if not layers or set(deformed) != set(layers) or set(noisy) != set(layers):
        raise ValueError(f"expected features of the same layers, got {layers}, {tuple(deformed)} and {tuple(noisy)}")

    def with_draws(name: str, perturbed: AnyArray) -> Array:
        # (draws, n, *units), also of one draw.
        return jnp.asarray(perturbed if perturbed.ndim == clean[name].ndim + 1 else perturbed[None])

    def numerators(name: str, perturbed: AnyArray) -> Array:
        return _squared_changes(jnp.asarray(clean[name]), with_draws(name, perturbed))

    def spread(name: str) -> Array:
        n = clean[name].shape[0]
        # All images are one batch here: B = n.
        return 2 * centered(clean[name])[1] * (n / ((n - 1) or jnp.nan))

    deformation_numerators = jnp.stack([numerators(name, deformed[name]) for name in layers])
    # (draws, n).
    unknown_radius = jnp.full(deformation_numerators.shape[1:], jnp.nan, deformation_numerators.dtype)
    numbers = {
        "deformation_numerators": deformation_numerators,
        "noise_numerators": jnp.stack([numerators(name, noisy[name]) for name in layers]),
        "spread": jnp.stack([spread(name) for name in layers]),
        "noise_radius": unknown_radius if noise_radius is None else noise_radius,
    }
    named: dict[str, Any] = {
        "layers": layers,
        "kinds": tuple((kinds or {}).get(name, "other") for name in layers),
        "average": average,
        "confidence": confidence,
    }
    if average != "median_per_unit":
        pairs = jnp.stack([pair_distance(clean[name]) for name in layers])
        return summarize(key, pair_distance=pairs, **numbers, **named)
    ends = interval_ends(confidence, deformation_numerators.dtype)
    results = [
        per_unit(key, clean[name], with_draws(name, deformed[name]), with_draws(name, noisy[name]), ends)
        for name in layers
    ]
    # A `PerUnit` for each layer: numbers (layers,), and intervals (layers, 3, 2), which become (3, layers, 2) below.
    deformed_medians, noisy_medians, pairs, intervals = map(jnp.stack, zip(*results))
    arrays: dict[str, Any] = _assemble(
        deformed_medians,
        noisy_medians,
        Intervals(*jnp.moveaxis(intervals, 1, 0)),
        jnp.ones(deformation_numerators.shape[-1], bool),
        numbers | {"pair_distance": pairs},
    )
    return Stability(**named, **arrays)


@jax.jit
def _squared_changes(clean: Array, perturbed: Array) -> Array:
    """Return the squared change of every image in every draw, ``(draws, n)``, draw by draw to hold one at a time.

    A function of the module, so that it compiles once for features of one shape; `jax.lax.map` of a new function
    compiles at every call.
    """
    return jax.lax.map(lambda draw: squared_change(clean, draw), perturbed)
