"""Convolutions behind a padding made of the image itself: circular, mirrored at a border, the border repeated.

Along each axis a table says which entry a window reads at each of its taps::

    reflect, n = 4, k = 3        window    0        1        2        3
    1 [0 1 2 3] 2                reads   1 0 1    0 1 2    1 2 3    2 3 2

An axis that is a ring goes to the torus. Another one can be unrolled: a convolution along it is a matrix, so that its
entries count as channels of a convolution along the other axes. That is exact, and dear for large images: for axes that
are too long, the norm on a torus is multiplied by the root of how often an entry is read.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from math import prod, sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax.lipschitz import _circulant
from stabjax.lipschitz._circulant import NormPlan, circulant_norm
from stabjax.lipschitz._gram import blocked_product, frobenius_norm, gram_bound, split_scale, summation_error

MAX_WORK = 2**35
"""At most so many multiplications are spent on axes that are unrolled: a second's work."""

_MAX_MATRIX_ENTRIES = 2**23
"""At most so many entries has a matrix of an unrolled axis."""


class IndexedAxis(NamedTuple):
    """One axis of an image, and what the windows along it read.

    Attributes:
        entries: number of entries of the image.
        indices: which of them each window reads at each tap, ``(windows, taps)``; negative where it reads none.
        torus: a torus that the axis is a part of, once each entry is read from one place.
        excess: factor by which the norm may be larger than on the torus: the root of how often an entry is read.
        unroll: whether it gains by being unrolled into a matrix.
    """

    entries: int
    indices: tuple[tuple[int, ...], ...]
    torus: _circulant.TorusAxis
    excess: float
    unroll: bool


