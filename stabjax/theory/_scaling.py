"""What a layer adds, far from the input and from the border: growth rates, exponents, and the condition for them.

With ``r_k(m) = sum_i n_i n_(i+m)`` of the path counts of layer ``k`` (see `path_sums`), the ``N / s^k`` units of a long
signal of ``N`` pixels, all weights ``s / F``, give::

    denominator            <|a_p - a_p'|^2>  =  2 t_k,    t_k = s^k r_k(0) / F^(2k)
    deformation numerator  <|a_(p+1) - a_p|^2> = 2 s^k (r_k(0) - r_k(1)) / F^(2k)
    noise numerator        r^2 [ (1/2 - 1/(2 pi)) t_k + s^k / (2 pi) ]      for relu(x + eta), |eta| = r

The lags ``m`` go over into each other by the matrix ``A(m - s m')``, so everything grows by its largest eigenvalue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import Float, Int

from stabjax._types import AnyArray
from stabjax.theory._checks import check_geometry, check_integer
from stabjax.theory._paths import largest_lag, path_sums

_LARGEST_EXPONENT = 1000
"""Of the moments: a little below the 1024 of double precision, as they come with factors."""

Law = Literal["power", "geometric", "constant"]
Quantity = Literal["deformation_numerators", "noise_numerators", "denominators", "deformation", "noise", "relative"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["deformation_numerators", "noise_numerators", "denominators"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class InfiniteChain:
    """Hold the moments of a constant-filter network on a signal without end, layers ``1 .. depth``."""

    deformation_numerators: Float[AnyArray, " depth"]
    """What a shift by one pixel changes, ``(depth,)``."""
    noise_numerators: Float[AnyArray, " depth"]
    """What noise changes, rectified at the input, ``(depth,)``."""
    denominators: Float[AnyArray, " depth"]
    """Mean squared distance of two images, ``(depth,)``."""

    @property
    def deformation(self) -> Float[AnyArray, " depth"]:
        """Return ``D_k``, ``(depth,)``."""
        return self.deformation_numerators / self.denominators

    @property
    def noise(self) -> Float[AnyArray, " depth"]:
        """Return ``G_k``, ``(depth,)``."""
        return self.noise_numerators / self.denominators

    @property
    def relative(self) -> Float[AnyArray, " depth"]:
        """Return ``R_k = D_k / G_k``, ``(depth,)``."""
        return self.deformation_numerators / self.noise_numerators


def infinite_chain(kernel: int, stride: int, depth: int, *, radius: float | int = 2**0.5) -> InfiniteChain:
    """Compute moments after every ReLU where no unit is near a border: the limit of large ``size``.

    The images have one lit pixel; the deformation is a shift by one pixel, the noise is on the sphere of this radius.
    From exact integers, so any depth is right to the last digit.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1.
        radius: ``r``; the norm of a one-pixel shift by default.

    Raises:
        ValueError: a kernel smaller than the stride, a number out of range, or a negative radius; a depth at which a
            moment exceeds double precision, ``s^depth`` above ``1e308``.
    """
    kernel, stride, depth = check_geometry(kernel, stride, depth)
    if depth * np.log2(stride) >= _LARGEST_EXPONENT:
        raise ValueError(
            f"expected stride ** depth below 2 ** {_LARGEST_EXPONENT}, got {stride} ** {depth}: the noise grows beyond "
            "double precision; take fewer layers, or scaling for its growth per layer"
        )
    if radius < 0:
        raise ValueError(f"expected radius >= 0, got {radius}")
    sums = path_sums(kernel, stride, depth)
    layers = range(1, depth + 1)
    # t_k and its shift, as ratios of integers: both grow beyond any float
    t = np.array([stride**k * r / kernel ** (2 * k) for k, r in zip(layers, sums.squares)])
    shift = np.array([stride**k * r / kernel ** (2 * k) for k, r in zip(layers, sums.squared_differences)])
    # The mean of rectified noise adds up along all paths: s^k per layer.
    mean_growth = np.array([float(stride**k) for k in layers])
    # Of relu(g), g standard normal: variance 1/2 - 1/(2 pi), squared mean 1/(2 pi).
    noise = radius**2 * ((1 / 2 - 1 / (2 * np.pi)) * t + mean_growth / (2 * np.pi))
    return InfiniteChain(shift, noise, 2 * t)


def growth_rate(kernel: int, stride: int) -> float:
    """Return ``lambda(q, s)``: how fast ``sum_i n_i^2`` of the path counts grows with depth.

    The largest eigenvalue of the matrix ``A(m - s m')`` over the lags ``|m| <= (q - 1)/(s - 1)``, with
    ``A(d) = q - |d|`` where ``|d| < q``. It is ``q`` where ``q <= s``, ``q^2 / s`` where ``s`` divides ``q``, and
    slightly above that elsewhere; ``q^2`` for stride 1, up to a power of the depth.

    Args:
        kernel: ``q``, at least 1; may be smaller than the stride.
        stride: ``s``, at least 1.
    """
    return _growth(check_integer("kernel", kernel), check_integer("stride", stride))[0]


def _growth(kernel: int, stride: int) -> tuple[float, float]:
    """Return the largest eigenvalue, and ``1 - r(1)/r(0)`` in its eigenvector, which ``D`` tends to."""
    if stride == 1:
        return float(kernel**2), 0.0
    reach = max(1, largest_lag(kernel, stride))
    lags = np.arange(-reach, reach + 1)
    # A(m - s m') of lag m of the layer above and m' of this one; row and column `reach` are lag 0.
    transfer = np.maximum(kernel - np.abs(lags[:, None] - stride * lags[None, :]), 0)
    # No entry is negative (Perron, Frobenius): the largest eigenvalue is real, and so is its eigenvector, all of one
    # sign. The ratio r(1) / r(0) depends neither on that sign nor on the length.
    values, vectors = np.linalg.eig(transfer.astype(float))
    largest = np.argmax(np.real(values))
    r = np.real(vectors[:, largest])
    return float(np.real(values[largest])), float(1 - r[reach + 1] / r[reach])


@dataclass(frozen=True)
class Scaling:
    """Hold how the moments of a constant-filter network change from layer to layer, far from the border.

    Under the law ``"power"`` the six numbers are exponents, ``value ~ k^exponent``; under the other two they are
    factors, ``value ~ factor^k``.
    """

    law: Law
    """What ``D`` does with depth; ``"constant"``: it stays at `limit` for ever, while the moments grow alike."""
    condition: str
    """Which kernels and strides this holds for, and why."""
    limit: float
    """What ``D_k`` tends to."""
    deformation_numerators: float
    """Exponent or factor of ``<|a_(p+1) - a_p|^2>``."""
    noise_numerators: float
    """Of what noise changes, rectified at the input; reached once ``s^k`` is well above ``pi - 1``."""
    denominators: float
    """Of the mean squared distance of two images."""
    deformation: float
    """Of ``D``."""
    noise: float
    """Of ``G``."""
    relative: float
    """Of ``R = D / G``."""

    def curve(
        self, quantity: Quantity, layers: Sequence[int] | Int[np.ndarray, " n"], *, through: tuple[int, float]
    ) -> Float[np.ndarray, " n"]:
        """Predict the dependence on depth, through one known value.

        Args:
            quantity: which of the six numbers.
            layers: layers ``k``, from 1.
            through: a layer, from 1, and the value there.

        Raises:
            ValueError: an unknown quantity, or a layer below 1.
        """
        if quantity not in get_args(Quantity):
            raise ValueError(f"expected a quantity out of {get_args(Quantity)}, got {quantity!r}")
        rate, (layer, value) = getattr(self, quantity), through
        k = np.asarray(layers, float)
        if not (layer >= 1 and (k >= 1).all()):
            raise ValueError(f"expected layers from 1 on, got {layers} through layer {layer}")
        # k^rate or rate^k, up to the constant that makes the curve pass through the given value.
        return value * ((k / layer) ** rate if self.law == "power" else rate ** (k - layer))


def scaling(kernel: int, stride: int) -> Scaling:
    """Predict exponents or factors per layer, with the condition under which they hold.

    Three regimes (Tomasini, Petrini, Cagnetta, Wyart 2022, and what follows from `growth_rate`), with ``q = F / s``:

    - stride 1: power laws, ``D ~ k^-1``, ``G ~ k^1/2``, ``R ~ k^-3/2``; in full ``D_k ~ 3 / (k (F^2 - 1))``. They are
      reached slowly: exponents fitted to a few layers are smaller.
    - ``s`` divides ``F``: each layer multiplies ``D`` by ``lambda(q, s) / (s q^2)``, which is ``1/F`` where ``q <= s``
      and ``1/s^2`` where ``s`` divides ``q``; denominators stay, ``G ~ s^k``.
    - ``s`` does not divide ``F``: the windows overlap unevenly, some pixels count more than their neighbors in every
      layer, and a shift by one pixel stays visible. Numerators and denominators grow by one factor,
      ``s lambda(F, s) / F^2 > 1``, so that ``D`` is constant.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.

    Raises:
        ValueError: a kernel smaller than the stride.
    """
    kernel, stride, _ = check_geometry(kernel, stride)
    if kernel == 1:
        return Scaling("constant", "kernel 1: every layer copies the one below", 1.0, *(1.0,) * 6)
    if stride == 1:
        # r_k(m) tends to a Gaussian in m of variance 2 k (F^2 - 1) / 12, which is k times that of a box and its mirror
        # image. So s^k r_k(0) / F^(2k) ~ k^-1/2 and D_k = 1 - r_k(1) / r_k(0) ~ 3 / (k (F^2 - 1)).
        condition = "stride 1, kernel above 1: asymptotic in depth, by the central limit theorem for path counts"
        return Scaling("power", condition, 0.0, -1.5, 0.0, -0.5, -1.0, 0.5, -1.5)
    if kernel % stride == 0:
        # B_F(z) = B_s(z) B_q(z^s), with B_F(z) = 1 + ... + z^(F-1). Over k layers the B_s multiply to one box of s^k
        # pixels, whose differences are its two ends; the rest are path counts of kernel q, which grow by lambda(q, s).
        q = kernel // stride
        shift = growth_rate(q, stride) / (stride * q**2)
        condition = f"the stride divides the kernel, {kernel} = {q} * {stride}: all pixels count alike"
        return Scaling("geometric", condition, 0.0, shift, float(stride), 1.0, shift, float(stride), shift / stride)
    rate, limit = _growth(kernel, stride)
    # r_k(0) and r_k(1) grow alike, by `rate` per layer: D_k tends to 1 - r(1) / r(0) of the eigenvector.
    common = stride * rate / kernel**2
    condition = (
        f"the stride {stride} does not divide the kernel {kernel}: windows overlap unevenly, and a shift by one pixel "
        "stays visible at any depth"
    )
    return Scaling("constant", condition, limit, common, float(stride), common, 1.0, stride / common, common / stride)
