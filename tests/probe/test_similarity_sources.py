"""Layers compared on images that come in any form: the numbers of an array, however they are grouped."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import networks, probe
from stabjax.probe import _checkpoint, _comparison
from tests.probe.similarity_cases import FEW, MANY, F, G, compared, of_two, whole
from tests.probe.test_run import Killed, dying

pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it
CASES = [(FEW, "cka_debiased", 1.0), (FEW, "cka", 3e-6), (MANY, "cka_debiased", 1.0), (MANY, "cca", 1.0)]
BY = pytest.mark.parametrize(("images", "measure", "memory"), CASES, ids=["one tile", "tiles", "products", "canonical"])


class Counted:
    """Batches that can be had again and again, and how often they were."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def parts(images, *lengths):
    return np.split(np.asarray(images), np.cumsum(lengths))


def close(found, expected):
    np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-5)
    np.testing.assert_allclose(found.interval, expected.interval, atol=1e-5)
    np.testing.assert_array_equal(found.measured, expected.measured)


def compare_as(images, **options):
    """Compare streams as an array of so many images is: by products, or by Gram matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_comparison, "MOST_UNITS", options.pop("n"))
        return compared(F, G, images, **options)


@BY
def test_any_form_gives_the_numbers_of_an_array(images, measure, memory, tmp_path):
    broken = np.asarray(images).copy()
    broken[3] = np.nan
    options = {"measure": measure, "batch_size": 7, "memory": memory}
    expected = compared(F, G, images, **options)
    np.testing.assert_allclose(expected.matrix, of_two(F, G, images, measure=measure), atol=1e-5)
    np.save(tmp_path / "images.npy", np.asarray(images))
    close(compared(F, G, np.load(tmp_path / "images.npy", mmap_mode="r"), **options), expected)
    n = len(images)
    close(compare_as(Counted(parts(images, 1, 9, 4)), n=n, **options), expected)
    close(compare_as(lambda: ((x, np.zeros(len(x))) for x in parts(images, 20)), n=n, **options), expected)
    found = compare_as(lambda: parts(broken, 11), others=Counted(parts(images, 2, 3)), n=n, **options)
    close(found, compared(F, G, broken, others=images, **options))


@pytest.mark.parametrize(
    ("units", "held", "passes"), [(83, 7, 2), (0, 1000, 1), (0, 15, 1 + 3)], ids=["products", "one tile", "tiles"]
)
def test_how_often_images_pass(monkeypatch, units, held, passes):
    """Of 30 images in batches of 7, all five batches are held, or two: three tiles, and a pass for the mean."""
    monkeypatch.setattr(_comparison, "MOST_UNITS", units)
    one_image = 2 * 4 * (36 + 5)
    loader = Counted(parts(FEW, 10))
    memory = max(held * one_image, 5 * 82**2 if units else 0) / 2**30
    found = compared(F, G, loader, batch_size=7, memory=memory)
    np.testing.assert_allclose(found.matrix, of_two(F, G, FEW), atol=1e-5)
    assert loader.passes == passes


def test_channels_first_and_bytes_are_normalized():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6, 3), np.uint8)
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    floats = ((pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(deviation)).astype(np.float32)
    expected = compared(F, G, floats, batch_size=7)
    options = {"normalize": (mean, deviation), "images_layout": "channels_first"}
    close(compared(F, G, lambda: [np.moveaxis(pixels, -1, 1)], batch_size=7, **options), expected)
    jitted = jax.jit(lambda x: compared(F, G, x, batch_size=7, **options))(np.moveaxis(pixels, -1, 1))
    close(jitted, expected)


@BY
def test_a_comparison_that_was_killed_goes_on(images, measure, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0.0)
    cut = parts(images, *[len(images) // 6] * 5)
    options = {"measure": measure, "batch_size": 7, "memory": memory}
    expected = compared(F, G, images, **options)
    options["n"] = len(images)
    passes = 0

    def interrupted(at):
        """Make a function that gives images, and ends in this pass after some batches."""
        nonlocal passes
        passes = 0

        def images():
            nonlocal passes
            passes += 1
            return dying(cut, at[1]) if passes == at[0] else iter(cut)

        return images

    # In the first pass, in the second one (where there is one), with a step forward each time, and once with none.
    for at in ((1, 2), (1, 4), (2, 3), (1, 3), (2, 5)):
        try:
            found = compare_as(interrupted(at), path=tmp_path / "run", **options)
        except Killed:
            continue
        close(found, expected)
    close(compare_as(lambda: cut, path=tmp_path / "run", **options), expected)
    with pytest.raises(ValueError, match="got others in batch 0: give the same images"):
        compare_as(lambda: [*cut[1:], cut[0]], path=tmp_path / "run", **options)
    with pytest.raises(ValueError, match=r"comparison.*there"):
        compare_as(lambda: cut, path=tmp_path / "run", units="average", **options)


def test_one_network_on_clean_and_deformed_streams():
    (deformed,), _ = probe.perturbed(FEW, key=jax.random.key(1), deformation=lambda key, x: x[::-1])
    expected = compared(F, F, FEW, others=deformed, batch_size=7)
    close(compared(F, F, lambda: parts(FEW, 4), others=lambda: parts(deformed, 9, 9), batch_size=7), expected)


CHANGES = {
    "shuffled": lambda x, k: np.random.default_rng(k).permutation(x),
    "shorter": lambda x, k: x[: 30 if k == 0 else 20],
    "longer": lambda x, k: x[: 20 if k == 0 else 30],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n", [0, 83])
def test_images_that_change_from_pass_to_pass_are_refused(n, change):
    passes = itertools.count()

    def changing():
        x = CHANGES[change](np.asarray(FEW), next(passes))
        return np.split(x, range(5, len(x), 5))

    options = {"batch_size": 5, "memory": 3e-6 if n == 0 else 1.0, "n": n}
    with pytest.raises(ValueError, match=r"got (others in batch \d|4 batches, and 6 before): give the same images"):
        compare_as(changing, **options)
    # What the second network sees is compared, too.
    passes = itertools.count()
    if change == "shuffled":
        with pytest.raises(ValueError, match=r"got others in batch \d: give the same images"):
            compare_as(lambda: parts(FEW, 5), others=changing, **options)


@pytest.mark.parametrize("memory", [1e-9, 1.0])
def test_a_folder_of_fewer_or_more_images_is_refused(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0.0)
    options = {"path": tmp_path / "run", "batch_size": 5, "memory": memory}
    compared(F, G, lambda: [FEW[:20]], **options)
    for n in (30, 10):
        with pytest.raises(ValueError, match=r"got (others in batch|2 batches, and 4 before)"):
            compared(F, G, lambda n=n: [FEW[:n]], **options)
    with pytest.raises(ValueError, match=r"measure: 'cka' there, 'cka_debiased' here"):
        compared(F, G, lambda: [FEW[:20]], measure="cka_debiased", **options)


@pytest.mark.parametrize("form", [pytest.param("stream", marks=pytest.mark.slow), "array"])
def test_an_array_beside_a_stream(form):
    both = np.asarray(MANY), lambda: parts(MANY[::-1], 50)
    images, others = both if form == "array" else both[::-1]
    expected = compared(F, G, MANY[:: 1 if form == "array" else -1], others=MANY[:: -1 if form == "array" else 1])
    close(compared(F, G, images, others=others, batch_size=50), expected)


def large(scale, x):
    return jax.nn.relu(x[:, :2, :2] - 50) * scale


def test_a_first_batch_that_says_nothing_costs_no_digits():
    """No image of it is finite; or a layer is zero there, and so large later that sums overflow: then that is said."""
    f = networks.wrap(jax.tree_util.Partial(large, jnp.float32(1e12)))
    broken, dead = np.asarray(FEW).copy() + 60, np.asarray(FEW).copy()
    broken[:10] = np.nan
    dead[10:] += 60
    expected = whole(f, G, broken[10:], layers=None)[-1:, -1:]
    for call in (probe.similarity, jax.jit(probe.similarity, static_argnames=("batch_size", "select"))):
        found = call(f, G, broken, batch_size=10, select="output")
        np.testing.assert_allclose(found.matrix, expected, atol=1e-5)
        found = call(f, G, dead, batch_size=10, select="output")
        assert not found.valid.any()
        assert np.isnan(found.matrix).all()
    with_one = jax.jit(lambda x: probe.similarity(f, G, x, batch_size=1, select="output").matrix)(broken[10:])
    np.testing.assert_allclose(with_one, expected, atol=1e-5)


def test_too_few_finite_images_are_no_similarity():
    broken = np.asarray(FEW).copy()
    broken[3:] = np.nan
    assert not compared(F, G, broken, measure="cka_debiased", batch_size=7).valid.any()


def test_gradients():
    """Of Gram matrices that fit into memory: against differences."""
    x = np.asarray(FEW[:8])
    step = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)

    @jax.jit
    def similarity(t):
        return probe.similarity(F, G, x + t * step, batch_size=4, select="conv").matrix[0, 0]

    slope = (similarity(1e-2) - similarity(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.jit(jax.grad(similarity))(0.0), slope, rtol=1e-2, atol=1e-4)
