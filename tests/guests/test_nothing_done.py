"""Models that are measured stay as they were: arrays, modes, random numbers; no traced value is left in them."""

import gc
from types import FunctionType, ModuleType

import jax
import numpy as np
import pytest
import torch
import torchax
from jax.core import Tracer

from stabjax import features, lipschitz, networks, perturb, probe
from tests.guests.small_networks import GUESTS, data

pytestmark = [
    pytest.mark.usefixtures("relaxed_promotion"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype"),
]
KEY = jax.random.key(0)
DEFORMATION = perturb.Translation(0.7)


def read(f, x):
    return features.taps(f, x)


def taken(f, x):
    return features.capture(f)(x)


def compiled(f, x):
    return jax.jit(lambda f, x: features.capture(f)(x))(networks.as_network(f), x)


def probed(f, x):
    return probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=len(x))


def steep(f, x):
    return lipschitz.local(f, x, key=KEY)


LOOKS = {look.__name__: look for look in (read, taken, compiled, probed, steep)}


def traced_in(*roots):
    """Return the traced values that can be reached from objects, but not through functions, types and modules."""
    met, waiting, found = set(), list(roots), []
    while waiting:
        value = waiting.pop()
        if id(value) in met or isinstance(value, type | ModuleType | FunctionType):
            continue
        met.add(id(value))
        if isinstance(value, Tracer):
            found.append(value)
        else:
            waiting += gc.get_referents(value)
    return found


def held(guest):
    """Return copies of all that a guest holds, keys as their numbers."""

    def copied(leaf):
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(copied, guest.state())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", GUESTS)
def test_a_model_is_left_as_it_was(name, training):
    guest, (x, _) = GUESTS[name](), data()
    if training and guest.training is None:
        pytest.skip("has no statistics of the batch at hand")
    guest.train()
    own = np.asarray(guest.outputs(x))
    before = held(guest)
    # Statistics of the batch are those of all rows.
    looks = [look for look in LOOKS.values() if not (training and look is steep)]
    for look in looks:
        look(guest.training() if training else guest.model, x)
        jax.tree.map(np.testing.assert_array_equal, before, held(guest))
        assert not traced_in(guest)
    np.testing.assert_allclose(guest.outputs(x), own, rtol=1e-5, atol=1e-6)
    # It can be trained on, too.
    guest.train()
    assert not np.allclose(guest.outputs(x), own, rtol=1e-3)


def test_a_traced_value_would_be_found():
    guest = GUESTS["Keras"]()

    def leave(x):
        guest.model.layers[1].moving_mean._value = x.mean((0, 1, 2, 3))
        return x

    jax.eval_shape(leave, jax.ShapeDtypeStruct((4, 6, 6, 3, 4), "float32"))
    assert traced_in(guest)


def test_the_environment_of_torchax_holds_no_traced_value():
    features.taps(GUESTS["PyTorch"]().model, data()[0])
    assert not traced_in(torchax.default_env())


def test_numbers_that_a_module_draws_are_the_same_at_every_call():
    """And those of torch go on as if it had not run."""

    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    module, (x, _) = Noisy(), data()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    network = networks.wrap(module)
    first, second = (features.capture(network)(x)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(np.moveaxis(first, 1, -1), x)
    assert torch.equal(torch.rand(3), expected)
