"""Routes: which one a convolution takes, and how it is differentiated.

The derivative is stated once, as a jvp. A convolution is bilinear, so its tangent is one linear map of ``dx`` plus one
of ``dw``; each is written as the transpose of the fast gradient route. Transposed again by reverse mode, it becomes
that route, and what is nested in it (forward over reverse, vmap, remat) are plain primitives.

Inside a loop (`lax.scan`, `lax.map`) the stakes are higher: only outside of loops does XLA bring convolutions into the
layout that its CPU library takes, so there XLA's own gradients fall back to plain loops, fifty times slower. Hence any
convolution that is left to XLA here is channels-last, with its kernel (*kernel, in, out).
"""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from stabjax.conv import _groups, _pixel_pairs, _products, _winograd
from stabjax.conv._geometry import Geometry, pad

_DENSE_BLOCKS = 16
"""A map is convolved as a dense layer when that needs no more products, and at most this many blocks of the kernel."""

_PAIRED_CHANNELS = 3
_PAIRED_GRADIENT_CHANNELS = 8
"""Pixels of at most so many channels are taken in pairs, forwards and in the gradient of the kernel."""

_WINOGRAD_CHANNELS = 32
_WINOGRAD_POSITIONS = 256
"""Fewer channels or output pixels than these do not repay the transforms."""

_IS_QUICK = jax.make_user_context(None)
"""Part of what JAX compares when it looks for a program that it has compiled; None where nobody has chosen."""


def quick_to_compile(quick: bool, *, overrides: bool = True) -> AbstractContextManager[None]:
    """Take no route that is slow to compile, for programs that run shortly: ``with conv.quick_to_compile(True): ...``.

    On a CPU that leaves out Winograd's filtering of 3 x 3 kernels, which takes half a second of the processor to
    compile for each layer, and saves a tenth to two fifths of the time of a network. Results are the same to rounding.
    `stabjax.probe` chooses for itself, outside of such a context.

    Args:
        quick: False to take all routes, as outside of such a context.
        overrides: False to leave the choice to the context around this one, if there is one.
    """
    chosen = _IS_QUICK.value
    return _IS_QUICK(quick if overrides or chosen is None else chosen)


def _suits_dense(geometry: Geometry) -> bool:
    """Tell a small map, of no more pixels than the kernel has taps, whose channels all mix."""
    pixels = math.prod(geometry.size)
    mixing = geometry.groups == 1 and not geometry.depthwise
    return mixing and pixels <= geometry.taps and pixels * math.prod(geometry.out_size) <= _DENSE_BLOCKS


def _overhangs(geometry: Geometry) -> bool:
    """Tell whether the kernel is larger than the input on some axis: XLA falls back to plain loops."""
    return any(e > n for e, n in zip(geometry.extent, geometry.size))


def _suits_winograd(geometry: Geometry) -> bool:
    """Tell a 3 x 3 convolution of stride one with enough channels and positions to repay the transforms."""
    return (
        not _IS_QUICK.value
        and geometry.kernel == (3, 3)
        and geometry.strides == geometry.dilation == (1, 1)
        and min(geometry.in_channels, geometry.out_channels) >= _WINOGRAD_CHANNELS
        and geometry.positions >= _WINOGRAD_POSITIONS
    )


