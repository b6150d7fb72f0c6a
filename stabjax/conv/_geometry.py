"""Geometry of a convolution: what is static about it, and the arithmetic of its sizes."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


@dataclass(frozen=True)
class Geometry:
    """A convolution of ``(batch, *spatial, in)`` with ``(*kernel, in / groups, out)``, without its arrays.

    Attributes:
        size: spatial shape of the input.
        kernel: spatial shape of the kernel.
        strides: step of the window along each axis.
        padding: zeros ``(low, high)`` around each axis, never negative.
        dilation: step between the taps of the kernel along each axis.
        in_channels: channels of the input.
        out_channels: channels of the output.
        groups: number of groups of channels that do not mix.
        batch: number of images.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    in_channels: int
    out_channels: int
    groups: int
    batch: int

    @property
    def extent(self) -> tuple[int, ...]:
        """Pixels that the dilated kernel spans along each axis."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation))

    @property
    def out_size(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        return out_size(self.size, self.padding, self.extent, self.strides)

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def in_group(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def out_group(self) -> int:
        """Output channels of a group."""
        return self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        """Whether every output channel sees one input channel; one that many outputs see is better a product."""
        return self.in_group == 1 and (self.groups > 1 or self.out_channels == 1)

    @property
    def positions(self) -> int:
        """Output pixels of the whole batch."""
        return self.batch * math.prod(self.out_size)


def out_size(
    size: tuple[int, ...], padding: tuple[tuple[int, int], ...], extent: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...]:
    """Count the positions of a window of that extent along each axis."""
    # The window starts at 0, s, 2 s, ... as long as it ends inside: s p + e <= n + low + high.
    return tuple((n + low + high - e) // s + 1 for n, (low, high), e, s in zip(size, padding, extent, strides))


def pad(x: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    """Put zeros around the pixels of ``(batch, *spatial, channels)``; a negative number crops."""
    if all(pair == (0, 0) for pair in padding):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *[(low, high, 0) for low, high in padding], (0, 0, 0)])


def strided_slice(x: Array, start: tuple[int, ...], count: tuple[int, ...], step: tuple[int, ...]) -> Array:
    """Take ``count`` pixels from ``start`` on, ``step`` apart, on each axis of ``(batch, *spatial, channels)``."""
    # One behind the last pixel taken; start + n s could lie beyond the array.
    stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, count, step)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *step, 1))
