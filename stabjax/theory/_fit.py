"""Exponents and factors fitted to measured or exact values by least squares, with their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from stabjax._types import AnyArray

FitLaw = Literal["geometric", "power"]


@dataclass(frozen=True)
class Fit:
    """Hold a straight line through the logarithms of values."""

    value: float
    """The factor per layer, or the exponent; NaN where a value is not positive."""
    error: float
    """Its standard error from the scatter about the line; NaN with two values, which leave none."""
    amplitude: float
    """The fitted value at layer 0 (geometric) or 1 (power)."""
    law: FitLaw
    """Which of the two."""

    def curve(self, layers: Sequence[int] | Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the fitted values at these layers, ``(n,)``."""
        k = np.asarray(layers, float)
        return self.amplitude * (k**self.value if self.law == "power" else self.value**k)


def fit(
    values: Sequence[float] | Float[AnyArray, " n"],
    *,
    law: FitLaw = "geometric",
    layers: Sequence[int] | Int[AnyArray, " n"] | None = None,
) -> Fit:
    """Fit ``values ~ factor^k`` or ``values ~ k^exponent``.

    The error is that of the slope, ``sqrt(sum residuals^2 / (n - 2) / sum (u - <u>)^2)`` with ``u = k`` or ``log k``;
    of a factor, that times the factor. It knows the scatter about the law, not whether the law holds: what bends has
    its residuals in a row, and its fitted number depends on the layers chosen.

    Args:
        values: positive numbers, ``(n,)``, at least two.
        law: ``"geometric"`` or ``"power"``.
        layers: the layer of each value, from 1; ``1 .. n`` by default.

    Raises:
        ValueError: an unknown law, fewer than two values, or layers that do not belong to them.
    """
    y = np.asarray(values, np.float64)
    k = np.arange(1.0, len(y) + 1) if layers is None else np.asarray(layers, np.float64)
    if law not in get_args(FitLaw):
        raise ValueError(f"expected a law out of {get_args(FitLaw)}, got {law!r}")
    if len(y) < 2 or k.shape != y.shape:
        raise ValueError(f"expected at least two values and as many layers, got {len(y)} and {k.size}")
    if k.min() < 1 or len(np.unique(k)) < len(k):
        raise ValueError(f"expected distinct layers from 1, got {k.tolist()}")
    # Values without a logarithm: no line can be fitted.
    if not (y > 0).all() or not np.isfinite(y).all():
        return Fit(np.nan, np.nan, np.nan, law)
    u, v = np.log(k) if law == "power" else k, np.log(y)
    # Ordinary least squares of v on u: slope = cov(u, v) / var(u).
    spread = np.sum((u - u.mean()) ** 2)
    slope = np.sum((u - u.mean()) * (v - v.mean())) / spread
    intercept = v.mean() - slope * u.mean()
    residuals = v - intercept - slope * u
    error = np.sqrt(np.sum(residuals**2) / (len(y) - 2) / spread) if len(y) > 2 else np.nan
    # d exp(slope) = exp(slope) d slope
    factor = np.exp(slope)
    value, error = (slope, error) if law == "power" else (factor, factor * error)
    return Fit(float(value), float(error), float(np.exp(intercept)), law)
