"""The noise numerator with bias and without a ReLU on the input: where noise switches units off, and where it does not.

The image ``x`` has one lit pixel, the noisy image is ``x + eta``, the last layer is taken before its ReLU. Units of the
first layer are ``z_j ~ N(c_j, s_j^2)`` for many pixels, with clean values ``c_j = (W_1 x)_j + b >= 0`` and
``s_j^2 = (r^2/N) |row j of W_1|^2``; what follows is a linear map ``B``, in which ``b`` cancels::

    E|Delta|^2 = tr(B M B^T),    M_jk = E[(relu z_j - c_j)(relu z_k - c_k)]

With ``alpha = c_j / s_j``, ``beta = c_k / s_k`` and the correlation ``rho`` of the two, the mean is
``m_j = s_j psi(alpha)``, ``psi(alpha) = phi(alpha) - alpha Phi(-alpha)``, and by Price's theorem, applied twice,::

    M_jk - m_j m_k = s_j s_k [ rho Phi(alpha) Phi(beta) + int_0^rho (rho - r) phi_2(alpha, beta; r) dr ]

with ``phi_2`` the density of two normals of correlation ``r``. All terms are positive: no digits are lost at small
noise.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from stabjax._types import AnyArray
from stabjax.theory._moments import Responses, check_sized_geometry, responses_by_layer, units_above

_CERTAIN = 40.0
"""Standard deviations beyond which a unit is never switched off: the probability is below 1e-300."""

Values = float | int | Float[AnyArray, "..."]


def raw_noise_numerator(
    kernel: int, stride: int, depth: int, size: int, *, bias: Values, radius: Values
) -> Float[np.ndarray, "..."]:
    """Compute the numerator of ``G`` of the last layer before its ReLU, for images ``x + eta`` and layers with bias.

    Means over the noise and over all lit pixels. The noise is taken as Gaussian of mean square ``r^2``; on the sphere
    the values are the same up to order ``1/N``, and exactly at the plateaus (`noise_plateaus`), where only second
    moments matter. The integrals are right to 1e-13. The denominator of ``G`` is the one of `constant_filter_moments`:
    there the biases cancel.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1.
        size: pixels of the signal, ``N``.
        bias: ``b >= 0`` of all layers; any shape.
        radius: ``r >= 0``; any shape that broadcasts with that of the biases.

    Returns:
        The shape of ``bias`` and ``radius`` broadcast together, float64.

    Raises:
        ValueError: a kernel smaller than the stride, a layer without units, or a negative bias or radius.
    """
    sizes = check_sized_geometry(kernel, stride, depth, size)
    b, r = np.broadcast_arrays(np.asarray(bias, np.float64), np.asarray(radius, np.float64))
    if (b < 0).any() or (r < 0).any():
        raise ValueError(f"expected bias >= 0 and radius >= 0, got minima {b.min()} and {r.min()}")
    unit = np.where(r > 0, r, 1).reshape(-1)  # without noise any will do
    with np.errstate(over="ignore"):
        per_square = _numerator_over_square(*sizes, b.reshape(-1) / unit, stride / kernel / unit)
    return np.asarray(r**2 * per_square.reshape(r.shape))


@dataclass(frozen=True)
class NoisePlateaus:
    """Hold the values of ``numerator / r^2`` where it does not depend on the radius ``r``."""

    linear: float
    """No unit is ever switched off: ``b >> r / sqrt N``. The lowest, unless the stride is 1."""
    dark: float
    """``b = 0`` and little noise: units that see the lit pixel stay on, all others are rectified."""
    rectified: float
    """Noise above everything, ``r -> infinity``: all units of the first layer are rectified."""


def noise_plateaus(kernel: int, stride: int, depth: int, size: int) -> NoisePlateaus:
    """Compute the limits of `raw_noise_numerator` over ``r^2``.

    All three are exact for noise on the sphere too. With a bias, the ratio leaves `linear` where the noise of a unit is
    as large as the bias, near ``r = b sqrt(N F) / s``. With a stride above 1 it first dips there, by about a fifth:
    noise is cut off before what is left has a mean that could pile up. It is half way up to `rectified` at about ten
    times that radius. With stride 1 nothing piles up, and it falls. Arguments and errors as there.
    """
    sizes = check_sized_geometry(kernel, stride, depth, size)
    floor, lit = np.array([_CERTAIN, 0.0, 0.0]), np.array([0.0, _CERTAIN, 0.0])
    return NoisePlateaus(*_numerator_over_square(*sizes, floor, lit).tolist())


def _numerator_over_square(
    kernel: int,
    stride: int,
    depth: int,
    size: int,
    floor: Float[np.ndarray, " cells"],
    lit: Float[np.ndarray, " cells"],
) -> Float[np.ndarray, " cells"]:
    """Return ``E|Delta|^2 / r^2``, ``(cells,)``.

    Args:
        kernel: ``F``.
        stride: ``s``.
        depth: number of layers.
        size: pixels of the signal.
        floor: clean values over ``r`` of units of the first layer that do not see the lit pixel, ``b / r``; one for
            each cell, a pair of a bias and a radius.
        lit: what the lit pixel adds, ``s / (F r)``.
    """
    if depth == 1:
        (first,) = responses_by_layer(kernel, stride, 1, size)
        return np.full(floor.shape, np.sum(first.weights**2) / size)
    units = units_above(size, kernel, stride)
    seen, shared = _count_seen_pixels(kernel, stride, size, units)
    clean = np.stack([floor, floor + lit])  # (dark or lit, cells)
    unit = stride / kernel / math.sqrt(size)  # s_j / r of a unit that sees one pixel

    number, which = np.unique(seen, return_inverse=True)
    sigma = unit * np.sqrt(number)
    dark, bright = sigma * _psi(np.minimum(clean[:, :, None] / sigma, _CERTAIN))
    mean, step = dark[:, which], (bright - dark)[:, which]

    # With m = mean + step where a unit sees the lit pixel, <|B m|^2> over lit pixels is, up to <|B step|^2>,
    # <B mean, B (mean + 2 step seen / N)>: each unit sees a share seen / N of the lit pixels.
    once = _apply_layers(np.stack([mean, mean + 2 / size * step * seen]), kernel, stride, depth - 1)
    total = np.sum(once[0] * once[1], axis=1)
    *_, later = responses_by_layer(kernel, stride, depth - 1, units)
    for distance, both in enumerate(shared):
        products = (1 if distance == 0 else 2) * _response_products(later, distance)  # (B^T B)_jk, and its mirror image
        j, k = np.arange(units - distance), np.arange(distance, units)
        # <|B step|^2>: a share both / N of the lit pixels is seen by both units.
        total += (step[:, j] * step[:, k]) @ (products * both) / size
        # units that see equally many pixels, and share equally many, have one covariance: there are few kinds of pairs
        kinds, kind = np.unique(np.stack([seen[j], seen[k], both]), axis=1, return_inverse=True)
        weights = np.bincount(kind.reshape(-1), weights=products, minlength=kinds.shape[1])
        for numbers, weight in zip(kinds.T.tolist(), weights):
            total += weight * _mean_covariance(clean, unit, size, *numbers)
    return total


def _count_seen_pixels(
    kernel: int, stride: int, size: int, units: int
) -> tuple[Int[np.ndarray, " units"], list[Int[np.ndarray, " pairs"]]]:
    """Count the pixels that each unit of the first layer sees, and that units ``j`` and ``j + 0, 1, ...`` both see."""
    start = stride * np.arange(units) - (kernel - 1) // 2
    left, right = np.maximum(start, 0), np.minimum(start + kernel, size)
    furthest = min((kernel - 1) // stride, units - 1)  # windows further apart share nothing
    return right - left, [np.maximum(right[: units - d] - left[d:], 0) for d in range(furthest + 1)]


def _mean_covariance(
    clean: Float[np.ndarray, "2 cells"], unit: float, size: int, one: int, other: int, both: int
) -> Float[np.ndarray, " cells"]:
    """Return ``<M_jk - m_j m_k> / r^2`` over all lit pixels, ``(cells,)``.

    Units ``j`` and ``k`` see ``one`` and ``other`` pixels, ``both`` of which are the same.
    """
    # The correlation of sums over two overlapping windows of independent noise.
    s_j, s_k, rho = unit * math.sqrt(one), unit * math.sqrt(other), min(both / math.sqrt(one * other), 1.0)
    alpha, beta = np.minimum(clean / s_j, _CERTAIN), np.minimum(clean / s_k, _CERTAIN)
    # How many pixels are seen by (j, k); by the lit one each clean value is dark (0) or bright (1).
    pixels = {(1, 1): both, (1, 0): one - both, (0, 1): other - both, (0, 0): size - one - other + both}
    parts = [number * _covariance(alpha[j], beta[k], rho) for (j, k), number in pixels.items()]
    return s_j * s_k * np.sum(parts, axis=0) / size


def _covariance(
    alpha: Float[np.ndarray, " cells"], beta: Float[np.ndarray, " cells"], rho: float
) -> Float[np.ndarray, " cells"]:
    """Integrate the covariance of ``max(t, -alpha)`` and ``max(u, -beta)``, standard normals of correlation ``rho``.

    With ``r = sin theta`` the integrand at the head of this file is smooth, up to ``rho = 1`` where alpha = beta.
    """
    theta, weights = math.asin(rho) * (NODES + 1) / 2, math.asin(rho) * WEIGHTS / 2
    sine, cosine = np.sin(theta), np.cos(theta)
    a, b = alpha[:, None], beta[:, None]
    density = np.exp(-a * b / (1 + sine) - ((a - b) / cosine) ** 2 / 2) / (2 * math.pi)
    return rho * _normal_cdf(alpha) * _normal_cdf(beta) + density @ (weights * (rho - sine))


NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


def _psi(alpha: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return ``psi(alpha)``, the mean of ``max(t, -alpha)`` of a standard normal ``t``."""
    return np.exp(-(alpha**2) / 2) / math.sqrt(2 * math.pi) - alpha * _normal_cdf(-alpha)


def _normal_cdf(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)) / 2


def _apply_layers(
    values: Float[np.ndarray, "*cells units"], kernel: int, stride: int, depth: int
) -> Float[np.ndarray, "*cells above"]:
    """Apply ``depth`` linear layers to values of all units."""
    padding = (kernel - 1) // 2
    for _ in range(depth):
        above = units_above(values.shape[-1], kernel, stride)
        padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(padding, padding)])
        shifted = [padded[..., f : f + stride * (above - 1) + 1 : stride] for f in range(kernel)]
        values = stride / kernel * np.sum(shifted, axis=0)
    return values


def _response_products(layer: Responses, distance: int) -> Float[np.ndarray, " pairs"]:
    """Return the inner products of the responses to inputs ``j`` and ``j + distance``, for each ``j``."""
    # Both inputs stand in one window, `distance` entries apart.
    pairs = layer.size - distance
    width = max(layer.weights.shape[1] - distance, 0)
    products = layer.weights[:, :width] * layer.weights[:, distance:]
    inputs = layer.inputs[:, :width]
    both = (inputs >= 0) & (inputs < pairs)
    return np.bincount(inputs[both], weights=products[both], minlength=pairs)
