"""Every route equals XLA's convolution, with its derivatives, in every transform."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from stabjax import conv

NHWC = ("NHWC", "HWIO", "NHWC")
NHC = ("NHC", "HIO", "NHC")
NDHWC = ("NDHWC", "DHWIO", "NDHWC")

# name: input, kernel, strides, padding, dilation, groups, layout
CASES = {
    "winograd": ((10, 8, 8, 40), (3, 3, 40, 48), (1, 1), "SAME", None, 1, NHWC),
    "winograd, odd sides": ((9, 9, 7, 40), (3, 3, 40, 48), (1, 1), ((0, 2), (3, 0)), None, 1, NHWC),
    "winograd, valid": ((12, 9, 7, 40), (3, 3, 40, 33), (1, 1), "VALID", None, 1, NHWC),
    "few channels": ((4, 8, 6, 3), (3, 3, 3, 8), (1, 1), "SAME", None, 1, NHWC),
    "few channels, odd sides": ((4, 9, 7, 3), (3, 4, 3, 8), (2, 1), ((1, 0), (2, 3)), (2, 1), 1, NHWC),
    "few channels, valid": ((4, 6, 9, 2), (1, 2, 2, 3), (1, 1), "VALID", None, 1, NHWC),
    "six channels": ((4, 6, 9, 6), (2, 3, 6, 3), (1, 1), "SAME", None, 1, NHWC),
    "few channels, 1-D": ((4, 12, 2), (4, 2, 6), (1,), "SAME", None, 1, NHC),
    "3x3 on 2x2": ((4, 2, 2, 8), (3, 3, 8, 6), (1, 1), "SAME", None, 1, NHWC),
    "3x3 on 1x1": ((4, 1, 1, 8), (3, 3, 8, 6), (1, 1), "SAME", None, 1, NHWC),
    "5x5 on 3x3": ((4, 3, 3, 8), (5, 5, 8, 6), (1, 1), "SAME", None, 1, NHWC),
    "5x5 on 3x3, strided": ((4, 3, 3, 8), (5, 5, 8, 6), (2, 1), "SAME", None, 1, NHWC),
    "1x1": ((4, 8, 8, 5), (1, 1, 5, 6), (1, 1), "SAME", None, 1, NHWC),
    "1x1, strided": ((4, 9, 8, 5), (1, 1, 5, 6), (2, 3), "VALID", None, 1, NHWC),
    "1x1, strided and padded": ((4, 9, 8, 5), (1, 1, 5, 6), (2, 3), ((1, 1), (0, 2)), None, 1, NHWC),
    "strided": ((4, 8, 9, 5), (3, 3, 5, 6), (2, 2), "SAME", None, 1, NHWC),
    "strided and dilated": ((4, 11, 9, 5), (3, 2, 5, 6), (2, 3), ((1, 2), (2, 0)), (2, 3), 1, NHWC),
    "dilated": ((4, 12, 13, 5), (3, 3, 5, 6), (1, 1), "SAME", (2, 1), 1, NHWC),
    "stride longer than the kernel": ((2, 9, 9, 5), (2, 2, 5, 6), (3, 4), "VALID", None, 1, NHWC),
    "more padding than kernel": ((2, 4, 4, 5), (2, 2, 5, 6), (1, 1), ((3, 4), (5, 0)), None, 1, NHWC),
    "depthwise": ((4, 8, 8, 6), (3, 3, 1, 6), (1, 1), "SAME", None, 6, NHWC),
    "one channel": ((4, 9, 8, 1), (3, 3, 1, 1), (2, 2), [(1, 1), (1, 0)], None, 1, NHWC),
    "depthwise, multiplied": ((4, 8, 8, 6), (3, 3, 1, 12), (2, 2), "SAME", None, 6, NHWC),
    "grouped": ((4, 8, 7, 6), (3, 3, 2, 9), (1, 2), "SAME", None, 3, NHWC),
    "grouped, two bundles": ((2, 5, 4, 96), (2, 3, 24, 80), (1, 1), "VALID", None, 4, NHWC),
    "no padding": ((3, 6, 5, 7), (3, 2, 7, 33), (1, 1), "VALID", None, 1, NHWC),
    "grouped, dilated": ((4, 8, 7, 6), (3, 3, 3, 8), (1, 1), "SAME_LOWER", (1, 2), 2, NHWC),
    "1-D": ((4, 12, 5), (4, 5, 6), (2,), "SAME", None, 1, NHC),
    "1-D, dilated": ((4, 12, 5), (2, 5, 6), (3,), ((1, 0),), (2,), 1, NHC),
    "3-D": ((2, 5, 6, 4, 5), (3, 2, 3, 5, 6), (1, 2, 1), "SAME", None, 1, NDHWC),
    "channels first": ((10, 40, 8, 6), (48, 40, 3, 3), (1, 1), "SAME", None, 1, ("NCHW", "OIHW", "NCHW")),
    "default layout": ((4, 5, 8, 6), (7, 5, 2, 3), (1, 1), ((0, 0), (1, 1)), None, 1, None),
    "scrambled layout": ((8, 9, 6, 40), (40, 3, 3, 48), (1, 1), "SAME", None, 1, ("HNWC", "IHWO", "CWNH")),
}
SLOW = pytest.mark.slow
SECOND_ORDER = (
    "depthwise",
    *[
        pytest.param(name, marks=SLOW)
        for name in ("winograd, odd sides", "3x3 on 2x2", "5x5 on 3x3", "1x1", "strided", "grouped")
    ],
)


def functions(name):
    """Ours and XLA's of (x, kernel)."""
    _, _, strides, padding, dilation, groups, layout = CASES[name]
    options = {
        "window_strides": strides,
        "padding": padding,
        "rhs_dilation": dilation,
        "feature_group_count": groups,
        "dimension_numbers": layout,
    }
    return (
        lambda x, w: conv.conv_general_dilated(x, w, **options),
        lambda x, w: lax.conv_general_dilated(x, w, **options),
    )


