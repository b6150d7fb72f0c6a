"""A kernel with its norm, ready to be brought inside any limit."""

import math
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax.lipschitz._conv import conv
from stabjax.lipschitz._gram import frobenius, scaled
from stabjax.lipschitz._torus import Padding, Sizes


class Geometry(NamedTuple):
    """What `conv` is told about a convolution."""

    size: Sizes | None
    stride: Sizes
    padding: Padding
    dilation: Sizes
    groups: int


class Matrix(NamedTuple):
    """The kernel of a dense layer, by its singular vectors."""

    kernel: Array
    left: Array
    values: Array
    right: Array

    @property
    def norm(self) -> Array:
        """The spectral norm, to rounding."""
        return self.values[0]

    @property
    def _margin(self) -> float:
        """Room for the rounding of the decomposition, and of the product that undoes it, as a share of the norm."""
        return (16 + 4 * math.sqrt(max(self.kernel.shape))) * float(jnp.finfo(self.kernel.dtype).eps)

    def strictly(self, limit: Array) -> Array:
        """Whether the norm is at most the limit, whatever was rounded."""
        return self.norm * (1 + self._margin) <= limit

    def inside(self, limit: Array) -> Array:
        """The closest matrix strictly inside the limit."""
        clipped = self._of(jnp.minimum(self.values, jnp.where(limit < 0, 0, limit) * (1 - self._margin)))
        return jnp.where(self.strictly(limit), self.kernel, clipped)

    def raised(self, limit: Array) -> Array:
        """The closest matrix whose norm is the limit."""
        return self._of(jnp.minimum(self.values, limit).at[0].set(limit))

    def _of(self, values: Array) -> Array:
        return jnp.matmul(self.left * values[None], self.right, precision=HIGHEST)


class Convolution(NamedTuple):
    """The kernel of a convolution, with a certified bound on its norm."""

    kernel: Array
    norm: Array

    def strictly(self, limit: Array) -> Array:
        """Whether the norm is at most the limit, whatever was rounded."""
        return self.norm <= limit

    def inside(self, limit: Array) -> Array:
        """The kernel times a number, strictly inside the limit."""
        eps = float(jnp.finfo(self.kernel.dtype).eps)
        # Scaling rounds every entry, the bound of what is scaled may differ in the last digits.
        safe = self.norm * (1 + 64 * eps) + 2 * eps * entries(self.kernel)
        share = jnp.where(limit < 0, 0, limit) / jnp.where(safe > 0, safe, 1)
        return jnp.where(self.strictly(limit), self.kernel, self.kernel * share)

    def raised(self, limit: Array) -> Array:
        """The kernel times a number, with its bound at the limit; NaN if it is zero and cannot be raised."""
        zero = self.norm == 0
        share = jnp.where(zero, jnp.nan, limit / jnp.where(zero, 1, self.norm))
        return jnp.where(limit == 0, 0, self.kernel * share)


Ball: TypeAlias = Matrix | Convolution


def measured(kernel: Array, geometry: Geometry) -> Ball:
    """The kernel with its norm: of a dense layer if it has two axes, of a convolution if it has more."""
    if kernel.ndim > 2:
        size, stride, padding, dilation, groups = geometry
        bound = conv(kernel, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return Convolution(kernel, bound.value)
    small, scale = scaled(kernel)
    left, values, right = jnp.linalg.svd(small, full_matrices=False)
    return Matrix(kernel, left, values * scale, right)


def entries(kernel: Array) -> Float[Array, ""]:
    """``|S|_F`` with ``S`` the sum of absolute values over the window.

    No change of the entries by a share ``u`` of theirs changes the norm by more than ``u`` times that.
    """
    return frobenius(jnp.sum(jnp.reshape(jnp.abs(kernel), (-1, *kernel.shape[-2:])), axis=0))
