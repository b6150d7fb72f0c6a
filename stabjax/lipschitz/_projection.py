"""Projection of kernels onto a bound on their norm, once (`constrain`) or behind every step of training (`keep`)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax._jaxpr import path_name
from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray, Scalar
from stabjax.lipschitz._bound import promote_kernel
from stabjax.lipschitz._circulant import Padding, Sizes
from stabjax.lipschitz._conv import conv
from stabjax.lipschitz._gram import frobenius_norm, split_scale


class ConvGeometry(NamedTuple):
    """Options of `conv`, hashable."""

    size: Sizes | None
    stride: Sizes
    padding: Padding
    dilation: Sizes
    groups: int


def constrain(
    kernel: Float[AnyArray, "..."],
    bound: Scalar,
    *,
    exact: bool = False,
    size: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = "zero",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Float[Array, "..."]:
    """Return the kernel closest to the given one whose spectral norm is at most the bound.

    Of a dense kernel: ``U min(S, bound) V'`` by its singular values, the closest matrix in the Frobenius norm (and in
    every other that does not see rotations). It is inside by some roundings, so that a second time nothing changes.

    Of a convolution: the kernel times a number, so that its certified bound by `conv` is at most ``bound``. That is not
    the closest: to clip the frequencies one by one would make the window as large as the image.

    What is inside already comes back as it is.

    Args:
        kernel: of a dense layer, ``(inputs, outputs)``, or of a convolution, ``(*window, inputs / groups, outputs)``.
        bound: not negative, and may be traced; 0 gives zero.
        exact: raise a smaller norm to the bound, too. Of a dense kernel that changes the largest singular value alone
            (of a zero kernel, one of many that are equally close comes back).
        size: of the images of a convolution. With None and the defaults of the rest, the bound holds for every size,
            stride, padding, dilation and number of groups; what is known of them makes it closer.
        stride: as in `conv`, and so are the following.
        padding: see there.
        dilation: see there.
        groups: see there.

    Returns:
        the kernel, of the same shape and dtype; NaN for a traced bound that is negative, for a kernel that is not
        finite, and where a zero kernel of a convolution would have to be raised.

    Raises:
        TypeError: if the kernel is not of real floating-point numbers.
        ValueError: for a negative bound, or a kernel with less than two axes; as in `conv`.
    """
    if kernel.ndim < 2:
        raise ValueError(f"expected a kernel (*window, inputs, outputs), got shape {kernel.shape}")
    geometry = make_geometry(size, stride, padding, dilation, groups)
    computed = promote_kernel(kernel)
    dtype = jnp.asarray(kernel).dtype
    return _project(computed, as_limit(bound, computed.dtype), exact, geometry, dtype)


def make_geometry(size: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> ConvGeometry:
    """Collect the options of a convolution, hashable: sequences become tuples."""

    def freeze(value: Any) -> Any:
        return tuple(map(freeze, value)) if isinstance(value, list | tuple) else value

    return ConvGeometry(*map(freeze, (size, stride, padding, dilation, groups)))


def as_limit(bound: Scalar, dtype: Any) -> Float[Array, ""]:
    """Return the bound as a number of this dtype; a traced negative one is NaN, another raises ``ValueError``."""
    if not isinstance(bound, Tracer) and not np.all(np.asarray(bound) >= 0):
        raise ValueError(f"expected a bound >= 0, got {bound}")
    limit = jnp.asarray(bound, dtype)
    if limit.ndim:
        raise ValueError(f"expected a scalar bound, got shape {limit.shape}; use jax.vmap over several")
    return jnp.where(limit < 0, jnp.nan, limit)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _project(kernel: Array, limit: Array, exact: bool, geometry: ConvGeometry, dtype: np.dtype) -> Array:
    """Project a kernel, with room for the rounding to ``dtype`` where that is narrower than the computation."""
    measured = measure(kernel, geometry)
    if exact:
        return measured.scale_to(limit).astype(dtype)
    inside = measured.project(limit)
    if dtype != kernel.dtype:
        # Rounding to dtype changes entries by half a unit of theirs, eps / 2, the norm by that times the sensitivity:
        # once more, with that much room and a fifth in reserve.
        inside = measured.project(limit - 0.6 * float(jnp.finfo(dtype).eps) * entrywise_sensitivity(inside))
    # A kernel that is inside comes back bit for bit, without the margin.
    return jnp.where(measured.norm <= limit, kernel, inside).astype(dtype)


def keep(
    bound: Scalar,
    *,
    select: Callable[[str, Array], bool] | None = None,
    size: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = "zero",
    dilation: Sizes = 1,
    groups: int = 1,
) -> optax.GradientTransformation:
    """Build an optax transformation that keeps kernels inside a bound; the last of a chain.

    Projected descent: the update becomes the one that leads to what `constrain` makes of the parameters behind the
    step. After `optax.apply_updates` every selected kernel is inside, the rounding of that addition included, in
    half precision too; kernels that start outside are inside after one step. An update that stays inside passes
    untouched.

    Layers of different bounds or geometries take one such transformation each, with a ``select`` of their own.

    Args:
        bound: on the spectral norm of every selected kernel.
        select: which parameters, from the path (``"blocks/2/conv/kernel"``) and the array of each; by default all real
            ones with at least two axes. Two axes make a dense layer, more a convolution ``(*window, inputs / groups,
            outputs)``.
        size: of the images of a convolution, as in `constrain`, and so are the following; by default for every one.
        stride: see there.
        padding: see there.
        dilation: see there.
        groups: see there.

    Returns:
        the transformation; its ``update`` needs the parameters. It has no state.

    Raises:
        ValueError: for a negative bound; in ``update``, without parameters, or as in `constrain`.

    Example:
        >>> optax.chain(optax.adam(1e-3), lipschitz.keep(1.0))
    """
    as_limit(bound, jnp.float32)
    geometry = make_geometry(size, stride, padding, dilation, groups)
    is_selected = _is_kernel if select is None else select

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("expected update(updates, state, params), got no params: a bound on them needs them")

        def project_update(path: Any, parameter: Array, change: Array) -> Array:
            if not is_selected(path_name(path).removesuffix("/value"), parameter):
                return change
            return _project_update(parameter, change, as_limit(bound, promote_kernel(parameter).dtype), geometry)

        return jax.tree_util.tree_map_with_path(project_update, params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_kernel(path: str, parameter: Array) -> bool:
    """Tell a kernel from other parameters: real, with two axes at least."""
    return parameter.ndim > 1 and jnp.issubdtype(parameter.dtype, jnp.floating)


@partial(jax.jit, static_argnums=3)
def _project_update(parameter: Array, change: Array, limit: Array, geometry: ConvGeometry) -> Array:
    """Return the change that leads inside: ``constrained - parameter``.

    The limit is lowered by what rounding can add: half a unit of the last digit of the change, and of the sum that
    `optax.apply_updates` forms of parameter and change.
    """
    # What is applied in the end is round(parameter + round(inside - parameter)): two roundings in the dtype of the
    # parameter. A first projection tells how large both numbers are, the second leaves room for them.
    start = promote_kernel(parameter)
    measured = measure(start + promote_kernel(change).astype(start.dtype), geometry)
    first_guess = measured.project(limit)
    unit = float(jnp.finfo(parameter.dtype).eps) / 2
    # Each rounding changes an entry by at most `unit` of it, hence the norm by `unit` times the sensitivity of the
    # array that is rounded: first the change (inside - start), then the sum (inside). A fifth is the reserve.
    limit = limit - 1.2 * unit * (entrywise_sensitivity(first_guess - start) + entrywise_sensitivity(first_guess))
    inside = (measured.project(limit) - start).astype(parameter.dtype)
    return jnp.where(measured.is_inside(limit), change, inside.astype(change.dtype))


class DenseKernel(NamedTuple):
    """The kernel of a dense layer, by its singular vectors."""

    kernel: Array
    left: Array
    values: Array
    right: Array

    @property
    def norm(self) -> Array:
        """Spectral norm, to rounding."""
        return self.values[0]

    @property
    def _margin(self) -> float:
        """Room for the rounding of the decomposition, and of the product that undoes it, as a share of the norm."""
        return (16 + 4 * math.sqrt(max(self.kernel.shape))) * float(jnp.finfo(self.kernel.dtype).eps)

    def is_inside(self, limit: Array) -> Array:
        """Tell whether the norm is at most the limit, whatever was rounded."""
        return self.norm * (1 + self._margin) <= limit

    def project(self, limit: Array) -> Array:
        """Return the closest matrix inside the limit: ``U min(S, limit) V'``, smaller by the margin."""
        # A limit below zero can only come from room that was taken off for rounding: the kernel becomes zero.
        clipped = self._with_values(jnp.minimum(self.values, jnp.where(limit < 0, 0, limit) * (1 - self._margin)))
        return jnp.where(self.is_inside(limit), self.kernel, clipped)

    def scale_to(self, limit: Array) -> Array:
        """Return the closest matrix whose norm is the limit: smaller singular values stay, the largest moves."""
        # Values come in descending order: index 0 is the norm.
        return self._with_values(jnp.minimum(self.values, limit).at[0].set(limit))

    def _with_values(self, values: Array) -> Array:
        """Compute ``U diag(values) V'``."""
        return jnp.matmul(self.left * values[None], self.right, precision=HIGHEST)


