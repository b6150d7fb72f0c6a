"""What a unit would look at if all weights were one: the paths that lead to it, counted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float64

from stabjax import _jaxpr, features
from stabjax._images import Spatial, as_batch
from stabjax._types import AnyArray
from stabjax.receptive._path_counts import unit_weight_output
from stabjax.receptive._unit import Position, Unit, axes_of, is_inside, locate, unit_mask


def constant_weight(
    f: Any, x: Any, *, tap: str, unit: Position | None = None, spatial: Spatial = None
) -> Float64[AnyArray, "*spatial"]:
    """Count the paths that lead from each pixel to one unit: the map of the same network with all weights one.

    Every spatial weight is one unless a mask makes it zero, channels and the inputs of a dense layer are averaged,
    activations are the identity, a maximum (a pool, or the larger of two maps) is the mean of what it chooses from, and
    so is a product of activations. Averages stay averages. Biases and normalization by fixed statistics do nothing. The
    network itself is not touched: its traced program is written out anew. An activation is what `features.taps` lists
    as one; elementwise steps that it does not list, as in a loop over the images, keep their constant factors.

    As no weight is negative, the map is positive exactly where a path leads. It lies within what the unit sees, which
    is the box of `extent` clipped to the image for a chain of layers, and fills it up to the holes that dilation and
    strides leave, at the border of the box too. With padding that repeats or mirrors the image it lies where the
    padding takes its pixels from, and behind an operation that is not known it is positive everywhere. A chain of
    kernels 3 with stride 2 counts 1 1 1, then 1 1 2 1 2 1 1, then 1 1 2 1 3 2 3 1 3 2 3 1 2 1 1.

    Args:
        f: a network from `networks.wrap`, or a plain function of a batch.
        x: a batch, ``(n, *spatial, channels)``, its shape and dtype, or its shape. Two images pass
            where the network takes any number, else as many as there are.
        tap: name of an operation, as in `features.taps`.
        unit: position of the unit on the axes of the tap without batch and channels; by default the center,
            ``side // 2`` on each axis. All units of a tap share one compiled program. It may be traced: the maps of
            many units are those of a `jax.vmap` over it.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        the map, of the shape of an image without channels, averaged over the channels of the unit and summed over those
        of the image. In double precision: the counts of a deep network exceed single precision. A NumPy array, but of
        a traced unit a JAX array, NaN if the tap has no such unit; make it one by `numpy.asarray` before anything else,
        as JAX may cut what it computes of it to single precision.

    Raises:
        TypeError: if JAX cannot trace the network.
        ValueError: if ``x`` is no batch; for a name that is no operation of the network, or a unit that it does not
            have.
    """
    x = as_batch(x, spatial=spatial, vectors=True)
    traced, found = _found(f, jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), tap, unit)
    image = traced.batch
    shape, channel_axis = found.site.shape, found.site.channel_axis

    def of_unit(place: Any) -> list[Array]:
        def network(x: Any) -> Any:
            return unit_weight_output(traced.program, traced.arrays, found.site, x)

        # The mean over the channels of the unit, as a linear function of the tap; its transpose is the map of the unit.
        weights = jnp.where(unit_mask(place, shape, channel_axis), 1 / found.channels, 0.0).astype(np.float64)
        (counts,) = jax.linear_transpose(network, jax.ShapeDtypeStruct(image.shape, np.float64))(weights)
        known = is_inside(place, [shape[axis] for axis in axes_of(shape, channel_axis)])
        return [jnp.where(known, jnp.sum(counts, (0, -1)), jnp.nan)]

    (counts,) = _jaxpr.in_double(of_unit, found.place)
    return counts if isinstance(found.place, Tracer) else np.asarray(counts)


def _found(f: Any, image: Any, tap: str, unit: Position | None) -> tuple[features.Traced, Unit]:
    """Find the unit in a program for two images, where the network runs alike on two; else for the batch as given."""
    traced, found = locate(f, image, tap, unit)
    if image.shape[0] > 2:
        try:
            fewer = locate(f, jax.ShapeDtypeStruct((2, *image.shape[1:]), image.dtype), tap, unit)
        except (TypeError, ValueError):
            return traced, found
        if fewer[1].site.shape[1:] == found.site.shape[1:]:
            return fewer
    return traced, found
