"""The largest singular value of a network's Jacobian at an image, from products with it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax import features
from stabjax._arguments import as_key
from stabjax._images import Spatial, check_batch
from stabjax._numerics import HIGHEST, permit_nan
from stabjax._sharding import without_explicit_axes
from stabjax._types import Images, PRNGKey, Scalar


@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False)
class LocalNorm:
    """Largest singular value of the Jacobian of a network at each image; a frozen pytree.

    Attributes:
        value: from below, ``(batch,)``: the length of the change of the network, to first order, for a change of the
            image of length one along ``direction``. NaN where the Jacobian is not finite.
        residual: a singular value lies within this of ``value``, ``(batch,)``. It is the largest one unless the random
            start has missed it.
        direction: the change of the image, of length one, that changes the network most, ``(batch, *spatial,
            channels)``; zero where the network does not change at all.
        converged: whether the tolerance was reached, ``(batch,)``.
    """

    value: Float[Array, "*nets batch"]
    residual: Float[Array, "*nets batch"]
    direction: Array
    converged: Bool[Array, "*nets batch"]

    @property
    def valid(self) -> Bool[Array, "*nets batch"]:
        """Whether the value is a number, ``(batch,)``."""
        return jnp.isfinite(self.value)


@permit_nan()
def local(
    f: Any,
    x: Images,
    *,
    key: PRNGKey,
    layer: str | None = None,
    tolerance: Scalar = 1e-3,
    steps: int = 40,
    spatial: Spatial = None,
) -> LocalNorm:
    """Estimate local Lipschitz constants: the largest singular value of the Jacobian of a network at each image.

    Lanczos iteration of ``J J'`` or ``J' J``, whichever is smaller, with full reorthogonalization (Golub and Van Loan,
    Matrix Computations, section 10.1). ``J`` is never built: the network is linearized once, and a step takes one
    product with ``J`` and one with its transpose, for all images together. The value of a step is a Rayleigh quotient,
    so it comes from below and certifies nothing; `network` bounds from above. A smaller side of no more entries than
    half the steps is spanned at once, by one product for each: then the value is exact to rounding.

    Where a network has a kink (a ReLU at zero), its derivative is the one JAX takes.

    Args:
        f: a network from `networks.wrap`, or a plain function of a batch.
        x: ``(batch, *spatial, channels)``.
        key: of the starting vectors; that of an image does not depend on the others.
        layer: name of an operation, as in `features.taps`: the Jacobian of its value. By default that of the output.
        tolerance: the iteration ends where ``residual <= tolerance * value``. The error of the value is then of second
            order in the tolerance. Only where a random start has missed the largest singular value is it larger: by
            more than 1 % for 2 of 1000 matrices of random spectra, at ten times the tolerance for 13.
        steps: the most steps to take.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        the norms; those of images that reached the tolerance no longer change while others go on.

    Raises:
        TypeError: for images that are not floating, or a network that JAX cannot trace.
        ValueError: for a name that is no operation of the network; several outputs, none of them named; batch
            statistics; fewer than one step.

    Example:
        >>> local = lipschitz.local(network, images, key=key)
        >>> most_sensitive = images + radius * local.direction
    """
    check_batch(x, spatial=spatial, vectors=True)
    x = without_explicit_axes(jnp.asarray(x))
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
    traced = features.trace(f, x)
    if len(x) == 1 and layer is not None and all(tap.name != layer for tap in traced.taps):
        # With a single image some taps lose their batch: the image passes twice.
        traced = features.trace(f, jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype))
    return _local(traced, x, as_key(key), jnp.asarray(tolerance, _compute_dtype(x.dtype)), layer, steps)


@partial(jax.jit, static_argnums=(4, 5))
def _local(
    traced: features.Traced, x: Array, key: PRNGKey, tolerance: Array, layer: str | None, steps: int
) -> LocalNorm:
    """Linearize the network at all images at once, and find the largest singular value of each row's Jacobian."""
    y, forward = jax.linearize(_layer_function(traced, layer), x)
    backward = jax.linear_transpose(forward, x)
    dtype = _compute_dtype(x.dtype)
    batch, outputs, inputs = len(x), prod(y.shape[1:]), prod(x.shape[1:])

    # Vectors are flat, (batch, inputs) and (batch, outputs): each row is multiplied by the Jacobian of its own image.
    def jacobian(v: Array) -> Array:
        return jnp.reshape(forward(jnp.reshape(v, x.shape).astype(x.dtype)), (batch, outputs)).astype(dtype)

    def transposed(u: Array) -> Array:
        (pulled,) = backward(jnp.reshape(u, y.shape).astype(y.dtype))
        return jnp.reshape(pulled, (batch, inputs)).astype(dtype)

    # A = back half is J J' or J' J, whichever is smaller, and `size` its side.
    apply_half, apply_back = (transposed, jacobian) if outputs <= inputs else (jacobian, transposed)
    size = min(outputs, inputs)
    # A step takes two products, a unit vector one: here `size` products span the whole side.
    if 2 * size <= steps:
        pair, image = _full_decomposition(apply_half, batch, size, dtype)
    else:
        # By the number of the image: the start of an image does not change with the size of the batch.
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
        start = jax.vmap(lambda k: jax.random.normal(k, (size,), dtype))(keys)
        pair = _lanczos(apply_half, apply_back, start, tolerance, min(steps, size))
        image = apply_half(pair.vector) if outputs <= inputs else pair.vector
    # A vector of J' J is the direction itself; a vector of J J' is one of outputs, and J' takes it to the images.
    direction = image if outputs <= inputs else pair.vector
    value = jnp.where(jnp.isfinite(pair.value), pair.value, jnp.nan)
    return LocalNorm(value, pair.residual, jnp.reshape(_normalize_rows(direction), x.shape).astype(x.dtype), pair.done)