class ConvKernel(NamedTuple):
    """The kernel of a convolution, with a certified bound on its norm."""

    kernel: Array
    norm: Array

    def is_inside(self, limit: Array) -> Array:
        """Tell whether the norm is at most the limit, whatever was rounded."""
        return self.norm <= limit

    def project(self, limit: Array) -> Array:
        """Return the kernel times a number, inside the limit whatever was rounded."""
        eps = float(jnp.finfo(self.kernel.dtype).eps)
        # Scaling rounds every entry, the bound of what is scaled may differ in the last digits.
        safe = self.norm * (1 + 64 * eps) + 2 * eps * entrywise_sensitivity(self.kernel)
        # The norm is homogeneous: |share K| = share |K|. A zero kernel stays zero whatever the share.
        share = jnp.where(limit < 0, 0, limit) / jnp.where(safe > 0, safe, 1)
        return jnp.where(self.is_inside(limit), self.kernel, self.kernel * share)

    def scale_to(self, limit: Array) -> Array:
        """Return the kernel times a number, with its bound at the limit; NaN if it is zero and cannot be raised."""
        zero = self.norm == 0
        share = jnp.where(zero, jnp.nan, limit / jnp.where(zero, 1, self.norm))
        return jnp.where(limit == 0, 0, self.kernel * share)


