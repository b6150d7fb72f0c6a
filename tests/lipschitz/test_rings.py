"""Circular padding whose stride does not divide the size: norms, against the operator written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import lipschitz
from stabjax.lipschitz import _indexed_conv
from tests.lipschitz.helpers import operator

RINGS = {
    "one window": ((3, 3, 2, 3), 4, {"stride": 3}),
    "signal": ((5, 2, 3), 7, {"stride": 3}),
    "one axis fits": ((3, 3, 2, 2), (4, 5), {"stride": 2}),
    "dilated": ((3, 3, 2, 2), 5, {"stride": 2, "dilation": 3}),
    "groups": ((3, 3, 2, 6), 5, {"stride": 2, "groups": 3}),
    "wraps around": ((5, 5, 2, 2), 3, {"stride": 2}),
    "volume": ((2, 3, 2, 2, 2), (3, 4, 5), {"stride": 2}),
    "stride beyond the size": ((3, 3, 3, 3), 2, {"stride": 3}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in ("one window", "groups"))) for n in RINGS]
)
def test_strides_that_do_not_divide_a_ring(name):
    shape, size, options = RINGS[name]
    kernel = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    true = np.linalg.norm(operator(kernel, size, padding="circular", **options), 2)
    found = lipschitz.conv(kernel, size, padding="circular", **options)
    assert (found.kind, found.certified) == ("upper", True)
    assert true <= float(found.value) <= 1.05 * true


@pytest.mark.slow
def test_the_norm_of_a_ring_can_be_differentiated(x64):
    """Its gradient is the outer product of the singular vectors, read back into the window."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)))
    bound = lambda k: lipschitz.conv(k, 5, stride=2, padding="circular", steps=3).value  # noqa: E731
    step = jnp.asarray(np.random.default_rng(1).normal(size=kernel.shape))
    slope = (bound(kernel + 1e-6 * step) - bound(kernel - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(bound)(kernel) * step), slope, rtol=1e-4)


def test_rings_too_large_to_be_written_out(monkeypatch):
    """The norm without stride."""
    kernel = np.random.default_rng(2).normal(size=(3, 3, 2, 1)).astype(np.float32)
    monkeypatch.setattr(_indexed_conv, "MAX_WORK", 0)
    _indexed_conv.indexed_conv_norm.clear_cache()
    found = lipschitz.conv(kernel, 9, stride=2, padding="circular").value
    np.testing.assert_allclose(found, lipschitz.conv(kernel, 9, padding="circular").value, rtol=1e-4)
    _indexed_conv.indexed_conv_norm.clear_cache()


def test_both_axes_of_a_thousand_entries_are_written_out():
    ring = _indexed_conv.ring_axis(32, 3, 3, 1)
    assert _indexed_conv._axes_to_unroll((ring, ring), (8, 8), 1, 6) == (0, 1)
