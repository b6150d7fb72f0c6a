"""The result of a measurement: D, G and R of every layer, their intervals, and the numbers they were computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from stabjax._arguments import as_key
from stabjax._compilation import quick_jit
from stabjax._numerics import centered, permit_nan, safe_ratio
from stabjax._sharding import without_explicit_axes
from stabjax._text import plain, table
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

if TYPE_CHECKING:
    import xarray


# Unflattening builds results of placeholders and, under vmap, of more axes: nothing to check there.
@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """Hold the stability of every layer of a network to deformations and to noise.

    A frozen pytree: arrays are leaves, names are static, so results stack under `vmap` and `jax.tree.map`; axes of
    several networks then stand in front of the shapes given here. Printed, it is a table.

    Attributes:
        layers: names of the layers, in the order of execution.
        kinds: kind of each layer (``"conv"``, ``"norm"``, ...; ``"input"`` for the images themselves).
        deformation: ``D``, ``(layers,)``; 0 is invariant, 1 is as far as two different images.
        noise: ``G``, ``(layers,)``, the same for noise.
        relative: ``R = D / G``, ``(layers,)``.
        deformation_interval: lower and upper end for ``D``, ``(layers, 2)``, by bootstrap over images.
        noise_interval: the same for ``G``, ``(layers, 2)``.
        relative_interval: the same for ``R``, ``(layers, 2)``, paired: the same images above and below.
        deformation_numerators: ``|f(tau x) - f(x)|^2`` of each layer, draw and image, ``(layers, draws, n)``.
        noise_numerators: ``|f(x + eta) - f(x)|^2``, ``(layers, draws, n)``.
        spread: share of each image in the pair distance, ``2 |f(x) - <f>|^2 B / (B - 1)`` with the mean over the ``B``
            images of its batch that were measured, ``(layers, n)``; NaN for one that is alone there, for which the mean
            of the others stands in the intervals of ``D`` and ``G``.
        pair_distance: ``<|f(x) - f(z)|^2>`` over all ordered pairs (their median by medians per unit), ``(layers,)``:
            the denominator of ``D`` and ``G``.
        noise_radius: ``|eta|`` of each draw and image, ``(draws, n)``.
        valid: whether ``D``, ``G`` and ``R`` of the layer are all finite, ``(layers,)``.
        measured: False for images left out because a pixel is not finite, ``(n,)``; their numbers are NaN.
        confidence: probability that an interval covers.
        average: how numerators were averaged over images: ``"mean"``, ``"median"`` or ``"median_per_unit"``.
    """

    layers: tuple[str, ...] = field(metadata={"static": True})
    kinds: tuple[str, ...] = field(metadata={"static": True})
    deformation: Float[Array, "*nets layers"]
    noise: Float[Array, "*nets layers"]
    relative: Float[Array, "*nets layers"]
    deformation_interval: Float[Array, "*nets layers 2"]
    noise_interval: Float[Array, "*nets layers 2"]
    relative_interval: Float[Array, "*nets layers 2"]
    deformation_numerators: Float[Array, "*nets layers draws n"]
    noise_numerators: Float[Array, "*nets layers draws n"]
    spread: Float[Array, "*nets layers n"]
    pair_distance: Float[Array, "*nets layers"]
    noise_radius: Float[Array, "*nets draws n"]
    valid: Bool[Array, "*nets layers"]
    measured: Bool[Array, "*nets n"]
    confidence: float = field(metadata={"static": True})
    average: Average = field(metadata={"static": True})

    def to_xarray(self) -> "xarray.Dataset":
        """Return the same numbers with labeled axes: ``layer`` (with its ``kind``), ``bound``, ``draw``, ``image``.

        Axes of stacked networks are called ``net``, or ``net_0, net_1, ...`` where there are several.
        """
        import xarray

        extra = np.ndim(self.deformation) - 1
        # What is stacked stands in front of the axes that a result of one network has.
        nets = ("net",) if extra == 1 else tuple(f"net_{k}" for k in range(extra))
        variables = {name: ((*nets, *axes), np.asarray(getattr(self, name))) for name, axes in _AXES.items()}
        coordinates = {"layer": list(self.layers), "kind": ("layer", list(self.kinds)), "bound": ["low", "high"]}
        return xarray.Dataset(variables, coordinates, attrs={"confidence": self.confidence, "average": self.average})

    def to_json(self) -> dict[str, Any]:
        """Return what a figure is drawn from, as plain lists: a number per layer, null where it is not finite.

        Numbers per image are left to `to_xarray`, whose dataset goes to netCDF.
        """
        radii = np.asarray(self.noise_radius)
        radii = radii[~np.isnan(radii)]
        # Of everything per layer, what is not per image: D, G, R, their intervals, and the pair distance.
        names = [name for name, axes in _AXES.items() if axes[0] == "layer" and "image" not in axes]
        numbers = {name: plain(np.asarray(getattr(self, name), np.float64)) for name in names if name != "valid"}
        return {
            "layers": list(self.layers),
            "kinds": list(self.kinds),
            **numbers,
            "valid": np.asarray(self.valid).tolist(),
            "mean_noise_radius": plain(np.mean(radii)) if radii.size else None,
            "images": int(np.sum(np.asarray(self.measured))),
            "draws": int(np.shape(self.noise_radius)[-2]),
            "average": self.average,
            "confidence": self.confidence,
        }

    def __repr__(self) -> str:
        if isinstance(self.deformation, Tracer) or np.ndim(self.deformation) != 1:
            shape = np.shape(self.deformation)[:-1]
            return f"Stability of {len(self.layers)} layers, stacked {shape}: index with jax.tree.map to print a table"
        return _table(self)


_AXES = {
    "deformation": ("layer",),
    "noise": ("layer",),
    "relative": ("layer",),
    "deformation_interval": ("layer", "bound"),
    "noise_interval": ("layer", "bound"),
    "relative_interval": ("layer", "bound"),
    "deformation_numerators": ("layer", "draw", "image"),
    "noise_numerators": ("layer", "draw", "image"),
    "spread": ("layer", "image"),
    "pair_distance": ("layer",),
    "noise_radius": ("draw", "image"),
    "valid": ("layer",),
    "measured": ("image",),
}


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
    arrays = _summarize(as_key(key), numbers, noise_radius, measured, ends, average=check_average(average))
    return Stability(layers=tuple(layers), kinds=tuple(kinds), confidence=confidence, average=average, **arrays)


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


def _table(result: Any) -> str:
    """Format as plain text, as wide as the names need."""
    n, draws = result.measured.shape[0], result.noise_radius.shape[0]
    left_out = n - int(np.sum(result.measured))
    title = (
        f"{n} images{f' ({left_out} not finite, left out)' if left_out else ''}, {draws} draw{'s' if draws > 1 else ''}"
        f" each, {result.average} over images, {100 * result.confidence:g} % intervals"
    )
    rows = [("layer", "kind", "D deformation", "G noise", "R = D / G", "")]
    columns = [
        (np.asarray(getattr(result, name)), np.asarray(getattr(result, f"{name}_interval")))
        for name in ("deformation", "noise", "relative")
    ]
    for k, (layer, kind) in enumerate(zip(result.layers, result.kinds, strict=True)):
        d, g, r = (f"{value[k]:<8.3g} [{ends[k, 0]:.3g}, {ends[k, 1]:.3g}]" for value, ends in columns)
        rows.append((layer, kind, d, g, r, "" if result.valid[k] else "invalid"))
    return table(title, rows)
