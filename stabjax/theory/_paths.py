"""Paths from the pixels to a unit: their numbers, in exact integers.

In a chain of convolutions with kernel ``F`` and stride ``s``, all weights one, a unit of layer ``k`` answers pixel
``i`` of its receptive field by ``n_i``, the number of ways ``i = sum_{l<k} J_l s^l`` with ``J_l`` in ``{0 .. F-1}``.
They are the coefficients of ``prod_{l<k} B(z^(s^l))`` with ``B(z) = 1 + z + ... + z^(F-1)`` (Tomasini, Petrini,
Cagnetta, Wyart 2022).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from stabjax.theory._checks import check_geometry

_LARGEST_FIELD = 2**26
"""Receptive fields above this many pixels are not written out."""


def receptive_field(kernel: int, stride: int, depth: int) -> int:
    """Count the pixels that a unit sees through ``depth`` layers: ``1 + (F - 1) (1 + s + ... + s^(depth-1))``.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 0.

    Raises:
        ValueError: a kernel smaller than the stride, or a number out of range.
    """
    kernel, stride, depth = check_geometry(kernel, stride, depth, shallowest=0)
    return 1 + (kernel - 1) * sum(stride**layer for layer in range(depth))


def path_counts(kernel: int, stride: int, depth: int) -> Int[np.ndarray, " field"]:
    """Count the paths from every pixel of the receptive field to the unit: its response to it, all weights one.

    By the recursion ``n_i^(l+1) = sum_{j<F} n^l_(i - j s^l)``.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 0.

    Returns:
        ``(receptive_field(kernel, stride, depth),)``, int64.

    Raises:
        ValueError: a kernel smaller than the stride, or a receptive field too large to be written out.
        OverflowError: a count that does not fit 64 bits.
    """
    kernel, stride, depth = check_geometry(kernel, stride, depth, shallowest=0)
    counts = np.ones(1, _exact_dtype(kernel, stride, depth))
    for layer in range(depth):
        # Multiplication by B(z^step): F copies of the counts, each a step further to the right.
        step = stride**layer
        wider = np.zeros(len(counts) + (kernel - 1) * step, counts.dtype)
        for j in range(kernel):
            wider[j * step : j * step + len(counts)] += counts
        counts = wider
    return _as_int64(counts)


def path_differences(kernel: int, stride: int, depth: int) -> Int[np.ndarray, " differences"]:
    """Count ``n_i - n_(i-1)``, what a shift by one pixel changes, by multi-indices.

    With ``J`` in ``{0 .. F-1}^(depth-1)`` and the exponents ``l = 1 .. depth-1``::

        n_i - n_(i-1) = #{J: i - sum_l J_l s^l = 0} - #{J: i - sum_l J_l s^l = F}

    since the box of the first layer telescopes. The multi-indices are counted as the coefficients of
    ``prod_l (1 - z^(F s^l)) / (1 - z^(s^l))``, multiplied and divided as power series: no step in common with
    `path_counts`.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1.

    Returns:
        ``(receptive_field + 1,)``, int64; ``n`` is zero outside the receptive field.

    Raises:
        ValueError: a kernel smaller than the stride, or a receptive field too large to be written out.
        OverflowError: a difference that does not fit 64 bits.
    """
    kernel, stride, depth = check_geometry(kernel, stride, depth)
    length = receptive_field(kernel, stride, depth) + 1
    series = np.zeros(length, _exact_dtype(kernel, stride, depth))
    series[0] = 1
    for layer in range(1, depth):
        # Times 1 + z^step + ... + z^((F - 1) step) = (1 - z^(F step)) / (1 - z^step): one subtraction, one running sum.
        # Coefficients only depend on lower ones, and the quotient is a polynomial that fits the length: nothing is lost
        # by cutting the series there.
        step = stride**layer
        series = _running_sum(_subtract_shifted(series, kernel * step), step)
    # The first layer: B(z), times the 1 - z that takes differences of neighbors, is 1 - z^F.
    return _as_int64(_subtract_shifted(series, kernel))


def _subtract_shifted(series: np.ndarray, shift: int) -> np.ndarray:
    """Multiply a power series by ``1 - z^shift``."""
    shifted = np.zeros_like(series)
    shifted[shift:] = series[: max(len(series) - shift, 0)]
    return series - shifted


def _running_sum(series: np.ndarray, step: int) -> np.ndarray:
    """Divide a power series by ``1 - z^step``: running sums over every ``step``-th entry."""
    # In rows of `step` entries, those of one column are `step` apart.
    rows = -(-len(series) // step)
    padded = np.concatenate([series, np.zeros(rows * step - len(series), series.dtype)])
    return np.cumsum(padded.reshape(rows, step), axis=0).reshape(-1)[: len(series)]


def _exact_dtype(kernel: int, stride: int, depth: int) -> type:
    """Return a type that no count can overflow: int64, or Python integers where there are 2^63 paths and more."""
    field = receptive_field(kernel, stride, depth)
    if field > _LARGEST_FIELD:
        raise ValueError(
            f"the receptive field of kernel {kernel}, stride {stride}, depth {depth} has {field} pixels, too many to "
            "write out; take fewer layers, or path_sums, which needs none of them"
        )
    # The counts add up to all F^depth paths, so none of them, and no difference of two, is larger.
    return np.int64 if kernel**depth < 2**63 else object


def _as_int64(counts: np.ndarray) -> Int[np.ndarray, " n"]:
    """Convert exact counts; raise `OverflowError` if one does not fit."""
    largest = max(abs(counts.min()), abs(counts.max()))
    if largest >= 2**63:
        raise OverflowError(
            f"the largest number of paths, {largest}, does not fit 64 bits; take path_sums, or less depth"
        )
    return counts.astype(np.int64)


@dataclass(frozen=True)
class PathSums:
    """Hold sums over the receptive field, in exact integers, for depths 1, 2, ..."""

    squares: tuple[int, ...]
    """``sum_i n_i^2`` at every depth."""
    squared_differences: tuple[int, ...]
    """``sum_i (n_i - n_(i-1))^2`` at every depth, ``n`` zero outside the receptive field."""


def path_sums(kernel: int, stride: int, depth: int) -> PathSums:
    """Sum squares of `path_counts` and `path_differences` at depths ``1 .. depth``, without writing these out.

    From the autocorrelation ``r_k(m) = sum_i n_i n_(i+m)``, whose generating function is a product over layers too::

        r_(k+1)(m) = sum_m' A(m - s m') r_k(m'),     A(d) = F - |d| where |d| < F

    so that a few lags go over into each other: ``|m| <= (F - 1)/(s - 1)``.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1; hundreds are quick.

    Raises:
        ValueError: a kernel smaller than the stride, or a number out of range.
    """
    kernel, stride, depth = check_geometry(kernel, stride, depth)
    # sum_i (n_i - n_(i-1))^2 = 2 (r(0) - r(1)): the sums of n_i^2 and of n_(i-1)^2 are both r(0), that of their product
    # is r(1).
    r = list(_autocorrelations(kernel, stride, depth))
    return PathSums(
        squares=tuple(lags[0] for lags in r),
        squared_differences=tuple(2 * (lags[0] - lags[1]) for lags in r),
    )


def _autocorrelations(kernel: int, stride: int, depth: int) -> Iterator[list[int]]:
    """Yield ``r_k(0), r_k(1), ...`` for ``k = 1 .. depth``; zero beyond the list."""
    lags = [1]
    for layer in range(1, depth + 1):
        # All lags that lags 0 and 1 of the layers above depend on. With stride 1 lags do not shrink: the whole of r is
        # kept.
        reach = layer * (kernel - 1) if stride == 1 else largest_lag(kernel, stride)
        # r_k is even in m, so only m >= 0 is kept; A(m - s other) is positive for the lags `other` of the inner range.
        lags = [
            sum(
                (kernel - abs(m - stride * other)) * lags[abs(other)]
                # |m - s other| <= F - 1: from ceil((m - F + 1) / s) to floor((m + F - 1) / s).
                for other in range(-(-(m - kernel + 1) // stride), (m + kernel - 1) // stride + 1)
                if abs(other) < len(lags)
            )
            for m in range(max(1, reach) + 1)
        ]
        yield lags


def largest_lag(kernel: int, stride: int) -> int:
    """Return the largest lag ``m`` that ever comes back to small ones: ``m' <= (m + F - 1)/s`` stays within it."""
    # m = (m + F - 1) / s is solved by m = (F - 1) / (s - 1): lags up to there lead to lags up to there.
    return (kernel - 1) // (stride - 1)
