"""What several tests of Lipschitz bounds share: operators written out, exact norms, hard matrices, sampled slopes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from stabjax import lipschitz


def random_array(seed, *shape, dtype=np.float32):
    """Draw normal numbers with NumPy."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def operator(kernel, size, *, stride=1, padding="zero", dilation=1, groups=1):
    """Write out the matrix of a convolution, ``(pixels * inputs, positions * outputs)``, by its definition."""
    *window, inputs, outputs = kernel.shape
    ndim = len(window)
    size, stride, dilation = (np.broadcast_to(v, ndim) for v in (size, stride, dilation))
    reach = (np.array(window) - 1) * dilation
    if isinstance(padding, str):
        low = 0 * reach if padding == "valid" else reach // 2
        high = 0 * reach if padding == "valid" else reach - low
    else:
        low, high = np.broadcast_to(padding, (ndim, 2)).T
    positions = (size + low + high - reach - 1) // stride + 1
    matrix = np.zeros((*size, inputs * groups, *positions, outputs))
    for p in np.ndindex(*positions):
        for q in np.ndindex(*window):
            at = np.array(p) * stride + np.array(q) * dilation - low
            at = at % size if padding == "circular" else at
            if np.any((at < 0) | (at >= size)):
                continue
            for g in range(groups):
                ins, outs = (np.arange(g * n // groups, (g + 1) * n // groups) for n in (inputs * groups, outputs))
                matrix[(*at, ins[:, None], *p, outs[None])] += kernel[q][:, outs].astype(float)
    return matrix.reshape(np.prod(size) * inputs * groups, -1)


def norm(matrix):
    """Compute the largest singular value."""
    return np.linalg.svd(matrix, compute_uv=False)[..., 0]


KINDS = (
    "plain",
    "rank one",
    "rank two",
    "duplicates",
    "zero",
    "one entry",
    "orthogonal",
    "tiny",
    "huge",
    "mixed sizes",
)


def hard_matrix(kind, rng, shape):
    """Draw a matrix of that shape that is hard to bound closely."""
    x = rng.normal(size=shape)
    if kind == "rank one":
        x = x[:, :1] @ x[:1]
    elif kind == "rank two":
        x = x[:, :2] @ x[:2]
    elif kind == "duplicates":
        x[:, 1:] = x[:, :1]
    elif kind == "zero":
        x[:] = 0
    elif kind == "one entry":
        x[1:], x[0, 1:] = 0, 0
    elif kind == "orthogonal":
        u, _, v = np.linalg.svd(x, full_matrices=False)
        x = u @ v
    elif kind == "tiny":
        x *= 1e-20
    elif kind == "huge":
        x *= 1e18
    elif kind == "mixed sizes":
        x *= 10.0 ** rng.uniform(-8, 8, shape[1])
    return x


def bound_of(f, shape=(2, 8, 8, 3)):
    """Bound a network on images of this shape."""
    return float(lipschitz.network(f, shape, spatial=shape[1:-1]).value)


def norm_of(f, shape):
    """Compute the exact norm of an affine function of one image."""
    basis = np.eye(math.prod(shape), dtype=np.float32).reshape(-1, *shape)
    matrix = np.asarray(jax.jit(lambda x: f(x) - f(jnp.zeros_like(x)))(basis), np.float64)
    return np.linalg.norm(matrix.reshape(len(basis), -1), 2)


def changes(f, x, step):
    """Compute how far each row of a function moves with a step, and how far the step goes."""
    both = jax.jit(lambda x, step: (f(x + step) - f(x), step))(x, step)
    return [np.linalg.norm(np.reshape(a, (len(a), -1)), axis=1) for a in both]


def window(reduce, start, sides, strides, padding):
    """Return a function that reduces windows of images."""
    return lambda x: jax.lax.reduce_window(x, start, reduce, (1, *sides, 1), (1, *strides, 1), padding)


def bound_and_slopes(key, *, network, shapes):
    """Return the bound of a network with weights of any scale, slopes from far to as near as rounding tells, norms."""
    *keys, first, second, start = jax.random.split(key, 2 * len(shapes) + 3)
    kernels = [
        jax.random.normal(a, shape) * jnp.exp(2 * jax.random.normal(b, ())) / math.prod(shape[:-1]) ** 0.5
        for a, b, shape in zip(keys[::2], keys[1::2], shapes, strict=True)
    ]
    f = partial(network, k=kernels)
    x = jax.random.normal(first, (6, 6, 6, 2)) * 3
    steps = jax.random.normal(second, x.shape) * jnp.asarray([10, 3, 1, 0.3, 0.1, 0.03]).reshape(-1, 1, 1, 1)
    local = lipschitz.local(f, x[:2], key=start)
    # along the direction in which the first image changes most
    steps = steps.at[3:].set(local.direction[:1] * jnp.asarray([3.0, 0.3, 0.03]).reshape(-1, 1, 1, 1))
    x = x.at[3:].set(x[0])
    change, step = (jnp.linalg.norm(a.reshape(6, -1), axis=1) for a in (f(x + steps) - f(x), steps))
    slopes = jnp.where(step > 0, change / jnp.where(step > 0, step, 1), 0)
    return lipschitz.network(f, x).value, slopes, local.value