def _layer_function(traced: features.Traced, layer: str | None) -> Callable[[Array], Array]:
    """Return the layer's value as a function of the images, each row depending on its own alone.

    Raises:
        ValueError: for a name that is no operation, several outputs none of which is named, or mixed rows.
    """
    names = [tap.name for tap in traced.taps]
    if layer is None:
        outputs = [tap.name for tap in traced.taps if tap.kind == "output"]
        if len(outputs) != 1:
            raise ValueError(
                f"expected a network with one output, got {', '.join(outputs) or 'none'}; say whose norm is meant: "
                "layer="
            )
        (layer,) = outputs
    elif layer not in names:
        raise ValueError(f"expected the name of an operation, got {layer!r}; the network has {', '.join(names)}")
    traced.check_rows()
    rows = traced.batch.shape[0]

    def value(x: Array) -> Array:
        # The program may be traced for two rows where one image is given; it is repeated, and the copies are dropped.
        once = len(x)
        x = jnp.concatenate([x] * (rows // once))
        activation = traced.capture(x, select=lambda tap: tap.name == layer)[1][layer]
        return activation if rows == once else activation[:once]

    return value


class _LanczosState(NamedTuple):
    """State of the iteration, per image: ``basis basis' = 1``, and ``projected = basis A basis'``."""

    step: Array
    basis: Array
    projected: Array
    scale: Array
    value: Array
    residual: Array
    weights: Array
    done: Array


class _SingularPair(NamedTuple):
    """A singular value per image, how far one is from it at most, its vector, and whether it is good enough."""

    value: Array
    residual: Array
    vector: Array
    done: Array


def _lanczos(
    apply_half: Callable[[Array], Array],
    apply_back: Callable[[Array], Array],
    start: Array,
    tolerance: Array,
    steps: int,
) -> _SingularPair:
    """Find the largest singular value by Lanczos iteration of ``A = back half``, row by row of ``start``.

    The products are taken over the size of the first one, squared: the square of a small norm would underflow.
    """
    batch, size = start.shape
    dtype = start.dtype
    # What is left below this share of the vector is rounding, not a new direction.
    tiny = 100 * jnp.finfo(dtype).eps

    def step(state: _LanczosState) -> _LanczosState:
        # z = A u_k, with A = back half over the square of the scale, so that its largest eigenvalue is of order one.
        k = state.step
        u = state.basis[:, k]
        w = apply_half(u)
        largest = jnp.max(jnp.abs(w), axis=1)
        # Fixed at the first step: all columns of the projected matrix must belong to one A.
        scale = jnp.where(k == 0, jnp.where(largest > 0, largest, 1), state.scale)
        z = apply_back(w / scale[:, None]) / scale[:, None]
        # Column k of the projected matrix. In exact arithmetic it is tridiagonal; the whole column is kept, so that
        # what is lost of orthogonality does not count.
        coefficients = _project_onto(state.basis, z)
        rest = z
        # Gram-Schmidt against the whole basis, twice is enough: once leaves rounding of the size of what it removed,
        # and directions that have converged would come back.
        for _ in range(2):
            rest = rest - _combine(state.basis, _project_onto(state.basis, rest))
        length = _row_norms(rest)
        length = jnp.where(length > tiny * _row_norms(z), length, 0)  # else rounding: the space is invariant
        next_vector = jnp.where(length[:, None] > 0, rest / jnp.where(length > 0, length, 1)[:, None], 0)
        # basis (batch, steps, size), a vector per row. The last step has no row left for its next vector.
        basis = state.basis.at[:, k + 1].set(next_vector, mode="drop")
        # projected (batch, steps, steps) is symmetric: column k is row k.
        projected = state.projected.at[:, k].set(coefficients).at[:, :, k].set(coefficients)
        # Rows and columns not yet reached are zero: they add eigenvalues of zero, below the largest.
        values, vectors = jnp.linalg.eigh(projected)
        square, weights = values[:, -1], vectors[:, :, -1]
        value = scale * jnp.sqrt(jnp.maximum(square, 0))
        # |A y - lambda y| = beta_k |s_k| for A = J J' / scale^2, and lambda = (value / scale)^2
        # Some eigenvalue sigma^2 of A lies within that of lambda, hence their roots within beta_k |s_k| / sqrt(lambda):
        #   |sigma - sqrt(lambda)| = |sigma^2 - lambda| / (sigma + sqrt(lambda))
        residual = scale * length * jnp.abs(jnp.take(weights, k, axis=1)) / jnp.sqrt(jnp.where(square > 0, square, 1))
        # What is not finite will not become better: such an image must not keep the loop going.
        converged = (residual <= tolerance * value) | ~jnp.isfinite(value)
        done = state.done

        # An image that reached the tolerance keeps its result while the loop goes on for others.
        def freeze(old: Array, new: Array) -> Array:
            return jnp.where(jnp.reshape(done, (batch,) + (1,) * (old.ndim - 1)), old, new)

        return _LanczosState(
            k + 1,
            basis,
            projected,
            scale,
            freeze(state.value, value),
            freeze(state.residual, residual),
            freeze(state.weights, weights),
            done | converged,
        )

    first = _normalize_rows(start)
    state = jax.lax.while_loop(
        lambda state: (state.step < steps) & ~jnp.all(state.done),
        step,
        _LanczosState(
            jnp.asarray(0),
            jnp.zeros((batch, steps, size), dtype).at[:, 0].set(first),
            jnp.zeros((batch, steps, steps), dtype),
            jnp.ones(batch, dtype),
            jnp.zeros(batch, dtype),
            jnp.zeros(batch, dtype),
            jnp.zeros((batch, steps), dtype),
            jnp.zeros(batch, bool),
        ),
    )
    return _SingularPair(
        state.value, state.residual, _combine(state.basis, state.weights), state.done & jnp.isfinite(state.value)
    )


def _full_decomposition(
    apply_half: Callable[[Array], Array], batch: int, size: int, dtype: Any
) -> tuple[_SingularPair, Array]:
    """Find the largest singular value of a matrix with few rows, from its product with each unit vector.

    Returns it with the image of its vector, up to the length.
    """
    # The matrix itself, row by row, and the eigenvalues of its small Gram matrix.
    # (size, batch, other side) -> (batch, size, other side): row e of each matrix is the image of unit vector e.
    rows = jax.lax.map(lambda e: apply_half(jnp.broadcast_to(e[None], (batch, size))), jnp.eye(size, dtype=dtype))
    rows = jnp.swapaxes(rows, 0, 1)
    # Over the largest entry, as the Gram matrix holds squares, which may underflow.
    scale = jnp.max(jnp.abs(rows), axis=(1, 2))
    rows = rows / jnp.where(scale > 0, scale, 1)[:, None, None]
    squares, vectors = jnp.linalg.eigh(jnp.einsum("bin,bjn->bij", rows, rows, precision=HIGHEST))
    value, vector = scale * jnp.sqrt(jnp.maximum(squares[:, -1], 0)), vectors[:, :, -1]
    return _SingularPair(value, jnp.zeros_like(value), vector, jnp.isfinite(value)), _combine(rows, vector)


def _project_onto(basis: Array, vectors: Array) -> Array:
    """Return the coefficients of each vector along the rows of its basis, ``(batch, steps)``."""
    return jnp.einsum("bkn,bn->bk", basis, vectors, precision=HIGHEST)


def _combine(basis: Array, weights: Array) -> Array:
    """Sum the rows of each basis by their weights, ``(batch, size)``."""
    return jnp.einsum("bkn,bk->bn", basis, weights, precision=HIGHEST)


def _row_norms(vectors: Array) -> Array:
    """Compute the length of each row."""
    return jnp.linalg.norm(vectors, axis=1)


def _normalize_rows(vectors: Array) -> Array:
    """Scale rows to length one; zero stays zero. By the largest entry first, whose square may underflow."""
    largest = jnp.max(jnp.abs(vectors), axis=1, keepdims=True)
    vectors = vectors / jnp.where(largest > 0, largest, 1)
    return vectors / jnp.where(largest > 0, _row_norms(vectors)[:, None], 1)


def _compute_dtype(dtype: Any) -> Any:
    """Return the dtype to compute in: single precision at least."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)
