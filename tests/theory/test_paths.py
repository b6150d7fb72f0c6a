"""Path counts by recursion, by multi-indices and by counting."""

import itertools

import numpy as np
import pytest

from stabjax import theory

PAIRS = [(kernel, stride) for stride in range(1, 5) for kernel in range(stride, 10)]


def test_known_path_counts():
    rows = ["111", "1121211", "112132313231211", "1121323143525341435253413231211"]
    for depth, row in enumerate(rows, start=1):
        counts = theory.path_counts(3, 2, depth)
        assert counts.dtype == np.int64
        assert counts.tolist() == [int(digit) for digit in row]
        assert theory.receptive_field(3, 2, depth) == len(row)
    assert [theory.receptive_field(3, 2, depth) for depth in range(1, 5)] == [3, 7, 15, 31]
    assert [theory.path_counts(3, 2, depth).max() for depth in range(1, 4)] == [1, 2, 3]
    assert theory.path_counts(3, 2, 0).tolist() == [1]


@pytest.mark.parametrize(
    ("kernel", "stride", "squares"),
    [
        (3, 2, [2, 6, 26, 118]),
        (8, 2, [2, 8, 56, 432]),
        (5, 2, [2, 10, 110, 1350]),
        (4, 2, [2, 4, 8, 16]),
        (2, 2, [2, 2, 2, 2]),
        (3, 3, [2, 2, 2, 2]),
    ],
)
def test_known_sums_of_squared_differences(kernel, stride, squares):
    assert [np.sum(theory.path_differences(kernel, stride, depth) ** 2) for depth in range(1, 5)] == squares
    assert list(theory.path_sums(kernel, stride, 4).squared_differences) == squares


def test_known_squared_differences_per_pixel():
    per_pixel = [np.mean(theory.path_differences(3, 2, k + 1) ** 2) * (2**k * 4 / (2**k * 4 - 1)) for k in range(3)]
    np.testing.assert_allclose(per_pixel, [2 / 3, 6 / 7, 26 / 15], rtol=1e-12)
    scaled = [value * (2 / 3) ** (2 * k) for k, value in enumerate(per_pixel)]
    np.testing.assert_allclose(scaled, [0.6666667, 0.3809524, 0.3423868], atol=5e-8)


@pytest.mark.parametrize(("kernel", "stride"), PAIRS)
def test_paths_by_recursion_by_multi_indices_and_by_counting(kernel, stride):
    sums = theory.path_sums(kernel, stride, 4)
    for depth in range(1, 5):
        counts, differences = (f(kernel, stride, depth) for f in (theory.path_counts, theory.path_differences))
        assert len(counts) == theory.receptive_field(kernel, stride, depth)
        np.testing.assert_array_equal(np.diff(counts, prepend=0, append=0), differences)
        assert sums.squares[depth - 1] == np.sum(counts**2)
        assert sums.squared_differences[depth - 1] == np.sum(differences**2)
    ends = [sum(j * stride**k for k, j in enumerate(path)) for path in itertools.product(range(kernel), repeat=3)]
    np.testing.assert_array_equal(theory.path_counts(kernel, stride, 3), np.bincount(ends))


def test_large_counts_are_exact_or_refused():
    polynomial = [1]
    for _ in range(41):  # 3^41 paths, more than 64 bits hold, but no pixel has as many
        polynomial = [sum(polynomial[max(i - 2, 0) : i + 1]) for i in range(len(polynomial) + 2)]
    assert theory.path_counts(3, 1, 41).tolist() == polynomial
    assert theory.path_differences(3, 1, 41).tolist() == [b - a for a, b in itertools.pairwise([0, *polynomial, 0])]
    with pytest.raises(OverflowError, match=r"does not fit 64 bits; take path_sums"):
        theory.path_counts(3, 1, 45)
    with pytest.raises(OverflowError, match=r"does not fit 64 bits"):
        theory.path_differences(3, 1, 60)
    with pytest.raises(ValueError, match=r"2\d* pixels, too many to write out; take fewer layers"):
        theory.path_counts(3, 2, 40)
    assert theory.receptive_field(3, 2, 100) == 2**101 - 1
    assert theory.path_sums(3, 2, 100).squares[-1] > 4.5**99
    # n is symmetric: the squares of depth k are the middle count of depth 2k
    assert theory.path_sums(3, 1, 20).squares[-1] == theory.path_counts(3, 1, 40)[40]
