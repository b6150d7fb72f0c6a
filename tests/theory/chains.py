"""A plain constant-filter network, and noise and statistics for it."""

import math

import numpy as np


def run(x, kernel, stride, depth, *, bias=0.0):
    """A plain network on signals ``(n, size)``: the pre-activations of every layer, ``(n, units)``."""
    padding = (kernel - 1) // 2
    for _ in range(depth):
        x = np.pad(np.maximum(x, 0) if _ else x, ((0, 0), (padding, padding)))
        seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=1)[:, ::stride]
        x = stride / kernel * np.sum(seen, axis=2) + bias
        yield x


def published_size(kernel, stride, depth):
    return kernel + (kernel - 1) * sum(stride**k for k in range(1, depth + 1)) + 1


def sphere(n, size, radius, *, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n, size))
    return radius * noise / np.linalg.norm(noise, axis=1, keepdims=True)


def mean_and_error(samples):
    return np.mean(samples), np.std(samples) / math.sqrt(len(samples))
