"""Random subsets of image sets."""

import numpy as np
from jaxtyping import Int64

__all__ = ["subset"]


def subset(total: int, count: int, *, seed: int) -> Int64[np.ndarray, " count"]:
    """Draw positions of images at random, without repetition, in ascending order.

    Sets that are read from folders stand sorted by class, so that the first few images are of one class alone. The draw
    is NumPy's: the same on every device, whatever is drawn besides. Of two subsets with the same seed and total, the
    larger one contains the smaller one.

    Args:
        total: number of images there are.
        count: number of images to take; all of them if there are fewer.
        seed: of the draw.

    Returns:
        Positions ``(min(count, total),)`` from 0 to ``total - 1``, to index images and labels with.

    Raises:
        ValueError: a negative number of images.
    """
    if min(total, count) < 0:
        raise ValueError(f"expected numbers of images of at least 0, got total {total} and count {count}")
    return np.sort(draw(total, count, seed=seed))


def draw(total: int, count: int, *, seed: int) -> Int64[np.ndarray, " count"]:
    """Draw the positions of `subset`, in the order of the draw."""
    return np.random.default_rng(seed).permutation(total)[:count]
