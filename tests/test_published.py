"""On real CIFAR-10: the numbers of the literature at the input and at initialization.

The published values were measured on 500 random test images of the same JPEG copies, with one draw, three seeds, and
the paper's convention at cutoff 3 and one pixel. Two draws of the noise differ by up to 3 % in R, seeds by more.
"""

import os

import jax
import numpy as np
import pytest
from flax import nnx

import stabjax as sj

pytestmark = [
    pytest.mark.usefixtures("relaxed_promotion"),
    pytest.mark.skipif(not os.environ.get("STABJAX_DATA"), reason="needs CIFAR-10: set STABJAX_DATA to its folder"),
]

PUBLISHED = {
    # name: D, G, R of means at initialization over three seeds
    "LeNet": (0.12, 0.14, 0.87),
    "VGG11": (0.10, 0.26, 0.39),
    "VGG11bn": (0.31, 0.35, 0.89),
}
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    pixels, _ = sj.data.load("cifar10", "test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:500])
    return np.asarray(sj.data.normalize(pixels[chosen], "cifar10"))


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("LeNet", 3),
        *[pytest.param(name, seeds, marks=SLOW) for name, seeds in (("LeNet", 8), ("VGG11", 4), ("VGG11bn", 3))],
    ],
)
def test_stability_at_initialization(name, seeds, images):
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (32, 32), convention="paper")
    results = []
    for seed in range(seeds):
        network = sj.networks.wrap(sj.models.build(name, rngs=nnx.Rngs(seed)), mode="batch_statistics")
        results.append(
            sj.probe.stability(
                network,
                images,
                key=jax.random.key(seed),
                deformation=deformation,
                batch_size=len(images) if name.endswith("bn") else 100,
                select="output",
            )
        )
    at_input = {
        field: np.mean([getattr(r, field)[0] for r in results]) for field in ("deformation", "noise", "relative")
    }
    np.testing.assert_allclose(at_input["deformation"], 0.042, rtol=0.05)
    np.testing.assert_allclose(at_input["noise"], 0.042, rtol=0.05)
    np.testing.assert_allclose(at_input["relative"], 1, rtol=1e-4)
    logs = np.log([[getattr(r, field)[-1] for field in ("deformation", "noise", "relative")] for r in results])
    deviation = logs.std(0, ddof=1)
    error = deviation * np.sqrt(1 / seeds + 1 / 3)
    print(f"{name}: D, G, R = {np.exp(logs.mean(0))}, deviation of their logarithms over seeds {deviation}")
    # The published values are rounded to two digits and come from other draws (3 %).
    assert (np.abs(logs.mean(0) - np.log(PUBLISHED[name])) < 2.5 * error + 0.06).all()
    assert (error < 0.4).all()
