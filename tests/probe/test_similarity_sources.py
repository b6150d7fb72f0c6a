"""Layers compared on images that come in any form: the numbers of an array, however they are grouped."""

import jax
import numpy as np
import pytest

from stabjax import probe
from stabjax.probe import _checkpoint, _comparison
from tests.probe.similarity_cases import FEW, MANY, F, G, compared, of_two
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


@pytest.mark.parametrize("n", [0, 83])
def test_images_that_change_from_pass_to_pass_are_refused(n):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"got others in batch \d: give the same images in the same order"):
        compare_as(lambda: [rng.permutation(np.asarray(FEW))], batch_size=7, memory=3e-6 if n == 0 else 1.0, n=n)
