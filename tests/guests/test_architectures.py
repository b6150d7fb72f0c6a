"""Architectures of public packages come in as they are: their outputs, and every layer of theirs is found."""

from collections import Counter

import jax
import numpy as np
import pytest

from stabjax import features, perturb, probe, receptive
from tests.guests.architectures import ARCHITECTURES
from tests.guests.tabulate import rows

pytestmark = [
    pytest.mark.usefixtures("relaxed_promotion"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype"),
]
KINDS = ("conv", "norm", "dense", "activation", "pool", "attention")
TOLERANCE = 1e-4


def of_images(architecture):
    shape = (2, architecture.side, architecture.side, 3)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def params(names):
    """Return the rows; those that fail by a fault that is known have to fail."""
    return [
        pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=reason)] if reason else [])
        for name in names
        for reason in [ARCHITECTURES[name].fault]
    ]


def deviation(own, found):
    """Return the largest difference of two outputs, as a part of the largest number of the first."""
    own, found = np.asarray(own), np.asarray(found)
    assert own.shape == found.shape
    return float(np.abs(own - found).max() / np.abs(own).max())


def test_there_are_enough_of_every_framework():
    counted = Counter(architecture.framework for architecture in ARCHITECTURES.values())
    assert set(counted) == {"PyTorch", "Keras", "Haiku", "Equinox"}
    assert sum(not architecture.fault for architecture in ARCHITECTURES.values()) >= 30
    assert min(counted.values()) >= 3


@pytest.mark.parametrize("name", params(ARCHITECTURES))
def test_an_architecture_comes_in_as_it_is(name):
    architecture = ARCHITECTURES[name]
    guest, x = architecture.build(), of_images(architecture)
    own, ran = guest.run(x)
    traced = features.trace(guest.network, x)
    # The program as it is interpreted, not the guest's own call.
    outputs = jax.jit(lambda traced, x: traced(x))(traced, x)
    jax.tree.map(lambda one, other: _assert_close(one, other), own, outputs)

    taps = Counter(tap.kind for tap in traced.taps)
    more = {kind: number for kind, (number, _) in architecture.more.items()}
    kinds = [*KINDS, *["residual"] * ("residual" in ran or "residual" in more)]
    assert {kind: taps[kind] - more.get(kind, 0) for kind in kinds} == {kind: ran[kind] for kind in kinds}
    listed = rows().get(name, {"taps": str(len(traced.taps))})
    assert listed["taps"] == str(len(traced.taps))
    assert not traced.hidden
    assert not traced.mixed_rows


def _assert_close(own, found):
    assert deviation(own, found) < TOLERANCE


@pytest.mark.parametrize("name", [name for name, of in ARCHITECTURES.items() if of.extent])
def test_units_see_what_is_published(name):
    architecture = ARCHITECTURES[name]
    tap, side = architecture.extent
    extent = receptive.extent(architecture.build().network, of_images(architecture))[tap]
    assert extent.size == (side, side)
    assert extent.exact


PROBED = [name for name, architecture in ARCHITECTURES.items() if architecture.probed]


@pytest.mark.parametrize("name", PROBED)
def test_an_architecture_is_probed(name):
    """Two images through all versions of all layers: every number that two images can have is finite."""
    architecture = ARCHITECTURES[name]
    x, side = of_images(architecture), architecture.side
    deformation = perturb.Diffeomorphism.of_displacement(1.0, 3, (side, side))
    network = architecture.build().network
    result = probe.stability(network, x, key=jax.random.key(0), deformation=deformation, batch_size=2)
    assert result.valid.all()
    assert np.isfinite(result.relative).all()
    assert (np.asarray(result.deformation) > 0).all()
    names = [tap.name for tap in features.taps(network, x) if tap.kind != "output"]
    assert [name for name in result.layers if name in names] == names
