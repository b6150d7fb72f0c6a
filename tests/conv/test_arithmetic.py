"""Sizes, windows and the three routes, against loops and against XLA."""

import functools
import inspect
import itertools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from stabjax import conv, data

METHODS = ("direct", "unfold", "fft")

# image, kernel, stride, padding, dilation
CASES = {
    "plain": ((2, 7, 6, 3), (3, 3, 3, 4), 1, "same", 1),
    "even kernel": ((2, 7, 6, 3), (4, 2, 3, 4), 1, "same", 1),
    "strided": ((2, 9, 8, 2), (3, 5, 2, 3), (2, 3), "same", 1),
    "dilated": ((2, 9, 10, 2), (3, 2, 2, 3), 1, "same", (2, 3)),
    "valid, strided, dilated": ((1, 11, 10, 2), (2, 3, 2, 3), (3, 2), "valid", (2, 1)),
    "uneven padding": ((2, 5, 4, 2), (3, 3, 2, 1), 1, ((0, 3), (2, 1)), 1),
    "one number per axis": ((2, 5, 4, 2), (4, 3, 2, 1), 1, (2, 0), 1),
    "kernel of the padded size": ((2, 3, 3, 2), (5, 5, 2, 3), 1, 1, 1),
    "stride longer than the kernel": ((2, 9, 9, 1), (2, 2, 1, 2), 4, 0, 1),
    "signal": ((3, 12, 2), (4, 2, 3), 2, "same", 1),
    "volume": ((2, 4, 5, 3, 2), (2, 3, 2, 2, 3), 1, "same", 1),
    "one pixel": ((1, 1, 1, 1), (3, 3, 1, 1), 1, "same", 1),
}


