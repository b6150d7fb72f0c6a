"""The result of a measurement: D, G and R of every layer, their intervals, and the numbers they were computed from."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, no_type_check

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from stabjax._text import plain, table
from stabjax.stability._formulas import Average

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
        variables = {name: ((*nets, *axes), np.asarray(getattr(self, name))) for name, axes in AXES.items()}
        coordinates = {"layer": list(self.layers), "kind": ("layer", list(self.kinds)), "bound": ["low", "high"]}
        return xarray.Dataset(variables, coordinates, attrs={"confidence": self.confidence, "average": self.average})

    def to_json(self) -> dict[str, Any]:
        """Return what a figure is drawn from, as plain lists: a number per layer, null where it is not finite.

        Numbers per image are left to `to_xarray`, whose dataset goes to netCDF.
        """
        radii = np.asarray(self.noise_radius)
        radii = radii[~np.isnan(radii)]
        # Of everything per layer, what is not per image: D, G, R, their intervals, and the pair distance.
        names = [name for name, axes in AXES.items() if axes[0] == "layer" and "image" not in axes]
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


AXES = {
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