MeasuredKernel: TypeAlias = DenseKernel | ConvKernel


def measure(kernel: Array, geometry: ConvGeometry) -> MeasuredKernel:
    """Compute the norm of a kernel: of a dense layer if it has two axes, of a convolution if it has more."""
    if kernel.ndim > 2:
        size, stride, padding, dilation, groups = geometry
        bound = conv(kernel, size, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return ConvKernel(kernel, bound.value)
    # The decomposition of a kernel near 1 in size neither overflows nor underflows.
    # The scale is a power of two: dividing by it, and multiplying the values by it, rounds nothing.
    small, scale = split_scale(kernel)
    left, values, right = jnp.linalg.svd(small, full_matrices=False)
    return DenseKernel(kernel, left, values * scale, right)


def entrywise_sensitivity(kernel: Array) -> Float[Array, ""]:
    """Compute ``|S|_F`` with ``S`` the sum of absolute values over the window, ``(inputs, outputs)``.

    No change of the entries by a share ``u`` of theirs changes the norm by more than ``u`` times that.
    """
    # |dK(w)|_2 <= |sum_q |dK_q||_F <= u |sum_q |K_q||_F at every frequency; of a dense kernel the window is one entry.
    return frobenius_norm(jnp.sum(jnp.reshape(jnp.abs(kernel), (-1, *kernel.shape[-2:])), axis=0))
