"""What a unit would look at if all weights were one: the paths that lead to it, counted."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from stabjax import _jaxpr
from stabjax.receptive._unit import find, reading_of


def constant_weight(f: Any, x: Any, *, tap: str, unit: Sequence[int] | None = None) -> Float64[np.ndarray, "*spatial"]:
    """Map of one unit of the same network with all weights one: how many paths lead from a pixel to the unit.

    Every spatial weight is one, channels and the inputs of a dense layer are averaged, activations are the identity,
    a maximum (a pool, or the larger of two maps) is the mean of what it chooses from, and so is a product of
    activations. Biases and normalisation by fixed statistics do nothing. The network itself is not touched: its traced
    program is written out anew.

    As no weight is negative, the map is positive exactly where a path leads: its support is the box of `extent`
    clipped to the image, up to holes that dilation leaves inside. A chain of kernels 3 with stride 2 counts
    1 1 1, then 1 1 2 1 2 1 1, then 1 1 2 1 3 2 3 1 3 2 3 1 2 1 1.

    Args:
        f: a network from `features.of`, or a plain function of a batch.
        x: a batch, ``(n, *spatial, channels)``, or its `jax.ShapeDtypeStruct`; only its shape matters.
        tap: name of an operation, as in `features.taps`.
        unit: position of the unit on the axes of the tap without batch and channels; by default the centre,
            ``side // 2`` on each axis.

    Returns:
        the map, of the shape of an image without channels, averaged over the channels of the unit and summed over those
        of the image. In double precision: the counts of a deep network exceed single precision.

    Raises:
        TypeError: if JAX cannot trace the network.
        ValueError: for a name that is no operation of the network, or a unit that it does not have.
    """
    image = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    reading = reading_of(f, image)
    found = find(reading, tap, unit)
    index = tuple(slice(None) if place is None else place for place in found.index)
    with jax.enable_x64(True):
        shape = jax.ShapeDtypeStruct(image.shape, np.float64)
        transposed = jax.linear_transpose(lambda x: jnp.mean(_jaxpr.positive(reading, found.site, x)[index]), shape)
        (counts,) = jax.jit(transposed)(np.float64(1))
        return np.asarray(counts).sum((0, -1))