def indexed_axis(
    line: np.ndarray, k: int, stride: int, pads: tuple[int, int], spread: int, dilation: int
) -> IndexedAxis:
    """Slide a window along a line of entries, with zeros around and between.

    Args:
        line: number of the entry at each place of the padded axis; negative for a constant.
        k: taps of the window.
        stride: its step.
        pads: zeros ``(low, high)`` around the line; negative ones cut it.
        spread: step between the entries of the line, zeros standing between them.
        dilation: step between the taps.
    """
    low, high = pads
    # Places: low zeros, then line[0], (spread - 1) zeros, line[1], ..., then high zeros.
    side = (len(line) - 1) * spread + 1
    windows = (side + low + high - dilation * (k - 1) - 1) // stride + 1
    at = stride * np.arange(windows)[:, None] + dilation * np.arange(k) - low
    inside = (at >= 0) & (at < side) & (at % spread == 0)
    indices = np.where(inside, line[np.clip(at // spread, 0, len(line) - 1)], -1)
    n = int(line.max()) + 1
    # If all windows read consecutive entries modulo n, the line is a ring.
    around = indices[0, 0] + stride * np.arange(windows)[:, None] + dilation * np.arange(k)
    if np.array_equal(indices, around % n):
        return _make_ring(n, indices, stride, dilation)
    most = int(np.bincount(line[line >= 0]).max())
    side += min(low, 0) + min(high, 0)  # negative padding cuts the image
    torus = _circulant.embedded_axis(side, k, stride, dilation, (max(low, 0), max(high, 0)))
    return IndexedAxis(n, _as_tuples(indices), torus, sqrt(most), unroll=most > 1)


def ring_axis(n: int, k: int, stride: int, dilation: int) -> IndexedAxis:
    """Slide a window around a ring, one at every ``stride``-th entry: circular padding."""
    return _make_ring(n, (stride * np.arange(-(-n // stride))[:, None] + dilation * np.arange(k)) % n, stride, dilation)


def _make_ring(n: int, indices: np.ndarray, stride: int, dilation: int) -> IndexedAxis:
    """Lay a ring on its own torus; windows that start at one entry count as often as they do."""
    torus = _circulant.circular_axis(n, indices.shape[1], stride, dilation)
    often = int(np.bincount(stride * np.arange(len(indices)) % n).max())
    return IndexedAxis(n, _as_tuples(indices), torus, sqrt(often), unroll=often > 1 or not torus.exact)


def _as_tuples(indices: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Make indices hashable: they are static arguments of a jit."""
    return tuple(map(tuple, indices.tolist()))


@partial(jax.jit, static_argnums=(1, 2, 3))
def indexed_conv_norm(
    kernel: Float[Array, "*window inputs outputs"], axes: tuple[IndexedAxis, ...], groups: int, steps: int
) -> Float[Array, ""]:
    """Bound the norm of the convolution from above, certified; closely where no axis has to be counted."""
    kernel, scale = split_scale(kernel)
    shape = kernel.shape[-2] * groups, kernel.shape[-1]
    unrolled = _axes_to_unroll(axes, shape, groups, steps)
    rest = [axis for k, axis in enumerate(axes) if k not in unrolled]
    small, lost = _unroll_axes(kernel, axes, unrolled, groups)
    if rest:
        value = circulant_norm(small, NormPlan(tuple(axis.torus for axis in rest), groups, "gram", steps))
    else:
        # Nothing of the window is left: one matrix per group.
        matrices = jnp.moveaxis(jnp.reshape(small, (small.shape[0], groups, -1)), 1, 0)
        value = jnp.max(jax.vmap(lambda matrix: gram_bound(matrix, steps))(matrices))
    value = (value + lost) * prod(axis.excess for axis in rest)
    return scale * value * (1 + 8 * float(jnp.finfo(kernel.dtype).eps))


def _axes_to_unroll(axes: Sequence[IndexedAxis], channels: tuple[int, int], groups: int, steps: int) -> tuple[int, ...]:
    """Choose the axes to unroll: as many as the work allows, of these the cheapest."""
    candidates = [k for k, axis in enumerate(axes) if axis.unroll]
    for count in range(len(candidates), 0, -1):
        costs = [
            (_multiplications(axes, chosen, channels, groups, steps), chosen)
            for chosen in combinations(candidates, count)
        ]
        if min(costs)[0] <= MAX_WORK:
            return min(costs)[1]
    return ()


def _multiplications(
    axes: Sequence[IndexedAxis], unrolled: Sequence[int], channels: tuple[int, int], groups: int, steps: int
) -> float:
    """Count the multiplications of the Gram iteration; infinite where a matrix is too large."""
    rest = [axis.torus for k, axis in enumerate(axes) if k not in unrolled]
    rows = prod(axes[k].entries for k in unrolled) * prod(axis.fold for axis in rest) * channels[0] // groups
    columns = prod(len(axes[k].indices) for k in unrolled) * channels[1] // groups
    small, large = sorted((rows, columns))
    if small * large > _MAX_MATRIX_ENTRIES:
        return float("inf")
    # One product of (small, large) by its transpose, then one of (small, small) matrices for each further step.
    products = small * small * large + max(steps - 1, 0) * small**3
    # Complex numbers take four, and half of the frequencies are enough.
    return float(groups * products * (2 * prod(axis.frequencies for axis in rest) if rest else 1))


def _unroll_axes(
    kernel: Array, axes: Sequence[IndexedAxis], unrolled: Sequence[int], groups: int
) -> tuple[Float[Array, "*window inputs outputs"], Array]:
    """Turn some axes of a kernel into channels; return it with the most by which rounding changed the norm.

    ``M[entry, window] = sum of kernel[tap] over the taps with indices[window, tap] = entry``: entries join the input
    channels, windows the output channels. With ``N`` how many taps are summed, for each entry and window, and ``S`` the
    sum of absolute values over the window, ``|dK|_2 <= c u |N|_2 |S|_F``.
    """
    *window, inputs, outputs = kernel.shape
    out = outputs // groups
    rest = [k for k in range(len(window)) if k not in unrolled]
    # (*window, inputs, groups * out) -> (*unrolled, *rest, inputs, groups, out)
    matrix = jnp.reshape(kernel, (*window, inputs, groups, out))
    matrix = jnp.transpose(matrix, (*unrolled, *rest, *range(len(window), len(window) + 3)))
    stretch = 1.0
    for k in unrolled:
        entries, indices = axes[k].entries, np.array(axes[k].indices)
        # table[entry, window, tap]: whether the window reads that entry at this tap.
        table = indices[None] == np.arange(entries)[:, None, None]
        stretch *= float(np.linalg.norm(table.sum(-1).astype(float), 2))
        (taps, *others), windows = matrix.shape, len(indices)
        # The first axis is that of k: (taps, others) -> (entries, windows, others) -> (others, entries, windows).
        flat = jnp.asarray(table.reshape(-1, taps).T, kernel.dtype)
        matrix = jnp.reshape(blocked_product(flat, jnp.reshape(matrix, (taps, -1))), (entries, windows, *others))
        matrix = jnp.moveaxis(matrix, (0, 1), (-2, -1))
    # Now (*rest, inputs, groups, out, entries_1, windows_1, entries_2, windows_2, ...). All entries go in front of the
    # inputs, all windows in front of the outputs, the groups outermost among the outputs.
    ndim, count = len(rest), len(unrolled)
    entries, windows = (tuple(ndim + 3 + 2 * k + part for k in range(count)) for part in (0, 1))
    matrix = jnp.transpose(matrix, (*range(ndim), *entries, ndim, ndim + 1, *windows, ndim + 2))
    rows = prod(axes[k].entries for k in unrolled) * inputs
    matrix = jnp.reshape(matrix, (*[window[k] for k in rest], rows, -1))
    eps = float(jnp.finfo(kernel.dtype).eps)
    # Entries that a single tap makes are not rounded at all.
    several = any(_reads_twice(np.array(axes[k].indices)) for k in unrolled)
    taps = sum(window[k] for k in unrolled) if several else 0
    sums = frobenius_norm(jnp.sum(jnp.reshape(jnp.abs(kernel), (-1, inputs, outputs)), axis=0))
    return matrix, summation_error(taps, eps, extra=0) * stretch * sums if taps else jnp.zeros((), kernel.dtype)


def _reads_twice(indices: np.ndarray) -> bool:
    """Tell whether a window reads an entry twice."""
    ordered = np.sort(indices, axis=1)
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())
