"""Layers that cannot be compared, images that are not finite, numbers of any size, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import features, networks, probe
from stabjax.probe import _layers
from tests.probe.similarity_cases import FEW, MANY, F, G, activations, compare_by, compared, of_two, whole
from tests.similarity.sets import align, grams_of

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


@pytest.mark.parametrize(
    ("images", "measure", "batch_size"),
    [
        (FEW, "cka", 7),
        (MANY, "cka_debiased", 40),
        (MANY, "cca", 40),
        pytest.param(FEW, "cka_debiased", 7, marks=SLOW),
    ],
)
def test_an_image_that_is_not_finite_is_left_out(images, measure, batch_size):
    broken = images.at[3, 2, 3, 0].set(jnp.nan).at[20].set(jnp.inf)
    others = images.at[0, 0, 0, 0].set(jnp.nan)
    found = compared(F, G, broken, others=others, measure=measure, batch_size=batch_size)
    np.testing.assert_array_equal(np.flatnonzero(~found.measured), [0, 3, 20])
    kept = images[np.asarray(found.measured)]
    np.testing.assert_allclose(found.matrix, of_two(F, G, kept, measure=measure), atol=1e-5)
    assert "(3 not finite, left out)" in str(found)
    if measure.startswith("cka"):
        layers = [[activations(f, kept)[k] for k in ("conv", "dense")] for f in (F, G)]
        layers = [[x - x.mean(0) for x in map(np.asarray, side)] for side in layers]
        _, interval = align(*map(grams_of, layers), np.ones(len(kept), bool), debiased=measure != "cka")
        np.testing.assert_allclose(found.interval, interval, atol=1e-5)


def troubled(x):
    """A good layer, a dead one, one that is NaN for some images and one that is NaN for a blank image."""
    x = x[:, :2, :2]
    return {
        "good": jax.nn.relu(x),
        "dead": jax.nn.softplus(0 * x),
        "bad": jnp.tanh(jnp.log(x + 1.5)),
        "blank": jnp.tanh(x / jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True)),
    }


@pytest.mark.parametrize(
    ("images", "measure"),
    [(FEW, "cka"), *(pytest.param(MANY, measure, marks=SLOW) for measure in ("cka_debiased", "pwcca"))],
)
def test_trouble_stays_in_its_layer(images, measure):
    images = images.at[1].set(jnp.nan)
    outputs = [f"output/{name}" for name in ("good", "dead", "bad", "blank")]
    found = probe.similarity(troubled, troubled, images, measure=measure, batch_size=12, select=outputs)
    good = np.array([name in ("output/good", "output/blank") for name in found.layers])
    np.testing.assert_array_equal(found.valid, np.outer(good, good))
    np.testing.assert_array_equal(np.isnan(found.matrix), ~found.valid)
    np.testing.assert_array_equal(np.isnan(found.interval[..., 0]), ~found.valid | (not measure.startswith("cka")))
    lines = {line.split()[1]: line for line in str(found).splitlines()[3:]}
    assert "invalid" in lines["output/dead"]
    assert "invalid" not in lines["output/good"]


def affine(numbers, x):
    return x[:, :2, :2] * numbers[0] + numbers[1]


@SLOW
@pytest.mark.parametrize("strategy", ["grams", "products"])
def test_sizes_and_large_means_cost_no_digits(strategy):
    f, g = (networks.wrap(jax.tree_util.Partial(h)) for h in (lambda x: x[:, :2, :2], lambda x: jnp.square(x[:, 2:])))
    expected = whole(f, g, MANY, measure="cka_debiased", layers=["output"])
    for scale, offset, tolerance in ((1e18, 0.0, 1e-5), (1e-18, 0.0, 1e-5), (1.0, 3e3, 1e-4)):
        h = networks.wrap(jax.tree_util.Partial(affine, jnp.array([scale, offset])))
        found = compare_by(strategy, h, g, MANY, measure="cka_debiased", select="output")
        np.testing.assert_allclose(found.matrix, expected, atol=tolerance)


def test_more_units_than_images_are_no_correlation():
    with pytest.raises(ValueError, match=r"expected fewer units than images for 'cca', got 36 units at 'conv'"):
        compared(F, G, FEW, measure="cca")


@SLOW
def test_hardly_more_units_than_images():
    found = compared(F, G, FEW[:9], measure="cca", units="average")
    # 4 + 4 channels of 9 images are just enough, 4 + 5 are not.
    np.testing.assert_array_equal(found.valid, [[True, False], [False, False]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((9, 5, 5, 3), np.uint8)}, TypeError, "got uint8: divide by 255"),
        ({"images": np.zeros(9)}, ValueError, r"got shape \(9,\)"),
        ({"images": np.zeros((1, 5, 5, 3))}, ValueError, "at least two images"),
        ({"images": np.zeros((3, 5, 5, 3)), "measure": "cka_debiased"}, ValueError, "at least (four|4) images"),
        ({"others": np.zeros((8, 5, 5, 3))}, ValueError, "image by image, got 8 and 9"),
        ({"others": np.zeros((9, 5, 5, 3), int)}, TypeError, "divide by 255"),
        ({"measure": "rbf"}, ValueError, "measure to be one of"),
        ({"units": "positions"}, ValueError, "units to be one of"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"memory": 0}, ValueError, "GiB above 0"),
        ({"memory": "1"}, ValueError, "GiB above 0"),
        ({"confidence": 95}, ValueError, "between 0 and 1"),
        ({"select": "no such layer"}, ValueError, "no such layer"),
        ({"select": "conv"}, ValueError, "at least one operation"),
        ({"f": lambda x: x - jnp.mean(x, 0, keepdims=True)}, ValueError, "sums over its batch"),
        ({"f": 3}, TypeError, "callable"),
        ({"images": iter([np.ones((9, 5, 5, 3), np.float32)])}, ValueError, "read twice, got an iterator"),
        ({"others": (x for x in [np.ones((9, 5, 5, 3), np.float32)])}, ValueError, "read twice, got an iterator"),
        ({"others": lambda: [np.ones((5, 5, 5, 3), np.float32)] * 3}, ValueError, "another number of them"),
        ({"images": list}, ValueError, "yields none"),
        ({"images": lambda: [np.ones((3, 5, 5, 3), np.float32)] * 2, "measure": "cca"}, ValueError, "fewer units than"),
        ({"images_layout": "first"}, ValueError, "images_layout to be one of"),
    ],
)
def test_errors_say_what_to_do(unchecked, change, error, message):
    arguments = {"f": jnp.tanh, "g": jnp.square, "images": np.ones((9, 5, 5, 3), np.float32), "batch_size": 4}
    with pytest.raises(error, match=message):
        probe.similarity(**(arguments | change))


def test_activations_that_cannot_be_compared_are_named():
    tap = features.Tap("odd", "other", (5, 9), jnp.float32, None)
    with pytest.raises(ValueError, match=r"batch of 9 images in front, got shape \(5, 9\) at 'odd'"):
        _layers._units(9, "all", tap, jnp.ones((5, 9)))
    tap = features.Tap("odd", "other", (9, 5, 5), jnp.float32, None)
    with pytest.raises(ValueError, match="know the channels of 'odd'"):
        _layers._units(9, "average", tap, jnp.ones((9, 5, 5)))
