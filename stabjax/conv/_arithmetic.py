"""Convolution by its definition: sizes, windows, three routes to one result, patches, edge kernels.

``y[p, o] = sum_{q, i} x[stride p + dilation q - low, i] kernel[q, i, o]``, zeros outside the image: cross-correlation,
as every neural network has it. Images are ``(batch, *spatial, channels)``, kernels ``(*window, in, out)``.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Image, Images, Scalar
from stabjax.conv._general_dilated import conv_general_dilated
from stabjax.conv._geometry import out_size, pad, strided_slice

Sizes: TypeAlias = int | Sequence[int]
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]
Method: TypeAlias = Literal["direct", "unfold", "fft"]
Kernel: TypeAlias = Float[AnyArray, "*window channels_in channels_out"]


def output_size(
    size: Sizes, window: Sizes, *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1
) -> tuple[int, ...]:
    """Count the positions of a window along each axis, ``floor((n + low + high - d (k - 1) - 1) / s) + 1``.

    Args:
        size: of the image, one number per axis or one number for a signal.
        window: of the kernel; a number stands for all axes, as in the rest.
        stride: step of the window.
        padding: zeros on both sides of each axis: a number, one number or one pair ``(low, high)`` per axis,
            ``"valid"`` for none, or ``"same"``: ``d (k - 1)`` in all, the smaller half in front, so that the size is
            kept at stride 1. ``k // 2`` does the same for an odd window.
        dilation: step between the taps of the window.

    Raises:
        ValueError: if a number is out of range, or the window does not fit into the padded image.
    """
    size = (size,) if isinstance(size, int) else tuple(size)
    window, stride, dilation = _resolve_window(len(size), window, stride, dilation)
    pads = resolve_padding(window, padding, dilation)
    extents = tuple(d * (k - 1) + 1 for k, d in zip(window, dilation))
    padded = [n + low + high for n, (low, high) in zip(size, pads)]
    if any(n < 1 for n in size) or any(e > n for e, n in zip(extents, padded)):
        raise ValueError(
            f"expected a window that fits into the padded image, got window {extents} (dilation counted) and "
            f"image {tuple(padded)} (padding counted): pad more, or take a smaller kernel"
        )
    return out_size(size, pads, extents, stride)


def unfold(
    x: Images, window: Sizes, *, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1
) -> Float[Array, "batch *positions entries"]:
    """Write the window at every position as one row (im2col), ``(batch, *positions, prod(window) * channels)``.

    Rows are in the order of a kernel: ``unfold(x, w) @ kernel.reshape(-1, out)`` is the convolution. Arguments and
    errors as in `output_size`.
    """
    size = _spatial_shape(x)
    positions = output_size(size, window, stride=stride, padding=padding, dilation=dilation)
    window, stride, dilation = _resolve_window(len(size), window, stride, dilation)
    padded = pad(without_explicit_axes(jnp.asarray(x)), resolve_padding(window, padding, dilation))
    # (batch, *padded, channels) -> one view (batch, *positions, channels) per tap, in row-major order of the window,
    # side by side along the last axis: entry (tap, channel) of a row meets row (tap, channel) of the reshaped kernel.
    starts = [tuple(q * d for q, d in zip(tap, dilation)) for tap in np.ndindex(*window)]
    return jnp.concatenate([strided_slice(padded, start, positions, stride) for start in starts], axis=-1)


def convolve(
    x: Images,
    kernel: Kernel,
    *,
    stride: Sizes = 1,
    padding: Padding = "same",
    dilation: Sizes = 1,
    method: Method = "direct",
) -> Float[Array, "batch *positions channels_out"]:
    """Convolve images with a kernel, ``(batch, *positions, out)``, by one of three routes.

    Args:
        x: images, ``(batch, *spatial, in)``.
        kernel: ``(*window, in, out)``.
        stride: as in `output_size`, and so are padding and dilation.
        padding: the size is kept at stride 1 unless told otherwise.
        dilation: see there.
        method: ``"direct"``: what the models use, the fastest correct route of the device, see `conv_general_dilated`;
            ``"unfold"``: one matrix product of the unfolded images; ``"fft"``: products of spectra, whose cost does not
            depend on the window. They agree to rounding, in values and derivatives.

    Raises:
        TypeError: if images or kernel are not floating-point.
        ValueError: if kernel and images do not fit together, or the method is unknown.
    """
    size = _spatial_shape(x)
    if kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"expected a kernel (*window, in, out) for images (batch, *spatial, in), got {kernel.shape} and {x.shape}"
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(kernel.dtype, jnp.floating)):
        raise TypeError(f"expected floating-point images and kernel, got {x.dtype} and {kernel.dtype}")
    *window, _, out = kernel.shape
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    positions = output_size(size, window, **options)
    window, stride, dilation = _resolve_window(len(size), window, stride, dilation)
    pads = resolve_padding(window, padding, dilation)
    if method == "unfold":
        # (batch, *positions, taps * in) @ (taps * in, out)
        rows = unfold(x, window, **options)
        return jnp.matmul(rows, jnp.reshape(kernel, (-1, out)), precision=HIGHEST)
    if method == "fft":
        return _convolve_spectra(*without_explicit_axes((x, kernel)), pads, positions, stride, dilation)
    if method != "direct":
        raise ValueError(f"expected method to be one of {get_args(Method)}, got {method!r}")
    # Names of the spatial axes; any letters that are not N, C, I, O will do.
    axes = "XYZUVW"[: len(size)]
    return conv_general_dilated(
        x,
        kernel,
        stride,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        precision=HIGHEST,
    )


def _convolve_spectra(
    x: AnyArray,
    kernel: AnyArray,
    pads: tuple[tuple[int, int], ...],
    positions: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Array:
    """Compute ``F y = sum_i F x_i conj(F kernel_i)`` on a torus that holds the padded image: nothing wraps around."""
    dtype = jnp.result_type(x, kernel)
    # There are no transforms of half-precision numbers.
    compute = jnp.float64 if dtype == jnp.float64 else jnp.float32
    x, kernel = (jnp.asarray(a, compute) for a in (x, kernel))
    axes = tuple(range(1, x.ndim - 1))
    # Dilation puts zeros between the taps. Cross-correlation: the spectrum of the kernel is conjugate.
    zeros = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*((0, 0, d - 1) for d in dilation), (0, 0, 0), (0, 0, 0)])
    # Position p reads the padded pixels s p .. s p + d (k - 1), all of them inside: none comes from beyond the end of
    # the torus, where the circular product starts again at zero.
    torus = [n + low + high for n, (low, high) in zip(x.shape[1:-1], pads)]
    # (batch, *half, in) x (*half, in, out) -> (batch, *half, out), `half` being the torus with half of its last axis:
    # spectra of real numbers repeat themselves. The kernel is padded to the torus behind its last tap, so that tap 0
    # stays at the origin.
    spectrum = jnp.fft.rfftn(pad(x, pads), axes=axes)
    filters = jnp.conj(jnp.fft.rfftn(zeros, torus, axes=tuple(range(len(torus)))))
    product = jnp.einsum("n...i,...io->n...o", spectrum, filters, precision=HIGHEST)
    y = jnp.fft.irfftn(product, torus, axes=axes).astype(dtype)
    # The torus holds the response at every pixel. Those at multiples of the stride are kept.
    return strided_slice(y, (0,) * len(torus), positions, stride)


def apply_kernel(image: Image, kernel: Kernel, position: Sequence[Scalar]) -> Float[Array, " channels_out"]:
    """Compute the response at one position, ``(out,)``: what `convolve` (stride 1, ``"same"``) gives there.

    The window is centered: rows ``position - (k - 1) // 2`` and on. Positions may be traced.

    Args:
        image: one image, ``(*spatial, in)``.
        kernel: ``(*window, in, out)``.
        position: one index per axis.

    Raises:
        ValueError: if the numbers of axes do not fit together.
    """
    *window, channels, _ = kernel.shape
    if image.ndim != len(window) + 1 or len(position) != len(window) or image.shape[-1] != channels:
        raise ValueError(
            f"expected an image (*spatial, in), a kernel (*window, in, out) and one index per axis, got {image.shape}, "
            f"{kernel.shape} and {len(position)} indices"
        )
    padded = jnp.pad(image, [*resolve_padding(window, "same", (1,) * len(window)), (0, 0)])
    # Padded by (k - 1) // 2 in front, the window around `position` begins at index `position`.
    seen = lax.dynamic_slice(padded, (*position, 0), (*window, channels))
    return jnp.tensordot(seen, kernel, axes=image.ndim, precision=HIGHEST)


def patches(images: Images, size: Sizes) -> Float[Array, "batch patches entries"]:
    """Cut images into patches side by side, ``(batch, h w, p p channels)``: patches in rows, pixels in rows.

    Args:
        images: ``(batch, *spatial, channels)``.
        size: side of a patch, a divisor of every side of the images.

    Raises:
        ValueError: if it is none.
    """
    spatial = _spatial_shape(images)
    sides = _per_axis(len(spatial), size, "size")
    if any(n % p for n, p in zip(spatial, sides)):
        raise ValueError(f"expected sides of patches that divide those of the images, got {sides} and {spatial}")
    # (batch, h, w, p p channels) -> (batch, h w, p p channels), with h and w in patches.
    cut = unfold(images, sides, stride=sides)
    return jnp.reshape(cut, (len(images), math.prod(cut.shape[1:-1]), cut.shape[-1]))


def edge_kernels() -> dict[str, Float[np.ndarray, "window window 1 1"]]:
    """Return four kernels that respond to edges of gray images, ``(3, 3, 1, 1)`` each, by the edge they respond to.

    ``top``: dark above, bright below; ``left``: dark left of bright; ``rising`` and ``falling``: the diagonals, as the
    primer of fast.ai has them, with sum one, so that even areas respond too (fastbook, chapter 13).
    """
    kernels = {
        "top": ((-1, -1, -1), (0, 0, 0), (1, 1, 1)),
        "left": ((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)),
        "rising": ((0, -1, 1), (-1, 1, 0), (1, 0, 0)),
        "falling": ((1, -1, 0), (0, 1, -1), (0, 0, 1)),
    }
    return {name: np.array(rows, np.float32)[:, :, None, None] for name, rows in kernels.items()}


def resolve_padding(window: Sequence[int], padding: Padding, dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return the zeros ``(low, high)`` on each axis; raise ``ValueError`` for a padding that is none."""
    extra = [d * (k - 1) for k, d in zip(window, dilation)]
    if padding == "same":
        # d (k - 1) zeros keep the size: n + d (k - 1) - d (k - 1) = n. Of an odd number, the larger half stands behind.
        return tuple((e // 2, e - e // 2) for e in extra)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(f"expected padding 'same', 'valid', a number or one (low, high) per axis, got {padding!r}")
    values = (padding,) * len(window) if isinstance(padding, int) else tuple(padding)
    pads = tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in values)
    if len(pads) != len(window) or any(side < 0 for pair in pads for side in pair):
        raise ValueError(f"expected padding >= 0 for each of {len(window)} axes, got {padding}")
    return pads


def _resolve_window(ndim: int, window: Sizes, stride: Sizes, dilation: Sizes) -> tuple[tuple[int, ...], ...]:
    """Return window, stride and dilation, one number per axis each."""
    named = {"window": window, "stride": stride, "dilation": dilation}
    return tuple(_per_axis(ndim, value, name) for name, value in named.items())


def _per_axis(ndim: int, value: Sizes, name: str) -> tuple[int, ...]:
    """Return one positive number per axis; raise ``ValueError`` for others, naming the argument."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim or any(v < 1 for v in values):
        raise ValueError(f"expected {name} >= 1 for each of {ndim} axes, got {value}")
    return values


def _spatial_shape(x: AnyArray) -> tuple[int, ...]:
    """Return the spatial shape of a batch; raise ``ValueError`` for what is none."""
    if x.ndim < 3:
        raise ValueError(f"expected images (batch, *spatial, channels), got shape {x.shape}: add the missing axes")
    return tuple(x.shape[1:-1])
