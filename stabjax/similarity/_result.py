"""The result of a comparison of every layer of one network with every layer of another."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, no_type_check

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from stabjax._text import plain, table

if TYPE_CHECKING:
    import xarray

Measure = Literal["cka", "cka_debiased", "cca", "svcca", "pwcca"]
_MOST_COLUMNS = 24
"""A matrix with more columns is not printed."""


# Unflattening builds results of placeholders and, under vmap, of more axes: nothing to check there.
@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False, repr=False)
class Similarity:
    """Hold the similarity of every layer of one network to every layer of another, from `stabjax.probe.similarity`.

    A frozen pytree: arrays are leaves, names are static, so results stack under `vmap` and `jax.tree.map`; axes of
    several networks then stand in front of the shapes given here. Printed, it is a table.

    Attributes:
        layers: names of the layers of the first network, in the order of execution.
        kinds: kind of each (``"conv"``, ``"norm"``, ...).
        other_layers: names of the layers of the second network.
        other_kinds: kind of each.
        matrix: the similarities, ``(layers, other_layers)``; NaN where ``valid`` is False.
        interval: their lower and upper ends, ``(layers, other_layers, 2)``, over images; NaN for canonical
            correlations, which have none.
        valid: whether the similarity says anything, ``(layers, other_layers)``: both layers vary, nothing is NaN, and
            for canonical correlations there are more images than units.
        measured: False for images left out because a pixel is not finite, ``(n,)``.
        measure: which similarity.
        units: whether layers are compared by ``"all"`` units or by the ``"average"`` of each channel over positions.
        confidence: probability that an interval covers.
    """

    layers: tuple[str, ...] = field(metadata={"static": True})
    kinds: tuple[str, ...] = field(metadata={"static": True})
    other_layers: tuple[str, ...] = field(metadata={"static": True})
    other_kinds: tuple[str, ...] = field(metadata={"static": True})
    matrix: Float[Array, "*nets layers other_layers"]
    interval: Float[Array, "*nets layers other_layers 2"]
    valid: Bool[Array, "*nets layers other_layers"]
    measured: Bool[Array, "*nets n"]
    measure: Measure = field(metadata={"static": True})
    units: Literal["all", "average"] = field(metadata={"static": True})
    confidence: float = field(metadata={"static": True})

    def to_xarray(self) -> "xarray.Dataset":
        """Return the same numbers with labeled axes: ``layer``, ``other_layer`` with kinds, ``bound``, ``image``.

        Axes of stacked networks are called ``net``, or ``net_0, net_1, ...`` where there are several.
        """
        import xarray

        # Stacked networks have their axes in front of (layers, other_layers).
        extra = np.ndim(self.matrix) - 2
        nets = ("net",) if extra == 1 else tuple(f"net_{k}" for k in range(extra))
        pair = ("layer", "other_layer")
        axes = {"matrix": pair, "interval": (*pair, "bound"), "valid": pair, "measured": ("image",)}
        variables = {name: ((*nets, *each), np.asarray(getattr(self, name))) for name, each in axes.items()}
        coordinates = {
            "layer": list(self.layers),
            "kind": ("layer", list(self.kinds)),
            "other_layer": list(self.other_layers),
            "other_kind": ("other_layer", list(self.other_kinds)),
            "bound": ["low", "high"],
        }
        about = {"measure": self.measure, "units": self.units, "confidence": self.confidence}
        return xarray.Dataset(variables, coordinates, attrs=about)

    def to_json(self) -> dict[str, Any]:
        """Return what a figure is drawn from, as plain lists: null where a number is not finite."""
        return {
            "layers": list(self.layers),
            "kinds": list(self.kinds),
            "other_layers": list(self.other_layers),
            "other_kinds": list(self.other_kinds),
            "matrix": plain(np.asarray(self.matrix, np.float64)),
            "interval": plain(np.asarray(self.interval, np.float64)),
            "valid": np.asarray(self.valid).tolist(),
            "images": int(np.sum(np.asarray(self.measured))),
            "measure": self.measure,
            "units": self.units,
            "confidence": self.confidence,
        }

    def __repr__(self) -> str:
        if isinstance(self.matrix, Tracer) or np.ndim(self.matrix) != 2:
            shape = np.shape(self.matrix)[:-2]
            size = f"{len(self.layers)} x {len(self.other_layers)} layers"
            return f"Similarity of {size}, stacked {shape}: index with jax.tree.map to print a table"
        return _table(self)


def _table(result: Any) -> str:
    """Format as plain text: for every layer the most similar one, and the matrix where it is narrow enough."""
    matrix, interval = np.asarray(result.matrix), np.asarray(result.interval)
    n = int(np.sum(result.measured))
    left_out = result.measured.shape[0] - n
    units = "all units" if result.units == "all" else "channels averaged over positions"
    title = f"{result.measure} of {n} images{f' ({left_out} not finite, left out)' if left_out else ''}, {units}"
    if np.isfinite(interval).any():
        title += f", {100 * result.confidence:g} % intervals"
    wide = len(result.other_layers) > _MOST_COLUMNS
    columns = [] if wide else [str(k) for k in range(len(result.other_layers))]
    rows = [("", "layer", "kind", "most similar", "", *columns)]
    for k, (layer, kind) in enumerate(zip(result.layers, result.kinds, strict=True)):
        row = matrix[k]
        if np.isfinite(row).any():
            # `nanargmax` raises for a row of NaN alone, so it is called only where there is a finite number.
            best = int(np.nanargmax(row))
            low, high = interval[k, best]
            # The sum is finite only if both ends are.
            ends = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low + high) else ""
            most, value = f"{best} {result.other_layers[best]}", f"{row[best]:.3f}{ends}"
        else:
            most, value = "", "invalid"
        numbers = [] if wide else [f"{v:.2f}" if np.isfinite(v) else "-" for v in row]
        rows.append((str(k), layer, kind, most, value, *numbers))
    return table(title, rows)
