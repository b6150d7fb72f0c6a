"""Parts that are cut out, looked up and overwritten at places known and unknown, in the array and beyond it."""

import jax.numpy as jnp
import pytest
from jax import lax

from stabjax import receptive
from tests.receptive.pixels import compare

SIDES = (6, 6)
SHAPE = (1, *SIDES, 2)


def from_start(x, start):
    return lax.dynamic_slice(x, (0, start, 0, 0), (len(x), 2, 6, 2))


def later_rows(x):
    """Rows from the one before the first on, as a scan counts them."""
    return lax.scan(lambda k, _: (k + 2, from_start(x, k)), -1, None, length=3)[1].sum(0)


KNOWN = {  # of each group all at once, one below the other
    "cut": [lambda x: from_start(x, -8), lambda x: from_start(x, 11), lambda x: from_start(x, -2), later_rows],
    "written": [
        lambda x: lax.dynamic_update_slice(x, 2 * x[:, 3:5], (0, -8, 0, 0)),
    ],
}


@pytest.mark.parametrize("group", KNOWN)
def test_known_places_against_pixels(group):
    def network(x):
        return jnp.concatenate([part(x) for part in KNOWN[group]], 1)

    assert receptive.extent(network, SHAPE)["output"].exact
    compare(network, SIDES, 2)


def test_a_start_that_does_not_move_is_not_seen():
    """Of an axis that is kept whole, any start is moved to 0."""

    def cut(x):
        return lax.dynamic_slice(x[:, :, :3], (0, 1, x[0, 5, 5, 0].astype(int), 0), (len(x), 2, 3, 2))

    def updated(x):
        start = x[0, 5, 5, 0].astype(int)
        return lax.dynamic_update_slice(x, x[:, 3:5], (0, 1, start, start))

    found = receptive.extent(cut, SHAPE)["output"]
    assert (found.size, found.start, found.exact) == ((1, 1), (1, 0), True)
    assert receptive.extent(updated, SHAPE)["output"].exact
