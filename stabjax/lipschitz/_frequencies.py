"""The norm of a convolution on a torus: the largest of its matrices, one for each frequency."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from stabjax.lipschitz._gram import Parts, above, frobenius, product, rounding, scaled
from stabjax.lipschitz._method import Method
from stabjax.lipschitz._torus import Axis

_ENTRIES = 2**22
"""So many entries of the matrices are held at a time."""


@dataclass(frozen=True)
class Way:
    """What one compiled computation is about: the torus, and how the norm of a matrix is taken."""

    axes: tuple[Axis, ...]
    groups: int
    method: Method
    steps: int

    @property
    def fold(self) -> int:
        """So many frequencies stand in one matrix."""
        return math.prod(axis.fold for axis in self.axes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Frequencies on each axis; half of them on the last, the kernel being real."""
        *rest, last = (axis.side // axis.fold for axis in self.axes)
        return (*rest, last // 2 + 1)


@partial(jax.jit, static_argnums=1)
def largest(kernel: Float[Array, "*window inputs outputs"], way: Way) -> Float[Array, ""]:
    """The norm over all frequencies, or at least that if the way is ``"gram"``.

    The rounding of a matrix is that of its kernel's sum over ``T`` entries of the window, and of the factors in it:
    ``|dK(w)|_F <= (T + 10 ndim) u |S|_F`` with ``S = sum_q |K_q|``.
    """
    kernel, scale = scaled(kernel)
    for number, axis in enumerate(way.axes):
        if len(axis.taps) < kernel.shape[number]:
            kernel = jnp.take(kernel, np.array(axis.taps, int), axis=number)
    *window, inputs, outputs = kernel.shape
    kernel = jnp.reshape(kernel, (math.prod(window), inputs, way.groups, outputs // way.groups))
    kernel = jnp.moveaxis(kernel, 2, 0)
    value = _worst(kernel, way) / math.sqrt(way.fold)
    if way.method == "gram":
        eps = float(jnp.finfo(kernel.dtype).eps)
        entries = jax.vmap(lambda group: frobenius((jnp.sum(jnp.abs(group), axis=0),)))(lax.stop_gradient(kernel))
        value = value + rounding(math.prod(window), 1, eps, further=10 * len(window)) * jnp.max(entries)
        value = value * (math.prod(axis.excess for axis in way.axes) * (1 + 8 * eps))
    return scale * value


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _worst(kernel: Float[Array, "groups taps inputs outputs"], way: Way) -> Float[Array, ""]:
    """The largest over frequencies and groups.

    Its derivative is that of the matrix where it is attained, which is formed anew: nothing of all the others is kept.
    """
    return jnp.max(_norms(kernel, way))


@_worst.defjvp
def _(way: Way, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    norms = lax.stop_gradient(_norms(primals[0], way))
    frequency, group = jnp.divmod(jnp.argmax(norms), way.groups)
    norm, slope = jax.jvp(lambda kernel: _norm(kernel[group], frequency, way), primals, tangents)
    return norm + lax.stop_gradient(jnp.max(norms) - norm), slope


def _norms(kernel: Float[Array, "groups taps inputs outputs"], way: Way) -> Float[Array, "frequencies groups"]:
    frequencies = jnp.arange(math.prod(way.counts))
    held = max(1, _ENTRIES // (2 * way.fold * math.prod(kernel.shape) // kernel.shape[1] if kernel.shape[1] else 1))

    def at(frequency: Array) -> Array:
        return jax.vmap(lambda group: _norm(group, frequency, way))(kernel)

    if held >= len(frequencies):
        return jax.vmap(at)(frequencies)
    return lax.map(at, frequencies, batch_size=held)


def _norm(kernel: Float[Array, "taps inputs outputs"], frequency: Array, way: Way) -> Float[Array, ""]:
    parts = _matrix(kernel, frequency, way)
    if way.method == "gram":
        return above(parts, way.steps)
    return jnp.linalg.svd(lax.complex(*parts), compute_uv=False)[0]


def _matrix(kernel: Float[Array, "taps inputs outputs"], frequency: Array, way: Way) -> Parts:
    """``K(w) = sum_q K_q exp(2 pi i w q)`` of the frequencies that fold onto this one, ``(fold * inputs, outputs)``."""
    taps, inputs, outputs = kernel.shape
    real, imaginary = jnp.ones((1, 1), kernel.dtype), jnp.zeros((1, 1), kernel.dtype)
    for axis, index in zip(way.axes, jnp.unravel_index(frequency, way.counts)):
        c, s = (jnp.asarray(table, kernel.dtype)[index] for table in _waves(axis))
        real, imaginary = _outer(real, c) - _outer(imaginary, s), _outer(real, s) + _outer(imaginary, c)
    flat = jnp.reshape(kernel, (taps, inputs * outputs))
    cosine, sine = (jnp.reshape(product(wave.T, flat), (-1, outputs)) for wave in (real, imaginary))
    return cosine, sine


def _outer(a: Float[Array, "folds taps"], b: Float[Array, "fold taps_b"]) -> Float[Array, "more_folds more_taps"]:
    both = a[:, None, :, None] * b[None, :, None, :]
    return jnp.reshape(both, (a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]))


def _waves(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, ``(frequencies, fold, taps)``: of frequency ``g`` are ``g, g + side / fold, ...``."""
    count = axis.side // axis.fold
    frequencies = np.arange(count)[:, None] + count * np.arange(axis.fold)[None]
    turns = frequencies[..., None] * np.array(axis.places, int) % axis.side
    angles = 2 * np.pi * (turns - axis.side * (turns > axis.side // 2)) / axis.side
    return np.cos(angles), np.sin(angles)