def arrays(name, dtype, number=2):
    draw = np.random.default_rng(0)
    return [tuple(jax.device_put(draw.normal(size=s).astype(dtype)) for s in CASES[name][:2]) for _ in range(number)]


def assert_close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def first_order(f, primals, tangents):
    y, tangent = jax.jvp(f, primals, tangents)
    _, pull = jax.vjp(f, *primals)
    return y, tangent, pull(jnp.reshape(jnp.cos(jnp.arange(y.size, dtype=y.dtype)), y.shape))


ONE_OF_A_KIND = (
    "winograd, odd sides",
    "few channels, odd sides",
    "3x3 on 2x2",
    "5x5 on 3x3, strided",
    "1x1, strided and padded",
    "strided and dilated",
    "more padding than kernel",
    "one channel",
    "grouped",
    "grouped, two bundles",
    "no padding",
    "1-D, dilated",
    "3-D",
    "scrambled layout",
)


@pytest.mark.parametrize(
    "name", [name if name in ONE_OF_A_KIND else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_equals_xla_in_double_precision(x64, name):
    primals, tangents = arrays(name, jnp.float64)
    results = [jax.jit(lambda p, t, f=f: first_order(f, p, t))(primals, tangents) for f in functions(name)]
    assert_close(*results, 1e-12)


@pytest.mark.parametrize("name", ["winograd", "depthwise"])
def test_equals_xla_in_single_precision(name):
    primals, tangents = arrays(name, jnp.float32)
    results = [jax.jit(lambda p, t, f=f: first_order(f, p, t))(primals, tangents) for f in functions(name)]
    assert_close(*results, 2e-6)


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order(x64, name):
    primals, tangents = arrays(name, jnp.float64)

    def second(f):
        def gradient(x, w):
            return jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))(x, w)

        def slope(x, w):
            return sum(jnp.vdot(g, t) for g, t in zip(gradient(x, w), tangents, strict=True))

        return jax.jit(lambda: (jax.jvp(gradient, primals, tangents)[1], jax.grad(slope, (0, 1))(*primals)))()

    assert_close(*[second(f) for f in functions(name)], 1e-11)


@pytest.mark.parametrize(
    "name", ["3x3 on 2x2", *[pytest.param(n, marks=SLOW) for n in ("winograd", "depthwise", "grouped", "strided")]]
)
def test_vmap_remat_and_scan(x64, name):
    batch = arrays(name, jnp.float64, 3)
    xs, ws = (np.stack([pair[i] for pair in batch]) for i in (0, 1))

    def everything(f):
        def loss(x, w):
            return jnp.sum(jnp.sin(jax.checkpoint(f)(x, w)))

        both = jax.grad(loss, (0, 1))
        scanned = lax.map(lambda pair: both(*pair), (xs, ws))
        return scanned, jax.vmap(both)(xs, ws), jax.vmap(f, (None, 0))(xs[0], ws), jax.vmap(f, (0, None))(xs, ws[0])

    ours, theirs = (jax.jit(lambda f=f: everything(f))() for f in functions(name))
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("name", ["winograd", "strided", "depthwise"])
def test_bfloat16_is_rounded_once(name):
    (primals,) = arrays(name, jnp.bfloat16, 1)
    ours = jax.jit(functions(name)[0])(*primals)
    exact = jax.jit(functions(name)[1])(*(np.asarray(p).astype(np.float32) for p in primals))
    assert ours.dtype == jnp.bfloat16
    # half a unit in the last place of eight bits
    np.testing.assert_allclose(np.asarray(ours, np.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("name", ["winograd", "few channels", "strided", "channels first"])
def test_every_convolution_left_to_xla_is_channels_last(name):
    """In a loop XLA runs any other layout, and its own gradients, as plain loops."""
    (primals,) = arrays(name, jnp.float32, 1)
    f, _ = functions(name)
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), (0, 1))
    text = (
        jax.jit(lambda *p: lax.map(lambda pair: gradient(*pair), p))
        .lower(*(p[None] for p in primals))
        .compile()
        .as_text()
    )
    for line in text.splitlines():
        assert " convolution(" not in line or "dim_labels=b01f_01io->b01f" in line


