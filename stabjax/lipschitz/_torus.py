"""A convolution laid on a torus, where it falls apart into one small matrix per frequency. All of it is static.

Convolution of an image with zeros around it is ``crop . circular . embed``, and crop and embed do not stretch: so the
circular norm on a torus bounds it, if no window that is kept reaches the image around the torus. At the side of the
image itself it may (kernel (1, -2, 1), three pixels: 3 on the torus, 3.414 with zeros). With padding ``k // 2`` a side
of ``n + k // 2`` is enough, without padding ``n``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

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