def loop(x, kernel, stride, padding, dilation):
    """The definition, one position at a time."""
    *window, _, out = kernel.shape
    ndim = len(window)
    stride, dilation = (np.broadcast_to(v, ndim) for v in (stride, dilation))
    extra = [d * (k - 1) for d, k in zip(dilation, window)]
    if padding == "same":
        pads = [(e // 2, e - e // 2) for e in extra]
    elif padding == "valid":
        pads = [(0, 0)] * ndim
    else:
        pads = [tuple(np.broadcast_to(p, 2)) for p in (padding if isinstance(padding, tuple) else (padding,) * ndim)]
    padded = np.pad(x, [(0, 0), *pads, (0, 0)])
    positions = [(n - e - 1) // s + 1 for n, e, s in zip(padded.shape[1:-1], extra, stride)]
    y = np.zeros((len(x), *positions, out))
    for p in itertools.product(*map(range, positions)):
        for q in itertools.product(*map(range, window)):
            at = tuple(s * a + d * b for s, a, d, b in zip(stride, p, dilation, q))
            y[(slice(None), *p)] += padded[(slice(None), *at)] @ kernel[q]
    return y


def drawn(name, seed=0):
    shape, kernel, *options = CASES[name]
    rng = np.random.default_rng(seed)
    options = dict(zip(("stride", "padding", "dilation"), options, strict=True))
    return rng.normal(size=shape).astype(np.float32), rng.normal(size=kernel).astype(np.float32), options


@pytest.mark.parametrize("name", CASES)
def test_routes_equal_the_loop(name):
    x, kernel, options = drawn(name)
    size = conv.output_size(x.shape[1:-1], kernel.shape[:-2], **options)
    routes = jax.jit(lambda x, kernel: {m: conv.convolve(x, kernel, method=m, **options) for m in METHODS})
    expected = loop(x, kernel, **options)
    for method, found in routes(x, kernel).items():
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5, err_msg=method)
        assert found.shape[1:-1] == size


@pytest.mark.parametrize("method", METHODS)
def test_routes_equal_lax_with_their_derivatives(method):
    x, kernel, _ = drawn("plain")

    def total(convolve):
        return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), (0, 1)))

    ours = total(lambda x, k: conv.convolve(x, k, method=method))
    theirs = total(
        lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    for a, b in zip(jax.tree.leaves(ours(x, kernel)), jax.tree.leaves(theirs(x, kernel)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_transforms_and_half_precision(method):
    x, kernel, _ = drawn("plain")

    def f(x):
        return conv.convolve(x, kernel, method=method)

    y = np.asarray(f(x))
    np.testing.assert_allclose(jax.jit(f)(x), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(np.stack([x, 2 * x]))[1], 2 * y, rtol=1e-5, atol=1e-5)
    convolve = jax.jit(functools.partial(conv.convolve, method=method))
    half = convolve(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half).astype(np.float32), y, rtol=0.05, atol=0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 8), st.integers(1, 5), st.integers(0, 6), st.integers(0, 6), st.integers(1, 4)
)
def test_sizes_are_counted(size, window, stride, low, high, dilation):
    extent = dilation * (window - 1) + 1
    starts = [s for s in range(0, size + low + high, stride) if s + extent <= size + low + high]
    given = {"stride": stride, "padding": ((low, high),), "dilation": dilation}
    if starts:
        assert conv.output_size(size, window, **given) == (len(starts),)
    else:
        with pytest.raises(ValueError, match="fits into the padded image"):
            conv.output_size(size, window, **given)


def test_sizes_of_the_primer():
    assert conv.output_size((5, 5), 4, padding=2) == (6, 6)
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 5, 5, 1), (4, 4, 1, 1)))
    for method in METHODS:
        y = jax.eval_shape(functools.partial(conv.convolve, padding=2, method=method), x, kernel)
        assert y.shape == (1, 6, 6, 1)
    for window in (1, 3, 5, 7):
        assert conv.output_size((28, 28), window, padding=window // 2) == (28, 28)
        assert conv.output_size((28, 28), window, padding="same") == (28, 28)


@pytest.mark.skipif(not os.environ.get("STABJAX_DATA"), reason="needs MNIST: set STABJAX_DATA to the folder it is in")
def test_edges_of_a_digit():
    """The primer's two numbers: image 7 of the training images, whose pixels are bytes / 256."""
    images, labels = data.load_bytes("mnist", "train")
    assert labels[7] == 3
    image = images[7].astype(np.float32) / 256
    top = conv.edge_kernels()["top"]
    response = np.asarray(conv.convolve(image[None], top))[0, :, :, 0]
    for row, primer in ((3, 2.9727), (7, -2.9570)):
        window = images[7, row : row + 3, 14:17, 0].astype(int)
        by_hand = (window[2].sum() - window[0].sum()) / 256
        assert round(by_hand, 4) == primer
        assert conv.apply_kernel(image, top, (row + 1, 15)) == response[row + 1, 15] == by_hand


def test_unfolded_rows_are_windows():
    x, _, _ = drawn("plain")
    rows = np.asarray(conv.unfold(x, (3, 2), stride=(2, 1)))
    assert rows.shape == (2, 3, 5, 18)
    for row, column in np.ndindex(3, 5):
        window = x[:, 2 * row : 2 * row + 3, column : column + 2]
        np.testing.assert_array_equal(rows[:, row, column], window.reshape(2, -1))


def test_one_position_is_the_convolution_there():
    x, kernel, _ = drawn("even kernel")
    whole = conv.convolve(x, kernel)
    at = jax.jit(conv.apply_kernel)
    for position in ((0, 0), (3, 2), (6, 5)):
        np.testing.assert_allclose(at(x[0], kernel, position), whole[(0, *position)], rtol=1e-5, atol=1e-5)


def test_edges_of_a_square():
    image = np.zeros((1, 12, 12, 1), np.float32)
    image[0, 4:8, 4:8] = 1
    found = {name: np.asarray(conv.convolve(image, k))[0, :, :, 0] for name, k in conv.edge_kernels().items()}
    for name, kernel in conv.edge_kernels().items():
        assert kernel.shape == (3, 3, 1, 1)
        assert kernel.sum() == (0 if name in ("top", "left") else 1)
        assert found[name].max() > 0
    assert found["top"][3, 5] == 3
    assert found["top"][8, 5] == -3
    np.testing.assert_array_equal(found["left"], found["top"].T)
    np.testing.assert_array_equal(found["rising"], found["falling"][:, ::-1])


def test_patches_are_in_reading_order():
    images = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    found = np.asarray(conv.patches(images, 2))
    assert found.shape == (2, 6, 12)
    assert conv.patches(images[:0], 2).shape == (0, 6, 12)
    for k, (row, column) in enumerate(itertools.product(range(2), range(3))):
        cut = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(found[:, k], cut.reshape(2, -1))


WRONG = {
    "fits into the padded image": lambda x, k: conv.convolve(x, np.zeros((9, 9, 3, 4), np.float32), padding=0),
    "expected a kernel (*window, in, out)": lambda x, k: conv.convolve(x, k[:, :, :2]),
    "expected padding >= 0": lambda x, k: conv.convolve(x, k, padding=(1, -1)),
    "expected stride >= 1": lambda x, k: conv.convolve(x, k, stride=0),
    "expected dilation >= 1 for each of 2 axes": lambda x, k: conv.convolve(x, k, dilation=(1, 1, 1)),
    "expected sides of patches that divide": lambda x, k: conv.patches(x, 4),
    "one index per axis": lambda x, k: conv.apply_kernel(x[0], k, (1,)),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    x, kernel, _ = drawn("plain")
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message](x, kernel)


@pytest.mark.parametrize(("option", "value"), [("method", "slow"), ("padding", "SAME")])
def test_unknown_options(option, value):
    x, kernel, _ = drawn("plain")
    with pytest.raises(ValueError, match=f"expected {option}.*got '{value}'"):
        inspect.unwrap(conv.convolve)(x, kernel, **{option: value})


def test_whole_numbers_are_refused():
    x, kernel, _ = drawn("plain")
    with pytest.raises(TypeError):
        conv.convolve(x.astype(np.int32), kernel)