@pytest.mark.parametrize("name", ["winograd", "few channels", "depthwise"])
def test_keeps_only_its_operands_for_the_backward_pass(name):
    """Patches and tiles are several times the input; they are computed again."""
    (primals,) = arrays(name, jnp.float32, 1)
    f, _ = functions(name)
    y, pull = jax.jit(lambda x, w: jax.vjp(f, x, w))(*primals)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
    out = y.size
    assert kept <= 1.01 * (primals[0].size + primals[1].size) + out


def test_the_gradient_of_the_kernel_alone_leaves_the_input_out():
    (primals,) = arrays("winograd", jnp.float32, 1)
    f, _ = functions("winograd")

    def products(argnums):
        program = jax.jit(jax.grad(lambda x, w: jnp.sum(f(x, w)), argnums)).lower(*primals)
        return program.as_text().count("dot_general")

    assert products(1) < products((0, 1))


def test_an_accelerator_gets_the_plain_convolution():
    (primals,) = arrays("winograd", jnp.float32, 1)
    f, plain = functions("winograd")

    def operations(f):
        text = jax.jit(f).trace(*primals).lower(lowering_platforms=("cuda",)).as_text()
        return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")

    assert operations(f) == operations(plain) == (1, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": ((1, 1), (2, 1)), "lhs_dilation": (2, 1)},
        {"padding": ((-1, 2), (0, 0))},
        {"padding": "SAME", "batch_group_count": 2},
        {"padding": "SAME", "preferred_element_type": jnp.float64},
        {"padding": "SAME", "precision": "highest"},
    ],
)
def test_what_no_route_covers_is_xla(x64, options):
    draw = np.random.default_rng(0)
    x, w = (draw.normal(size=s).astype(np.float32) for s in ((4, 6, 6, 8), (3, 3, 8, 8)))
    options = {"window_strides": (1, 1), "dimension_numbers": NHWC, **options}
    ours, theirs = (f(x, w, **options) for f in (conv.conv_general_dilated, lax.conv_general_dilated))
    assert_close(ours, theirs, 1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (3, 3, 8)])
def test_errors_are_those_of_jax(shape):
    errors = []
    for f in (conv.conv_general_dilated, lax.conv_general_dilated):
        with pytest.raises((TypeError, ValueError)) as caught:
            f(jnp.ones((4, 6, 6, 8)), jnp.ones(shape), (1, 1), "SAME", dimension_numbers=NHWC)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_takes_the_place_of_the_convolution_in_flax(relaxed_promotion, key):
    x = jax.random.normal(key, (5, 8, 8, 40))
    plain, ours = (
        nnx.Conv(40, 48, (3, 3), conv_general_dilated=f, rngs=nnx.Rngs(0))
        for f in (lax.conv_general_dilated, conv.conv_general_dilated)
    )
    assert_close(ours(x), plain(x), 2e-6)
    plain, ours = (
        nn.Conv(48, (3, 3), conv_general_dilated=f) for f in (lax.conv_general_dilated, conv.conv_general_dilated)
    )
    variables = plain.init(key, x)
    assert_close(ours.apply(variables, x), plain.apply(variables, x), 2e-6)


def test_routes_that_are_slow_to_compile_can_be_left_out():
    x, kernel = jnp.ones((1, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
    convolve = jax.jit(conv.convolve)

    def products():
        return convolve.lower(x, kernel).as_text().count("dot_general")

    assert products() == 16
    with conv.quick_to_compile(True):
        assert products() == 0
        quick = convolve(x, kernel)
        with conv.quick_to_compile(False):
            assert products() == 16
        with conv.quick_to_compile(False, overrides=False):
            assert products() == 0
    assert products() == 16
    np.testing.assert_allclose(quick, convolve(x, kernel), rtol=1e-5)