def _xla_convolution(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve by XLA. Without any padding it can be four times slower: then one column is added and dropped."""
    *others, (low, high) = geometry.padding
    extra = (
        len(geometry.size) == 2
        and geometry.padding == ((0, 0), (0, 0))
        and geometry.strides == (1, 1)
        and geometry.out_channels >= _WINOGRAD_CHANNELS
    )
    # Letters for the spatial axes, the last ones of DHW: "W" alone for signals.
    spatial = "DHW"[-len(geometry.size) :]
    y = lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        (*others, (low, high + extra)),
        rhs_dilation=geometry.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    )
    return y[..., :-1, :] if extra else y


def forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve by the route that suits."""
    if geometry.groups > 1 and not geometry.depthwise:
        return _groups.forward(x, kernel, geometry, forward)
    if geometry.depthwise:
        route = _products.depthwise_forward
    elif geometry.taps == 1:
        route = _products.forward
    # A kernel of one tap is a product without patches. One that overhangs its map must not reach XLA, so this is asked
    # before the routes that may end there.
    elif _suits_dense(geometry):
        route = _products.dense_forward
    elif _overhangs(geometry):
        route = _products.forward
    elif _suits_winograd(geometry):
        route = _winograd.forward
    elif geometry.in_channels <= _PAIRED_CHANNELS and _pixel_pairs.can_pair(geometry):
        return _pixel_pairs.forward(x, kernel, geometry, _xla_convolution)
    else:
        route = _xla_convolution
    return route(x, kernel, geometry)


def kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the kernel, ``g`` being that of the output."""
    if geometry.groups > 1 and not geometry.depthwise:
        return _groups.kernel_gradient(x, g, geometry, kernel_gradient)
    if geometry.depthwise:
        route = _products.depthwise_kernel_gradient
    elif geometry.taps > 1 and _suits_dense(geometry):
        route = _products.dense_kernel_gradient
    elif _suits_winograd(geometry):
        route = _winograd.kernel_gradient
    elif geometry.in_channels <= _PAIRED_GRADIENT_CHANNELS and _pixel_pairs.can_pair(geometry):
        return _pixel_pairs.kernel_gradient(x, g, geometry, _products.kernel_gradient)
    else:
        route = _products.kernel_gradient
    return route(x, g, geometry)


def input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the input, ``g`` being that of the output.

    Pixels ``i = s u + r`` of one residue ``r`` of the stride ``s`` are a convolution at stride one of ``g`` with every
    ``s``-th tap of the kernel, flipped; the residues are then interleaved::

        stride 2      pixels      0  1  2  3  4  5
                      residues    a  b  a  b  a  b        a = dx[2 u], b = dx[2 u + 1], u = 0, 1, 2
    """
    if geometry.taps > 1 and _suits_dense(geometry):
        return _products.dense_input_gradient(g, kernel, geometry)
    parts = [
        _residue_gradient(g, kernel, geometry, residue) for residue in itertools.product(*map(range, geometry.strides))
    ]
    if len(parts) == 1:
        return parts[0]
    # (batch, *u, in, residues) -> (batch, *u, in, *r) -> (batch, u_1, r_1, u_2, r_2, ..., in) -> pixels s u + r; those
    # behind the last one of the image are cut.
    counts = _residue_counts(geometry)
    x = jnp.reshape(jnp.stack(parts, -1), (geometry.batch, *counts, geometry.in_channels, *geometry.strides))
    rank = len(counts)
    order = [0, *[axis for k in range(rank) for axis in (1 + k, 2 + rank + k)], 1 + rank]
    x = jnp.transpose(x, order)
    x = jnp.reshape(x, (geometry.batch, *[c * s for c, s in zip(counts, geometry.strides)], geometry.in_channels))
    return x[(slice(None), *[slice(n) for n in geometry.size])]


def _residue_counts(geometry: Geometry) -> tuple[int, ...]:
    """Count the pixels of a residue along each axis, rounded up: all residues alike."""
    return tuple(-(-n // s) for n, s in zip(geometry.size, geometry.strides))


def _residue_gradient(g: Array, kernel: Array, geometry: Geometry, residue: tuple[int, ...]) -> Array:
    """Compute ``dx[s u + r] = sum_k g[u - m_k] w[k]`` for all ``u``, with one residue ``r`` on each axis.

    Output ``o`` sees pixel ``s o + d k - low`` at tap ``k``. So pixel ``s u + r`` gets from tap ``k`` the gradient of
    output ``o = u - m_k``, ``m_k = (d k - r - low) / s``, over the taps for which that is an integer.
    """
    counts = _residue_counts(geometry)
    taps, padding, dilation = [], [], []
    for r, k, s, d, (low, _), count, q in zip(
        residue,
        geometry.kernel,
        geometry.strides,
        geometry.dilation,
        geometry.padding,
        counts,
        geometry.out_size,
    ):
        # r + low = s offset + rest, so m_k = d k // s - offset for the taps with d k = rest (mod s).
        offset, rest = divmod(r + low, s)
        chosen = [tap for tap in range(k) if tap * d % s == rest]
        # No tap sees pixels of this residue, as with a stride larger than the window, or with stride and dilation both
        # even: their gradient is zero.
        if not chosen:
            return jnp.zeros((geometry.batch, *counts, geometry.in_channels), g.dtype)
        # These taps are equally far apart, and so are their m_k: `step`. Flipped, they are a kernel of that dilation
        # over g at stride one, whose first tap stands at u - m_last: `before` zeros in front, and behind so many that
        # there are `count` outputs.
        step = (chosen[1] - chosen[0]) * d // s if len(chosen) > 1 else 1
        before = chosen[-1] * d // s - offset
        taps.append(jnp.asarray(chosen[::-1]))
        padding.append((before, count - q - before + (len(chosen) - 1) * step))
        dilation.append(step)
    for axis, chosen in enumerate(taps):
        kernel = jnp.take(kernel, chosen, axis)
    # (*kernel, in_group, groups * out_group) -> (*kernel, out_group, groups * in_group): inputs and outputs of each
    # group change places.
    shape = kernel.shape[:-2]
    kernel = jnp.reshape(kernel, (*shape, geometry.in_group, geometry.groups, geometry.out_group))
    kernel = jnp.reshape(jnp.swapaxes(kernel, -1, -3), (*shape, geometry.out_group, geometry.in_channels))
    kernel = lax.optimization_barrier(kernel)
    # A geometry pads by zeros only; where fewer outputs of the forward pass count, g is cut first.
    g = pad(g, tuple((min(low, 0), min(high, 0)) for low, high in padding))
    # In this convolution the outputs of the forward pass are the inputs: g has `out_channels`, and the kernel gives
    # back `in_channels`. The taps that are left are `dilation` apart in g.
    transposed = Geometry(
        size=g.shape[1:-1],
        kernel=shape,
        strides=(1,) * len(shape),
        padding=tuple((max(low, 0), max(high, 0)) for low, high in padding),
        dilation=tuple(dilation),
        in_channels=geometry.out_channels,
        out_channels=geometry.in_channels,
        groups=geometry.groups,
        batch=geometry.batch,
    )
    return forward(g, kernel, transposed)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve ``(batch, *spatial, in)`` with ``(*kernel, in / groups, out)``, every derivative included."""
    return forward(x, kernel, geometry)


def _jvp(geometry: Geometry, primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, ...]) -> tuple:
    """Add the tangents of both operands, ``dy = dx * w + x * dw``; a zero tangent costs nothing."""
    x, kernel = primals
    dx, dkernel = tangents
    y = convolve(x, kernel, geometry)
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_tangent_map(input_gradient, 1, geometry)(dx, kernel, y))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(_tangent_map(kernel_gradient, 0, geometry)(dkernel, x, y))
    return y, sum(terms[1:], terms[0])


def _tangent_map(gradient: Callable, position: int, geometry: Geometry) -> Callable:
    """Return the tangent of the convolution, as the transpose of one of its gradients.

    Rematerialized: what is computed of the constant operand (patches, tiles) is several times its size, and would
    otherwise be kept from the forward to the backward pass.
    """

    def tangent(d: Array, constant: Array, y: Array) -> Array:
        def of_cotangent(g: Array) -> Array:
            return gradient(*((constant, g) if position == 0 else (g, constant)), geometry)

        # y lends its shape and dtype to the cotangent; its values are not used.
        return jax.linear_transpose(of_cotangent, jax.ShapeDtypeStruct(y.shape, y.dtype))(d)[0]

    return jax.checkpoint(tangent)


convolve.defjvp(_jvp, symbolic_zeros=True)
