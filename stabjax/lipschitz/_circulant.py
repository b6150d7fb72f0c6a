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
from stabjax.lipschitz._gram import blocked_product, frobenius_norm, gram_bound, split_scale, summation_error

Sizes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

_OVERSAMPLING = 16
"""Frequencies per pixel that a window spans, on the axis that stands for images of any size."""

_MAX_ENTRIES = 2**22
"""At most so many entries of the matrices are held at a time."""


@dataclass(frozen=True)
class TorusAxis:
    """One axis of a torus.

    Attributes:
        side: its length, a multiple of ``fold``.
        fold: step of the outputs on it: so many frequencies act on the same output.
        taps: those entries of the window that reach the image, by index.
        offsets: their distance from the first pixel of the window.
        exact: whether the convolution is the one on the torus, row for row, not a part of it.
        excess: factor by which the norm may be larger between the frequencies than at them.
    """

    side: int
    fold: int
    taps: tuple[int, ...]
    offsets: tuple[int, ...]
    exact: bool
    excess: float = 1.0

    @property
    def frequencies(self) -> int:
        """Count the frequencies whose matrices may have different norms: one if windows do not overlap.

        Then ``K(w + 2 pi j / s)``, over ``j``, is a Fourier transform of the entries of the window, up to phases.
        """
        # The matrix of a frequency holds K(w + 2 pi j / s) for all j. If no two offsets agree modulo s, the waves of
        # the taps are orthogonal over j, and the matrix is sqrt(s) times an isometry of the stacked K_q: one norm for
        # all w.
        disjoint = len({offset % self.fold for offset in self.offsets}) == len(self.offsets)
        return 1 if disjoint else self.side // self.fold


def circular_axis(n: int, k: int, stride: int, dilation: int) -> TorusAxis:
    """Return the image's own torus; where the stride does not divide it, that of stride 1, of which it is a part."""
    # With stride s | n, the outputs are every s-th row of a circulant matrix; else they are not a torus of their own.
    fits = n % stride == 0
    offsets = tuple(q * dilation for q in range(k))
    return TorusAxis(n, stride if fits else 1, tuple(range(k)), offsets, exact=fits)


