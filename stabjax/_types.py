"""The arrays and functions that flow through stabjax, typed once.

An image is one example, ``(*spatial, channels)``; a batch puts one axis in front. A field is ``(ndim, *spatial)`` in
pixels, and component ``i`` moves along array axis ``i``. The way of the data::

    Perturbation: (key, image) -> image          one image, random
    network:      batch -> outputs               batched, each row depending on that row alone: `stabjax.networks`
    features:     {name: activation}             what a network computes on the way, one entry per operation
"""

from typing import Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

AnyArray: TypeAlias = jax.Array | np.ndarray
PRNGKey: TypeAlias = Key[Array, ""] | UInt32[Array, " words"]  # typed, or raw: see `_arguments.as_key`
Scalar: TypeAlias = float | int | Float[AnyArray, ""] | Int[AnyArray, ""] | np.number
Image: TypeAlias = Float[AnyArray, " *spatial channels"]
Images: TypeAlias = Float[AnyArray, " batch *spatial channels"]
Field: TypeAlias = Float[AnyArray, " ndim *spatial"]
Coefficients: TypeAlias = Float[AnyArray, " ndim *modes"]


@runtime_checkable
class Perturbation(Protocol):
    """A random map of one image to one image of the same shape and dtype.

    A registered pytree whose strengths are leaves, so that a sweep over strengths compiles once. Zero strength is the
    identity; the same key gives the same output.
    """

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the perturbed image, ``(*spatial, channels)``."""
        ...
