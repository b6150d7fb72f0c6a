"""Norms of layers against singular values of the operator written out entry by entry, and what keeps layers inside."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import lipschitz

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "conv_spectral_norm.npz"))


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def operator(kernel, size, *, stride=1, padding="zero", dilation=1, groups=1):
    """The matrix of a convolution, ``(pixels * inputs, positions * outputs)``, by its definition."""
    *window, inputs, outputs = kernel.shape
    ndim = len(window)
    size, stride, dilation = (np.broadcast_to(v, ndim) for v in (size, stride, dilation))
    reach = (np.array(window) - 1) * dilation
    if isinstance(padding, str):
        low = 0 * reach if padding == "valid" else reach // 2
        high = 0 * reach if padding == "valid" else reach - low
    else:
        low, high = np.broadcast_to(padding, (ndim, 2)).T
    positions = (size + low + high - reach - 1) // stride + 1
    matrix = np.zeros((*size, inputs * groups, *positions, outputs))
    for p in np.ndindex(*positions):
        for q in np.ndindex(*window):
            at = np.array(p) * stride + np.array(q) * dilation - low
            at = at % size if padding == "circular" else at
            if np.any((at < 0) | (at >= size)):
                continue
            for g in range(groups):
                ins, outs = (np.arange(g * n // groups, (g + 1) * n // groups) for n in (inputs * groups, outputs))
                matrix[(*at, ins[:, None], *p, outs[None])] += kernel[q][:, outs].astype(float)
    return matrix.reshape(np.prod(size) * inputs * groups, -1)


def norm(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[0]


GEOMETRIES = {
    "plain": ((3, 3, 2, 3), 5, {}),
    "circular": ((3, 3, 3, 2), (4, 5), {"padding": "circular"}),
    "even window": ((2, 4, 2, 2), (5, 6), {}),
    "valid": ((3, 2, 2, 2), 6, {"padding": "valid"}),
    "full": ((3, 3, 2, 2), 4, {"padding": 2}),
    "more padding than window": ((2, 2, 1, 2), 3, {"padding": ((3, 2), (0, 4))}),
    "stride": ((3, 3, 2, 2), 7, {"stride": 2}),
    "circular stride": ((3, 3, 2, 3), (4, 6), {"padding": "circular", "stride": 2}),
    "circular stride that does not fit": ((3, 3, 2, 2), 5, {"padding": "circular", "stride": 2}),
    "stride of two sizes": ((5, 3, 1, 2), (9, 6), {"stride": (3, 2), "padding": ((1, 2), (1, 0))}),
    "patches": ((2, 2, 2, 3), 6, {"stride": 2, "padding": "valid"}),
    "gaps": ((2, 2, 2, 2), 6, {"stride": 3, "padding": "valid"}),
    "dilated": ((3, 3, 2, 2), 7, {"dilation": 2}),
    "dilated, strided": ((3, 2, 2, 2), 8, {"dilation": (2, 3), "stride": 2}),
    "groups": ((3, 3, 2, 6), 5, {"groups": 3}),
    "depthwise": ((3, 3, 1, 4), 5, {"groups": 4, "stride": 2}),
    "window larger than image": ((5, 5, 2, 2), 2, {}),
    "window wraps around": ((5, 4, 2, 2), 3, {"padding": "circular"}),
    "one pixel": ((3, 3, 2, 2), 1, {}),
    "pointwise": ((1, 1, 3, 4), 3, {}),
    "signal": ((4, 2, 3), 9, {"stride": 2}),
    "volume": ((2, 3, 2, 2, 2), (3, 4, 2), {"stride": (1, 2, 1)}),
    "sees nothing": ((1, 2, 2), 3, {"padding": 5, "stride": 10}),
}
EXACT = {"circular", "circular stride", "patches", "gaps", "window wraps around", "pointwise", "one pixel"}
SMALL = {"window larger than image"}
"""The torus is much larger than the image."""
LONG = {"full", "gaps", "valid", "even window", "dilated", "groups", "signal", "one pixel"}
"""Cases whose parts others cover too."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in GEOMETRIES])
def test_convolutions_written_out(name):
    shape, size, options = GEOMETRIES[name]
    kernel = normal(1, *shape)
    true = norm(operator(kernel, size, **options))
    above = lipschitz.conv(kernel, size, steps=2, **options)
    assert (above.kind, above.certified) == ("upper", True)
    assert above.value.dtype == jnp.float32
    assert true <= float(above.value) <= (2 if name in SMALL else 1.4) * true
    if name in EXACT:
        exact = lipschitz.conv(kernel, size, method="exact", **options)
        assert (exact.kind, exact.certified) == ("exact", False)
        np.testing.assert_allclose(exact.value, true, rtol=2e-6)
    else:
        with pytest.raises(ValueError, match="'gram' bounds it from above and 'power' from below"):
            lipschitz.conv(kernel, size, method="exact", **options)


POWER = {"circular", "window wraps around", "depthwise", "volume", "dilated, strided", "more padding than window"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in POWER)) for n in GEOMETRIES])
def test_power_iteration_on_convolutions(name):
    shape, size, options = GEOMETRIES[name]
    kernel = normal(1, *shape)
    true = norm(operator(kernel, size, **options))
    below = lipschitz.conv(kernel, size, method="power", **options)
    assert (below.kind, below.certified) == ("lower", False)
    assert 0.97 * true <= float(below.value) <= (1 + 1e-5) * true
