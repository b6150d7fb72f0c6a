"""Convolutions whose windows read entries in any order: around a ring, mirrored at a border, the border again.

Along each axis it is known which entry a window reads at each of its places. An axis that is a ring goes to the torus.
One that is none can be written out: a convolution along it is a matrix, so that its entries count as channels of a
convolution along the other axes. That is exact, and dear for large images: of those axes that are too long, how often
an entry is read is counted instead.
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
from stabjax.lipschitz._circulant import Way, largest
from stabjax.lipschitz._gram import above, frobenius, product, rounding, scaled

WORK = 2**35
"""So many multiplications may be spent on axes that are written out."""

_WRITTEN = 2**23
"""So many entries may a matrix have."""


class Reads(NamedTuple):
    """One axis.

    Attributes:
        entries: their number.
        places: which of them each window reads at each of its places; negative where it reads none.
        torus: a torus that the axis is a part of.
        excess: by how much the norm may be larger than on it.
        written: whether it gains by being written out.
    """

    entries: int
    places: tuple[tuple[int, ...], ...]
    torus: _circulant.Axis
    excess: float
    written: bool


def reads(line: np.ndarray, k: int, stride: int, pads: tuple[int, int], spread: int, dilation: int) -> Reads:
    """How a window slides along a line of numbered entries (negative: a constant), with zeros around and between."""
    low, high = pads
    side = (len(line) - 1) * spread + 1
    windows = (side + low + high - dilation * (k - 1) - 1) // stride + 1
    at = stride * np.arange(windows)[:, None] + dilation * np.arange(k) - low
    inside = (at >= 0) & (at < side) & (at % spread == 0)
    places = np.where(inside, line[np.clip(at // spread, 0, len(line) - 1)], -1)
    n = int(line.max()) + 1
    around = places[0, 0] + stride * np.arange(windows)[:, None] + dilation * np.arange(k)
    if np.array_equal(places, around % n):
        return _ring(n, places, stride, dilation)
    most = int(np.bincount(line[line >= 0]).max())
    side += min(low, 0) + min(high, 0)  # negative padding cuts the image
    torus = _circulant.embedded(side, k, stride, dilation, (max(low, 0), max(high, 0)))
    return Reads(n, _fixed(places), torus, sqrt(most), written=most > 1)


def circular(n: int, k: int, stride: int, dilation: int) -> Reads:
    """Circular padding: a window at every ``stride``-th entry of a ring."""
    return _ring(n, (stride * np.arange(-(-n // stride))[:, None] + dilation * np.arange(k)) % n, stride, dilation)


def _ring(n: int, places: np.ndarray, stride: int, dilation: int) -> Reads:
    torus = _circulant.circular(n, places.shape[1], stride, dilation)
    often = int(np.bincount(stride * np.arange(len(places)) % n).max())
    return Reads(n, _fixed(places), torus, sqrt(often), written=often > 1 or not torus.exact)


def _fixed(places: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, places.tolist()))


@partial(jax.jit, static_argnums=(1, 2, 3))
def norm_of_reads(
    kernel: Float[Array, "*window inputs outputs"], axes: tuple[Reads, ...], groups: int, steps: int
) -> Float[Array, ""]:
    """A certified bound on the norm of the convolution; close to it where no axis has to be counted."""
    kernel, scale = scaled(kernel)
    shape = kernel.shape[-2] * groups, kernel.shape[-1]
    written = _chosen(axes, shape, groups, steps)
    rest = [axis for k, axis in enumerate(axes) if k not in written]
    small, lost = _absorbed(kernel, axes, written, groups)
    if rest:
        value = largest(small, Way(tuple(axis.torus for axis in rest), groups, "gram", steps))
    else:
        matrices = jnp.moveaxis(jnp.reshape(small, (small.shape[0], groups, -1)), 1, 0)
        value = jnp.max(jax.vmap(lambda matrix: above(matrix, steps))(matrices))
    value = (value + lost) * prod(axis.excess for axis in rest)
    return scale * value * (1 + 8 * float(jnp.finfo(kernel.dtype).eps))


def _chosen(axes: Sequence[Reads], channels: tuple[int, int], groups: int, steps: int) -> tuple[int, ...]:
    """Which axes to write out: as many as the work allows."""
    gaining = [k for k, axis in enumerate(axes) if axis.written]
    for count in range(len(gaining), 0, -1):
        found = [(_work(axes, several, channels, groups, steps), several) for several in combinations(gaining, count)]
        if min(found)[0] <= WORK:
            return min(found)[1]
    return ()


def _work(axes: Sequence[Reads], written: Sequence[int], channels: tuple[int, int], groups: int, steps: int) -> float:
    """Multiplications of the iteration; infinite where a matrix is too large."""
    rest = [axis.torus for k, axis in enumerate(axes) if k not in written]
    rows = prod(axes[k].entries for k in written) * prod(axis.fold for axis in rest) * channels[0] // groups
    columns = prod(len(axes[k].places) for k in written) * channels[1] // groups
    small, large = sorted((rows, columns))
    if small * large > _WRITTEN:
        return float("inf")
    each = small * small * large + max(steps - 1, 0) * small**3
    # Complex numbers take four, and half of the frequencies are enough.
    return float(groups * each * (2 * prod(axis.frequencies for axis in rest) if rest else 1))


def _absorbed(
    kernel: Array, axes: Sequence[Reads], written: Sequence[int], groups: int
) -> tuple[Float[Array, "*window inputs outputs"], Array]:
    """The kernel with some axes written out as channels, and the most by which rounding changed the norm.

    An entry is a sum of those entries of the window that read the same one. With ``N`` how many do, for each entry and
    window, and ``S`` the sum of absolute values over the window, ``|dK|_2 <= c u |N|_2 |S|_F``.
    """
    *window, inputs, outputs = kernel.shape
    out = outputs // groups
    rest = [k for k in range(len(window)) if k not in written]
    made = jnp.reshape(kernel, (*window, inputs, groups, out))
    made = jnp.transpose(made, (*written, *rest, *range(len(window), len(window) + 3)))
    stretch = 1.0
    for k in written:
        entries, places = axes[k].entries, np.array(axes[k].places)
        table = places[None] == np.arange(entries)[:, None, None]
        stretch *= float(np.linalg.norm(table.sum(-1).astype(float), 2))
        (taps, *others), windows = made.shape, len(places)
        flat = jnp.asarray(table.reshape(-1, taps).T, kernel.dtype)
        made = jnp.reshape(product(flat, jnp.reshape(made, (taps, -1))), (entries, windows, *others))
        made = jnp.moveaxis(made, (0, 1), (-2, -1))
    # (rest of the window, inputs, groups, outputs, entries and windows of each axis written out)
    ndim, count = len(rest), len(written)
    entries, windows = (tuple(ndim + 3 + 2 * k + part for k in range(count)) for part in (0, 1))
    made = jnp.transpose(made, (*range(ndim), *entries, ndim, ndim + 1, *windows, ndim + 2))
    rows = prod(axes[k].entries for k in written) * inputs
    made = jnp.reshape(made, (*[window[k] for k in rest], rows, -1))
    eps = float(jnp.finfo(kernel.dtype).eps)
    several = any(_collide(np.array(axes[k].places)) for k in written)
    taps = sum(window[k] for k in written) if several else 0
    sums = frobenius(jnp.sum(jnp.reshape(jnp.abs(kernel), (-1, inputs, outputs)), axis=0))
    return made, rounding(taps, eps, further=0) * stretch * sums if taps else jnp.zeros((), kernel.dtype)


def _collide(places: np.ndarray) -> bool:
    """Whether a window reads an entry twice."""
    ordered = np.sort(places, axis=1)
    return bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())
