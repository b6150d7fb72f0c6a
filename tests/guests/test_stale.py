"""Networks that are measured, trained, measured, trained and measured: every time the numbers are those of now."""

from itertools import pairwise

import jax
import numpy as np
import pytest

from stabjax import features, lipschitz, networks, perturb, probe, receptive
from stabjax.lipschitz._jacobian import _local
from stabjax.probe._source_units import read_batch
from stabjax.probe._windows import pass_window_quickly
from stabjax.receptive._effective import _mean_gradient
from tests.guests.small_networks import GUESTS, data, reference

pytestmark = [
    pytest.mark.usefixtures("relaxed_promotion"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype"),
]
KEY = jax.random.key(0)
DEFORMATION = perturb.Translation(0.7)
COMPILED = (pass_window_quickly, read_batch, _local, _mean_gradient)


def stable(f, x):
    result = probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=4, select="output")
    return result.deformation, result.noise, result.pair_distance


def similar(f, x):
    fixed = networks.wrap(lambda x: x.mean((1, 2)))
    return probe.similarity(f, fixed, x, select=["output"], batch_size=4).matrix


def taken(f, x):
    return features.capture(f, select="dense")(x)


def measured(f, x):
    """Ask a network everything that reads its values."""
    return jax.tree.leaves(
        {
            "stability": stable(f, x),
            "similarity": similar(f, x),
            "activations": taken(f, x)[0],
            "bound": lipschitz.network(f, x).value,
            "slope": lipschitz.local(f, x, key=KEY).value,
            "effective": receptive.effective(f, x, tap=features.taps(f, x)[0].name),
        }
    )


def compiled():
    return [function._cache_size() for function in COMPILED]


@pytest.mark.parametrize("name", GUESTS)
def test_a_network_is_measured_as_it_is_now(name):
    guest, (x, _) = GUESTS[name](), data()
    seen, programs = [], []
    for _ in range(3):
        found, expected = measured(guest.model, x), measured(reference(guest), x)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
        seen.append(found)
        programs.append(compiled())
        guest.train()
    for before, after in pairwise(seen):
        # Not a single number is that of the step before.
        assert not any(np.allclose(one, other, rtol=1e-5, atol=0) for one, other in zip(before, after, strict=True))
    # The program of a network is the same after a step, and is not compiled again.
    assert programs[0] == programs[1] == programs[2]