def embedded_axis(n: int, k: int, stride: int, dilation: int, pads: tuple[int, int]) -> TorusAxis:
    """Return the smallest torus that holds an image with zeros around it.

    Window ``p`` reads pixel ``stride p + dilation q - low`` at its entry ``q``. Only windows and entries that see the
    image somewhere count::

        pixels      -2 -1  0  1  2  3  4  5  6        n = 5, k = 5, low = high = 2, stride 1
        image              x  x  x  x  x
        window 0     .  .  a  b  c                    reads from -2 on ...
        window 4                 a  b  c  .  .        ... up to 6: side 5 + max(2, 2) = 7

    so the pixels before and behind the image may be the same ones of the torus.

    Raises:
        ValueError: if the window does not fit into the padded image.
    """
    low, high = pads
    extent = dilation * (k - 1) + 1
    if extent > n + low + high:
        raise ValueError(
            f"expected a window that fits into the padded image, got window {extent} (dilation counted) and side "
            f"{n + low + high} (padding counted): pad more, or take a smaller kernel"
        )
    # reads[p, q]: the pixel that window p reads at entry q. Windows and entries in the padding alone are dropped.
    first = stride * np.arange((n + low + high - extent) // stride + 1) - low
    reads = first[:, None] + dilation * np.arange(k)[None]
    inside = (reads >= 0) & (reads < n)
    windows, taps = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    reads = reads[np.ix_(windows, taps)]
    # Zeros for the longer of both reaches stand behind the image; around the torus they are those in front of it, too.
    side = n + max(-int(reads.min(initial=0)), int(reads.max(initial=0)) - n + 1, 0)
    side = -(-side // stride) * stride
    offsets = tuple(int(q) * dilation for q in taps)
    return TorusAxis(side, stride, tuple(map(int, taps)), offsets, exact=side == n == stride * len(windows))


def any_size_axis(k: int, stride: int, dilation: int, *, strided: bool) -> TorusAxis:
    """Return an axis for images of any size: frequencies fine enough to bound the norm at those between them.

    ``Re sum_j u_j* K(w + 2 pi j / s) v`` is, up to a phase, a trigonometric polynomial of degree ``d = reach / 2``;
    about its maximum it stays above ``max cos(d w)`` (M. Riesz), and the next of ``N`` frequencies is at most ``pi /
    N`` away: the norm is at most that at the frequencies over ``cos(pi d / N)``.
    """
    # Without stride the norm over all frequencies is the same for every dilation: K(w) of dilation d is K(d w) of 1.
    if stride == 1 or not strided:
        stride, dilation = 1, 1  # a dilated convolution is several that do not meet
    reach = dilation * (k - 1)
    # Rounded up to a multiple of the stride, so that whole sets of folded frequencies are on the grid.
    side = -(-max(1, _OVERSAMPLING * reach) // stride) * stride
    offsets = tuple(q * dilation for q in range(k))
    return TorusAxis(side, stride, tuple(range(k)), offsets, False, 1 / math.cos(math.pi * reach / (2 * side)))


def resolve_padding(window: Sequence[int], dilation: Sequence[int], padding: Padding) -> tuple[tuple[int, int], ...]:
    """Return the zeros ``(low, high)`` on each axis; raise ``ValueError`` for a padding that is none."""
    extra = [d * (k - 1) for k, d in zip(window, dilation)]
    if padding == "zero":
        return tuple((e // 2, e - e // 2) for e in extra)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(
            f"expected padding 'zero', 'circular', 'valid', a number or one (low, high) per axis, got {padding!r}"
        )
    values = (padding,) * len(window) if isinstance(padding, int) else tuple(padding)
    pads = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in values)
    if len(pads) != len(window) or any(side < 0 for pair in pads for side in pair):
        raise ValueError(f"expected padding >= 0 for each of {len(window)} axes, got {padding}")
    return pads


def per_axis(ndim: int, value: Sizes, name: str) -> tuple[int, ...]:
    """Return one positive number per axis; raise ``ValueError`` for others, naming the argument."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim or any(v < 1 for v in values):
        raise ValueError(f"expected {name} >= 1 for each of {ndim} axes, got {value}")
    return values


@dataclass(frozen=True)
class NormPlan:
    """What is static about one compiled norm: the torus, and how the norm of a matrix is taken."""

    axes: tuple[TorusAxis, ...]
    groups: int
    method: Method
    steps: int

    @property
    def fold(self) -> int:
        """Number of frequencies that stand in one matrix."""
        return math.prod(axis.fold for axis in self.axes)

    @property
    def frequencies(self) -> np.ndarray:
        """Frequencies by index, ``(frequencies, ndim)``; half of them on the last axis, the kernel being real."""
        # The matrix at -w is the complex conjugate of that at w, with the same norm: half of the last axis is enough,
        # the others run over all.
        *rest, last = (axis.frequencies for axis in self.axes)
        counts = (*rest, last // 2 + 1)
        return np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), axis=1).astype(np.int32)


@partial(jax.jit, static_argnums=1)
def circulant_norm(kernel: Float[Array, "*window inputs outputs"], plan: NormPlan) -> Float[Array, ""]:
    """Compute the norm over all frequencies; with the method ``"gram"``, a certified bound on it.

    The rounding of a matrix is that of a sum over ``T`` entries of the window, and of the factors in it:
    ``|dK(w)|_F <= (T + 8) u |S|_F`` with ``S = sum_q |K_q|``.
    """
    kernel, scale = split_scale(kernel)
    for number, axis in enumerate(plan.axes):
        # Taps that only ever read zeros are dropped; what is left belongs to the offsets of the axis, in order.
        if len(axis.taps) < kernel.shape[number]:
            kernel = jnp.take(kernel, np.array(axis.taps, int), axis=number)
    *window, inputs, outputs = kernel.shape
    # (*window, inputs, outputs) -> (groups, taps, inputs, outputs / groups)
    kernel = jnp.reshape(kernel, (math.prod(window), inputs, plan.groups, outputs // plan.groups))
    kernel = jnp.moveaxis(kernel, 2, 0)
    # Taking every s-th output adds s frequencies up: with unitary transforms, by 1 / sqrt(s) each.
    value = _largest_norm(kernel, plan) / math.sqrt(plan.fold)
    if plan.method == "gram":
        eps = float(jnp.finfo(kernel.dtype).eps)
        entries = jax.vmap(lambda group: frobenius_norm(jnp.sum(jnp.abs(group), axis=0)))(lax.stop_gradient(kernel))
        value = value + summation_error(math.prod(window), eps, extra=8) * jnp.max(entries)
        # Along an axis whose windows do not overlap the norm is the same at all frequencies: nothing lies in between.
        excess = math.prod(axis.excess for axis in plan.axes if axis.frequencies > 1)
        value = value * (excess * (1 + 8 * eps))
    return scale * value


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_norm(kernel: Float[Array, "groups taps inputs outputs"], plan: NormPlan) -> Float[Array, ""]:
    """Take the largest norm over frequencies and groups.

    Its derivative is that of the matrix where it is attained, which is formed anew: nothing of all the others is kept.
    """
    return jnp.max(_norms(kernel, plan))


@_largest_norm.defjvp
def _(plan: NormPlan, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Differentiate the largest norm."""
    # All norms are computed without derivatives; only the matrix that attains the maximum is differentiated.
    norms = lax.stop_gradient(_norms(primals[0], plan))
    # norms is (frequencies, groups), row-major.
    frequency, group = jnp.divmod(jnp.argmax(norms), plan.groups)
    at = jnp.asarray(plan.frequencies)[frequency]
    norm, slope = jax.jvp(lambda kernel: _norm(kernel[group], at, plan), primals, tangents)
    # The value of the maximum, with the derivative (of every order) of the one norm.
    return norm + lax.stop_gradient(jnp.max(norms) - norm), slope


def _norms(kernel: Float[Array, "groups taps inputs outputs"], plan: NormPlan) -> Float[Array, "frequencies groups"]:
    """Compute the norms of all matrices, few frequencies at a time where they are large."""
    # Real and imaginary part of one (fold * inputs, outputs) matrix for each group, at one frequency.
    entries = 2 * plan.fold * math.prod(kernel.shape) // max(1, kernel.shape[1])
    frequencies = jnp.asarray(plan.frequencies)

    def at(frequency: Array) -> Array:
        return jax.vmap(lambda group: _norm(group, frequency, plan))(kernel)

    if len(frequencies) * entries <= _MAX_ENTRIES:
        return jax.vmap(at)(frequencies)
    return lax.map(at, frequencies, batch_size=max(1, _MAX_ENTRIES // entries))


def _norm(
    kernel: Float[Array, "taps inputs outputs"], frequency: Int[Array, " ndim"], plan: NormPlan
) -> Float[Array, ""]:
    """Compute the norm of the matrix of one frequency."""
    matrix = _frequency_matrix(kernel, frequency, plan)
    if plan.method == "gram":
        return gram_bound(matrix, plan.steps, complex_pair=True)
    return jnp.linalg.svd(lax.complex(*jnp.split(matrix, 2, axis=1)), compute_uv=False)[0]


def _frequency_matrix(
    kernel: Float[Array, "taps inputs outputs"], frequency: Int[Array, " ndim"], plan: NormPlan
) -> Float[Array, "rows entries"]:
    """Build ``K(w) = sum_q K_q exp(2 pi i w q)`` of the frequencies that fold onto this one.

    ``(fold * inputs, outputs)``, its imaginary part beside the real one. Angles are whole parts of a turn, so that one
    table of cosines and sines serves all.
    """
    taps, inputs, outputs = kernel.shape
    # w q = sum over the axes of w_a q_a / side_a turns. In units of 1 / parts, parts a multiple of every side, these
    # are integers, exact whatever the frequency. Axis by axis, (fold, taps) grows to the product of all.
    parts = math.lcm(*[axis.side for axis in plan.axes])
    turns = jnp.zeros((1, 1), jnp.int32)
    for axis, index in zip(plan.axes, frequency):
        of_axis = jnp.asarray(_turn_table(axis) * (parts // axis.side), jnp.int32)[index]
        # (folds, taps) + (fold, taps of the axis) -> (folds, fold, taps, taps of the axis), flattened in pairs: folds
        # of all axes row-major, and the taps in the order of the reshaped kernel.
        shape = [old * new for old, new in zip(turns.shape, of_axis.shape, strict=True)]
        turns = jnp.reshape(turns[:, None, :, None] + of_axis[None, :, None, :], shape)
    # (2, parts) -> (2, folds, taps): cosine and sine of each angle.
    wave = jnp.asarray(_wave_table(parts), kernel.dtype)[:, turns % parts]
    waves = jnp.reshape(wave, (2 * plan.fold, taps))
    # Rows: the real parts of all folded frequencies, then the imaginary ones; these move beside them.
    matrices = blocked_product(waves.T, jnp.reshape(kernel, (taps, inputs * outputs)))
    return jnp.concatenate(jnp.reshape(matrices, (2, plan.fold * inputs, outputs)), axis=1)


def _turn_table(axis: TorusAxis) -> np.ndarray:
    """Tabulate ``frequency * offset`` in parts of a turn, ``(frequencies, fold, taps)``.

    The frequencies ``g, g + side / fold, g + 2 side / fold, ...`` fold onto one.
    """
    count = axis.side // axis.fold
    frequencies = np.arange(count)[:, None] + count * np.arange(axis.fold)[None]
    return frequencies[..., None] * np.array(axis.offsets, int) % axis.side


def _wave_table(parts: int) -> np.ndarray:
    """Tabulate cosine and sine of one turn in so many parts, ``(2, parts)``; angles within half a turn of zero."""
    part = np.arange(parts)
    # In double precision whatever the kernel has: the table is rounded once, to its dtype.
    angles = 2 * np.pi * (part - parts * (part > parts // 2)) / parts
    return np.stack([np.cos(angles), np.sin(angles)])
