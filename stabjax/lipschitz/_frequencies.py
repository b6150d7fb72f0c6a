"""The norm of a convolution on a torus: the largest of its matrices, one for each frequency."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from stabjax.lipschitz._gram import above, frobenius, product, rounding, scaled
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
    def frequencies(self) -> np.ndarray:
        """``(frequencies, ndim)``; half of them on the last axis, the kernel being real."""
        *rest, last = (axis.frequencies for axis in self.axes)
        counts = (*rest, last // 2 + 1)
        return np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), axis=1).astype(np.int32)


@partial(jax.jit, static_argnums=1)
def largest(kernel: Float[Array, "*window inputs outputs"], way: Way) -> Float[Array, ""]:
    """The norm over all frequencies, or at least that if the way is ``"gram"``.

    The rounding of a matrix is that of a sum over ``T`` entries of the window, and of the factors in it:
    ``|dK(w)|_F <= (T + 8) u |S|_F`` with ``S = sum_q |K_q|``.
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
        entries = jax.vmap(lambda group: frobenius(jnp.sum(jnp.abs(group), axis=0)))(lax.stop_gradient(kernel))
        value = value + rounding(math.prod(window), eps, further=8) * jnp.max(entries)
        between = math.prod(axis.excess for axis in way.axes if axis.frequencies > 1)
        value = value * (between * (1 + 8 * eps))
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
    at = jnp.asarray(way.frequencies)[frequency]
    norm, slope = jax.jvp(lambda kernel: _norm(kernel[group], at, way), primals, tangents)
    return norm + lax.stop_gradient(jnp.max(norms) - norm), slope


def _norms(kernel: Float[Array, "groups taps inputs outputs"], way: Way) -> Float[Array, "frequencies groups"]:
    entries = 2 * way.fold * math.prod(kernel.shape) // max(1, kernel.shape[1])
    frequencies = jnp.asarray(way.frequencies)

    def at(frequency: Array) -> Array:
        return jax.vmap(lambda group: _norm(group, frequency, way))(kernel)

    if len(frequencies) * entries <= _ENTRIES:
        return jax.vmap(at)(frequencies)
    return lax.map(at, frequencies, batch_size=max(1, _ENTRIES // entries))


def _norm(kernel: Float[Array, "taps inputs outputs"], frequency: Int[Array, " ndim"], way: Way) -> Float[Array, ""]:
    matrix = _matrix(kernel, frequency, way)
    if way.method == "gram":
        return above(matrix, way.steps, pair=True)
    return jnp.linalg.svd(lax.complex(*jnp.split(matrix, 2, axis=1)), compute_uv=False)[0]


def _matrix(
    kernel: Float[Array, "taps inputs outputs"], frequency: Int[Array, " ndim"], way: Way
) -> Float[Array, "rows entries"]:
    """``K(w) = sum_q K_q exp(2 pi i w q)`` of the frequencies that fold onto this one, ``(fold * inputs, outputs)``.

    Its imaginary part stands beside the real one. Angles are whole parts of a turn, so that one table serves all.
    """
    taps, inputs, outputs = kernel.shape
    whole = math.lcm(*[axis.side for axis in way.axes])
    turns = jnp.zeros((1, 1), jnp.int32)
    for axis, index in zip(way.axes, frequency):
        more = jnp.asarray(_turns(axis) * (whole // axis.side), jnp.int32)[index]
        shape = [before * here for before, here in zip(turns.shape, more.shape, strict=True)]
        turns = jnp.reshape(turns[:, None, :, None] + more[None, :, None, :], shape)
    wave = jnp.asarray(_wave(whole), kernel.dtype)[:, turns % whole]
    waves = jnp.reshape(wave, (2 * way.fold, taps))
    both = product(waves.T, jnp.reshape(kernel, (taps, inputs * outputs)))
    return jnp.concatenate(jnp.reshape(both, (2, way.fold * inputs, outputs)), axis=1)


def _turns(axis: Axis) -> np.ndarray:
    """``frequency * place`` in parts of a turn, ``(frequencies, fold, taps)``; ``g, g + side / fold, ...`` are one."""
    count = axis.side // axis.fold
    frequencies = np.arange(count)[:, None] + count * np.arange(axis.fold)[None]
    return frequencies[..., None] * np.array(axis.places, int) % axis.side


def _wave(whole: int) -> np.ndarray:
    """Cosines and sines of one turn in so many parts."""
    parts = np.arange(whole)
    angles = 2 * np.pi * (parts - whole * (parts > whole // 2)) / whole
    return np.stack([np.cos(angles), np.sin(angles)])
