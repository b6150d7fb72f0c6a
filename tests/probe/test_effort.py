"""How hard the compiler works: less for few rows, once for what networks share, and the numbers are the same."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import probe
from stabjax.probe import _effort
from tests.probe.test_stability import DEFORMATION, make_images, network

KEY = jax.random.key(1)
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


@pytest.fixture(scope="module")
def images():
    return np.asarray(make_images(20))


def test_programs_compiled_with_less_effort_give_the_same_numbers(images, monkeypatch):
    """The program for a few images, for some more, and for many."""
    found = []
    for few, quick in ((2**30, 2**30), (0, 2**30), (0, 0)):
        monkeypatch.setattr(_effort, "FEW_PIXELS", few)
        monkeypatch.setattr(_effort, "SOME_PIXELS", quick)
        found.append(probe.stability(network(), images, key=KEY, deformation=DEFORMATION))
    for other in found[1:]:
        for name in ("relative", "deformation", "deformation_numerators", "pair_distance", "relative_interval"):
            np.testing.assert_allclose(getattr(other, name), getattr(found[0], name), rtol=2e-5, atol=1e-6)


def test_a_second_network_compiles_its_pass_alone(images):
    """What does not depend on the network is shared, also by networks with other numbers of layers."""
    programs = []
    jax.monitoring.register_event_duration_secs_listener(listener := partial(_note_compilation, programs))
    try:
        for layers in (1, 3):
            kernels = [jnp.eye(3) + k for k in range(layers)]
            del programs[:]
            probe.stability(jax.tree_util.Partial(_deep, kernels), images, key=KEY, deformation=DEFORMATION)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert [name for name in programs if "pass_window" in name], programs
    # Beside the pass, the pair distances of so many layers.
    assert len(programs) <= 2, programs


def _note_compilation(programs, event, seconds, **facts):
    name = str(facts.get("fun_name"))
    # A program of JAX's own puts arrays of a new shape on the device.
    if event.endswith("backend_compile_duration") and name != "jit(stage)":
        programs.append(name)


def _deep(kernels, x):
    for kernel in kernels:
        x = jax.nn.relu(x @ kernel)
    return jnp.mean(x, axis=(1, 2))
