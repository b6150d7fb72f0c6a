"""`RelativeStability`: the measurement behind `stabjax.probe.stability`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax import features
from stabjax._numerics import centered
from stabjax._sharding import is_traced
from stabjax._types import AnyArray
from stabjax.probe._checks import real
from stabjax.probe._context import Context, Rows, Summary
from stabjax.probe._moments import LayerMoments
from stabjax.stability import Stability, summarize

_BOOTSTRAP = np.uint32(2**32 - 1)  # the bootstrap takes the key of an image that no set has


class LayerChanges(NamedTuple):
    """What is kept of one activation of a batch."""

    deformed: Float[Array, "draws size"]
    """Squared change of every deformed image."""
    noisy: Float[Array, "draws size"]
    """Squared change of every noisy image."""
    distances: Float[Array, " size"]
    """Squared distance of every clean row to their mean."""
    mean: Float[Array, " units"]
    """Mean of the clean rows."""


@dataclass(frozen=True)
class RelativeStability:
    """Measure ``D``, ``G`` and ``R = D / G`` of every operation, a `stabjax.probe.Measurement`.

    See `stabjax.probe.stability`, which takes this measurement alone.
    """

    average: Literal["mean", "median"] = "mean"
    """Over images, in the numerators."""
    confidence: float = 0.95
    """Probability that an interval covers."""

    versions: ClassVar[tuple[str, ...]] = ("deformed", "noisy")
    least_images: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.average not in ("mean", "median"):
            raise ValueError(
                f"expected average 'mean' or 'median' over images, got {self.average!r}: medians per unit need whole "
                "arrays, see stabjax.stability.from_features and stabjax.probe.perturbed"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(f"expected a confidence between 0 and 1, got {self.confidence}: 0.95 is usual")

    def reduce(
        self,
        tap: features.Tap,
        clean: AnyArray,
        deformed: AnyArray | None,
        noisy: AnyArray | None,
        context: Context,
    ) -> LayerChanges:
        """Return squared changes, and distances to the mean of the batch."""
        if deformed is None or noisy is None:
            raise ValueError("expected a deformation for RelativeStability, got none: give deformation=")
        return self.reduce_versions(tap, jnp.concatenate([clean[None], deformed, noisy]), context)

    def reduce_versions(self, tap: features.Tap, versions: AnyArray, context: Context) -> LayerChanges:
        """Return the same of all versions in one array, ``(1 + 2 draws, size, *activation)``, clean ones first."""
        rows = jnp.reshape(real(versions), (*versions.shape[:2], -1))
        clean = rows[0]
        # The clean row of the difference is zero. It is computed nevertheless: to leave it out is to copy the others.
        changes = jnp.sum(jnp.square(rows - clean[None]), axis=2)
        draws = len(versions) // 2
        mean, distances = centered(clean, weights=context.weights)
        return LayerChanges(changes[1 : 1 + draws], changes[1 + draws :], distances, mean)

    def init(self, reduced: Mapping[str, LayerChanges]) -> LayerMoments:
        """Return moments of no images for every operation."""
        return LayerMoments.init([row.mean for row in reduced.values()])

    def update(
        self, state: LayerMoments, reduced: Mapping[str, LayerChanges], context: Context
    ) -> tuple[LayerMoments, Rows]:
        """Add a batch to the moments; rows are changes and shares in the pair distance, layer by layer."""
        rows = reduced.values()
        distances = _stack(row.distances for row in rows)
        batch = LayerMoments.of_distances(tuple(row.mean for row in rows), distances, context.weights)
        # Where a perturbed image does not differ from the clean one no layer changes: what one shows is rounding, which
        # differs from row to row of a batch.
        deformed, noisy = (
            jnp.where(context.changed[kind][:, :, None], _stack(getattr(row, kind) for row in rows), 0)
            for kind in self.versions
        )
        # An unbiased share of each image in <|f(x) - f(z)|^2>: 2 |f_i - batch mean|^2 B / (B - 1). Where no other image
        # of the batch counts it is unknown: the image itself is the mean.
        number = jnp.sum(context.weights).astype(distances.dtype)
        unbiased = jnp.where(number > 1, number / jnp.maximum(number - 1, 1), jnp.nan)
        return state.merge(batch), Rows(per_image=2 * distances * unbiased, per_draw=(deformed, noisy))

    def merge(self, one: LayerMoments, other: LayerMoments) -> LayerMoments:
        """Return the moments of the images of both."""
        return _merge(one, other)

    def finish(self, state: LayerMoments, rows: Rows, summary: Summary) -> Stability:
        """Return the result, with intervals by bootstrap over images."""
        names = tuple(tap.name for tap in summary.taps)
        return summarize(
            jax.random.fold_in(summary.key, _BOOTSTRAP),
            layers=names,
            kinds=tuple(tap.kind for tap in summary.taps),
            **_numbers(state, rows),
            noise_radius=summary.sizes["noisy"],
            measured=summary.measured,
            average=self.average,
            confidence=self.confidence,
        )


@jax.jit
def _merge(one: LayerMoments, other: LayerMoments) -> LayerMoments:
    return one.merge(other)


def _numbers(moments: LayerMoments, rows: Rows) -> dict[str, Any]:
    """Return what the result is computed from, layers first."""
    deformed, noisy = rows.per_draw
    # Rows that were collected on the host stay there.
    numpy: Any = jnp if is_traced(rows) else np
    return {
        "deformation_numerators": numpy.moveaxis(deformed, 2, 0),
        "noise_numerators": numpy.moveaxis(noisy, 2, 0),
        "spread": numpy.moveaxis(rows.per_image, 1, 0),
        "pair_distance": _pair_distance(moments),
    }


@jax.jit
def _pair_distance(moments: LayerMoments) -> Float[Array, " layers"]:
    return moments.pair_distance


def _stack(rows: Any) -> Array:
    """Stack the numbers of all layers along a last axis."""
    rows = tuple(rows)
    dtype = jnp.result_type(*rows)
    return jnp.stack([row.astype(dtype) for row in rows], axis=-1)
