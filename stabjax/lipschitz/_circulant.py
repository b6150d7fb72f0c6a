"""The norm of a convolution on a torus, where it falls apart into one small matrix per frequency.

Convolution of an image with zeros around it is ``crop . circular . embed``, and crop and embed do not stretch: so the
circular norm on a torus bounds it, if no window that is kept reaches the image around the torus. At the side of the
image itself it may (kernel (1, -2, 1), three pixels: 3 on the torus, 3.414 with zeros). With padding ``k // 2`` a side
of ``n + k // 2`` is enough, without padding ``n``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from stabjax.lipschitz._bound import Method
from stabjax.lipschitz._gram import above, frobenius, product, rounding, scaled

Sizes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

_FINE = 16


@dataclass(frozen=True)
class Axis:
    """One axis of a torus.

    Attributes:
        side: its length, a multiple of ``fold``.
        fold: step of the outputs on it: so many frequencies act on the same output.
        taps: those entries of the window that reach the image, by index.
        places: their distance from the first pixel of the window.
        exact: whether the convolution is the one on the torus, row for row, not a part of it.
        excess: factor by which the norm may be larger between the frequencies than at them.
    """

    side: int
    fold: int
    taps: tuple[int, ...]
    places: tuple[int, ...]
    exact: bool
    excess: float = 1.0

    @property
    def frequencies(self) -> int:
        """How many of them have matrices of different norms: one if windows do not overlap.

        Then ``K(w + 2 pi j / s)``, over ``j``, is a Fourier transform of the entries of the window, up to phases.
        """
        apart = len({place % self.fold for place in self.places}) == len(self.places)
        return 1 if apart else self.side // self.fold


def circular(n: int, k: int, stride: int, dilation: int) -> Axis:
    """The image's own torus; where the stride does not fit into it, the outputs are some of those without stride."""
    fits = n % stride == 0
    places = tuple(q * dilation for q in range(k))
    return Axis(n, stride if fits else 1, tuple(range(k)), places, exact=fits)


def embedded(n: int, k: int, stride: int, dilation: int, pads: tuple[int, int]) -> Axis:
    """The smallest torus that holds an image with zeros around it.

    Window ``p`` reads pixel ``stride p + dilation q - low`` at its entry ``q``. Only windows and entries that see the
    image somewhere count.
    """
    low, high = pads
    extent = dilation * (k - 1) + 1
    if extent > n + low + high:
        raise ValueError(
            f"expected a window that fits into the padded image, got window {extent} (dilation counted) and side "
            f"{n + low + high} (padding counted): pad more, or take a smaller kernel"
        )
    first = stride * np.arange((n + low + high - extent) // stride + 1) - low
    reads = first[:, None] + dilation * np.arange(k)[None]
    inside = (reads >= 0) & (reads < n)
    windows, taps = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    reads = reads[np.ix_(windows, taps)]
    side = n + max(-int(reads.min(initial=0)), int(reads.max(initial=0)) - n + 1, 0)
    side = -(-side // stride) * stride
    places = tuple(int(q) * dilation for q in taps)
    return Axis(side, stride, tuple(map(int, taps)), places, exact=side == n == stride * len(windows))


def endless(k: int, stride: int, dilation: int, *, strided: bool) -> Axis:
    """For images of any size: frequencies fine enough to know the norm at those between them.

    ``Re sum_j u_j* K(w + 2 pi j / s) v`` is, up to a phase, a trigonometric polynomial of degree ``d = reach / 2``;
    about its maximum it stays above ``max cos(d w)`` (M. Riesz), and the next of ``N`` frequencies is at most ``pi /
    N`` away: the norm is at most that at the frequencies over ``cos(pi d / N)``.
    """
    if stride == 1 or not strided:
        stride, dilation = 1, 1  # a dilated convolution is several that do not meet
    reach = dilation * (k - 1)
    side = -(-max(1, _FINE * reach) // stride) * stride
    places = tuple(q * dilation for q in range(k))
    return Axis(side, stride, tuple(range(k)), places, False, 1 / math.cos(math.pi * reach / (2 * side)))


def pads_of(window: Sequence[int], dilation: Sequence[int], padding: Padding) -> tuple[tuple[int, int], ...]:
    """Zeros ``(low, high)`` on each axis."""
    extra = [d * (k - 1) for k, d in zip(window, dilation)]
    if padding == "zero":
        return tuple((e // 2, e - e // 2) for e in extra)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(
            f"expected padding 'zero', 'circular', 'valid', a number or one (low, high) per axis, got {padding!r}"
        )
    many = (padding,) * len(window) if isinstance(padding, int) else tuple(padding)
    pads = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in many)
    if len(pads) != len(window) or any(side < 0 for pair in pads for side in pair):
        raise ValueError(f"expected padding >= 0 for each of {len(window)} axes, got {padding}")
    return pads


def each(ndim: int, value: Sizes, name: str) -> tuple[int, ...]:
    """One positive number per axis."""
    many = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(many) != ndim or any(v < 1 for v in many):
        raise ValueError(f"expected {name} >= 1 for each of {ndim} axes, got {value}")
    return many


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
