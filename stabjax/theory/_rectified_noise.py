"""Numerators of ``G`` in closed form for noise that is rectified: means over the noise and over all lit pixels.

The noise ``eta`` is uniform on the sphere of radius ``r`` in ``R^N``. It meets a ReLU either at the input or in the
first layer; later ReLUs find nothing negative, so the rest of the network is linear.
"""

import math

import numpy as np
from jaxtyping import Float

from stabjax.theory._moments import check_sized_geometry, responses_by_layer


def rectified_noise_numerators(
    kernel: int, stride: int, depth: int, size: int, *, radius: float | int = 2**0.5
) -> Float[np.ndarray, " depth"]:
    """Compute the numerators of ``G`` of every layer for the noisy image ``relu(x + eta)``.

    With the response ``a_i`` of the layer to pixel ``i``, ``p`` the lit pixel, ``N`` the size::

        E|A (relu(x + eta) - x)|^2
            = (r^2/N) [ (1/2 - 1/(2 pi)) sum_{i != p} |a_i|^2 + (1/(2 pi)) |sum_{i != p} a_i|^2 + |a_p|^2 ]

    averaged over ``p``. The second term grows like ``s^k``: rectified noise has a mean, which piles up. The second
    moments on the sphere are exact; left out is the event ``eta_p < -1``, which is rare where ``r^2 << N``. The biases
    of the layers, if not negative, change nothing.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1.
        size: pixels of the signal.
        radius: ``r``; the norm of a one-pixel shift by default.

    Returns:
        ``(depth,)``, float64.

    Raises:
        ValueError: a kernel smaller than the stride, a layer without units, or a negative radius.
    """
    sizes = check_sized_geometry(kernel, stride, depth, size)
    if radius < 0:
        raise ValueError(f"expected radius >= 0, got {radius}")
    # Of relu(eta_i) of dark pixels, over r^2 / N: E relu^2 = 1/2 and E relu_i relu_j = 1 / (2 pi), i != j.
    independent, common = 1 / 2 - 1 / (2 * math.pi), 1 / (2 * math.pi)
    numerators = []
    for layer in responses_by_layer(*sizes):
        lit = np.sum(layer.weights**2) / size  # <|a_p|^2>
        total = np.sum(np.sum(layer.weights, axis=1) ** 2)  # |sum_i a_i|^2
        others = total * (1 - 2 / size) + lit  # <|sum_{i != p} a_i|^2>
        numerators.append(independent * (size - 1) * lit + common * others + lit)
    return radius**2 / size * np.array(numerators)
