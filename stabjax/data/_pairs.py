"""Pairs by number, and random permutations by place: exact integers on the host, below 2^63 and without tables."""

import numpy as np
from jaxtyping import Integer, UInt64

__all__ = ["pair", "pair_number"]

ROUNDS = 8
"""Rounds of the permutation; one random word of 64 bits each."""


def pair(number: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, "n 2"]:
    """Return the pairs ``(i, j)``, ``i < j``, of these numbers ``j (j - 1) / 2 + i``; the inverse of `pair_number`."""
    number = np.asarray(number, np.int64)
    # The root of a number near 2^63 is good to one unit in double precision, and then corrected in integers.
    j = np.floor(0.5 + np.sqrt(0.25 + 2 * number.astype(np.float64))).astype(np.int64)
    j -= _triangle(j) > number
    j += _triangle(j + 1) <= number
    return np.stack([number - _triangle(j), j], axis=-1)


def pair_number(pairs: Integer[np.ndarray, "n 2"]) -> Integer[np.ndarray, " n"]:
    """Return the number ``j (j - 1) / 2 + i`` of unordered pairs of two different non-negative integers ``i < j``."""
    low, high = np.min(pairs, axis=-1).astype(np.int64), np.max(pairs, axis=-1).astype(np.int64)
    return _triangle(high) + low


def _triangle(j: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    """Return ``j (j - 1) / 2`` without leaving 63 bits: the even one of the two factors is halved first."""
    return np.where(j % 2 == 0, j // 2 * (j - 1), (j - 1) // 2 * j)


def shuffled(
    places: UInt64[np.ndarray, " n"], total: int, round_keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " n"]:
    """Return the values at some places of a random permutation of ``range(total)``.

    A Feistel network permutes the next power of four; values beyond ``total`` are sent through it again until they
    fall below, which keeps it a permutation.
    """
    half = np.uint64(max(1, ((total - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)

    values = _feistel(places, half, mask, round_keys)
    # Followed from a place below `total`, the cycle of the permutation comes back below it, so this ends; two places
    # never meet, since each value has one predecessor.
    while np.any(outside := values >= np.uint64(total)):
        values[outside] = _feistel(values[outside], half, mask, round_keys)
    return values


def _feistel(
    x: UInt64[np.ndarray, " n"], half: np.uint64, mask: np.uint64, round_keys: UInt64[np.ndarray, " rounds"]
) -> UInt64[np.ndarray, " n"]:
    """Permute the numbers of ``2 half`` bits by one round for each key; ``mask`` has the lower ``half`` bits set."""
    left, right = x >> half, x & mask
    for round_key in round_keys:
        # A round can be undone whatever the hash: the new `left` is the old `right`, which was hashed.
        left, right = right, left ^ (_mixed(right ^ round_key) & mask)
    return (left << half) | right


def _mixed(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Hash 64 bits (the finalizer of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
