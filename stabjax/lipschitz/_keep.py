"""Training inside a bound."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from stabjax._jaxpr import path_name
from stabjax._types import Scalar
from stabjax.lipschitz._ball import Geometry, entries, measured
from stabjax.lipschitz._constrain import geometry_of, limit_of
from stabjax.lipschitz._method import wide
from stabjax.lipschitz._torus import Padding, Sizes


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
    """An optax transformation that keeps kernels inside a bound; the last of a chain.

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
    limit_of(bound, jnp.float32)
    geometry = geometry_of(size, stride, padding, dilation, groups)
    chosen = _kernels if select is None else select

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("expected update(updates, state, params), got no params: a bound on them needs them")

        def kept(path: Any, parameter: Array, change: Array) -> Array:
            if not chosen(path_name(path).removesuffix("/value"), parameter):
                return change
            return _kept(parameter, change, limit_of(bound, wide(parameter).dtype), geometry)

        return jax.tree_util.tree_map_with_path(kept, params, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _kernels(path: str, parameter: Array) -> bool:
    return parameter.ndim > 1 and jnp.issubdtype(parameter.dtype, jnp.floating)


@partial(jax.jit, static_argnums=3)
def _kept(parameter: Array, change: Array, limit: Array, geometry: Geometry) -> Array:
    """The change that leads inside: ``constrained - parameter``, with room for the rounding of it and of the sum."""
    start = wide(parameter)
    ball = measured(start + wide(change).astype(start.dtype), geometry)
    nearly = ball.inside(limit)
    unit = float(jnp.finfo(parameter.dtype).eps) / 2
    limit = limit - 1.2 * unit * (entries(nearly - start) + entries(nearly))
    inside = (ball.inside(limit) - start).astype(parameter.dtype)
    return jnp.where(ball.strictly(limit), change, inside.astype(change.dtype))
