"""Parts that are cut out, looked up and overwritten at places known and unknown, in the array and beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from stabjax import receptive
from tests.receptive.pixels import compare, shape_of

SIDES = (6, 6)
SHAPE = (1, *SIDES, 2)
ROWS = jnp.array([0, 3, 100, -2, -40])


def taken(mode):
    return lambda x: jnp.take(x, ROWS, axis=1, mode=mode)


def windows(mode):
    """Windows of 2 x 3 that begin inside, at the end and outside."""
    numbers = lax.GatherDimensionNumbers((0, 2, 3, 4), (), (1, 2))
    starts = jnp.array([[0, 0], [5, 1], [3, 2], [-1, 2]])

    def looked_up(x):
        found = lax.gather(x, starts, numbers, (len(x), 2, 3, 2), mode=mode, fill_value=0)
        return found.reshape(len(x), 8, 3, 2)

    return looked_up


def from_start(x, start):
    return lax.dynamic_slice(x, (0, start, 0, 0), (len(x), 2, 6, 2))


def put(x, row, mode, *, adds=False):
    at = x.at[:, row]
    return at.add(x[:, 0], mode=mode) if adds else at.set(x[:, 0], mode=mode)


def later_rows(x):
    """Rows from the one before the first on, as a scan counts them."""
    return lax.scan(lambda k, _: (k + 2, from_start(x, k)), -1, None, length=3)[1].sum(0)


def few_neighbors(x):
    """The pixels around which a window of ones, moved by a negative padding, holds more than three."""
    count = lax.reduce_window(jnp.ones(SIDES), 0.0, lax.add, (3, 3), (1, 1), ((-1, 0), (1, 1)))
    return jnp.where((count > 6)[None, :, :, None], x[:, :3], 0.0)


def spread_window(x):
    """The same, of ones that are spread apart and seen through a window with holes."""
    options = {"base_dilation": (2, 1), "window_dilation": (1, 2)}
    count = lax.reduce_window(jnp.ones(SIDES), 0.0, lax.add, (3, 2), (2, 1), ((-2, 1), (0, 2)), **options)
    return jnp.where((count > 3)[None, :, :, None], x[:, : count.shape[0]], 0.0)


KNOWN = {  # of each group all at once, one below the other
    "cut": [lambda x: from_start(x, -8), lambda x: from_start(x, 11), lambda x: from_start(x, -2), later_rows],
    "looked up": [taken("fill"), taken("clip"), lambda x: jnp.take(x[:, :1], jnp.array([0, 1]), axis=1)],
    "windows": [windows("fill"), windows("promise_in_bounds")],
    "written": [
        lambda x: lax.dynamic_update_slice(x, 2 * x[:, 3:5], (0, -8, 0, 0)),
        lambda x: put(x, 7, "clip"),
        lambda x: put(x, 7, "drop"),
        lambda x: put(x, -9, "clip", adds=True),
        lambda x: x.at[:, jnp.array([1, 7])].set(0.0),
        lambda x: x.at[...].set(2 * x),
    ],
    "counted": [few_neighbors, spread_window],
}


@pytest.mark.parametrize("group", KNOWN)
def test_known_places_against_pixels(group):
    def network(x):
        return jnp.concatenate([part(x) for part in KNOWN[group]], 1)

    assert receptive.extent(network, SHAPE)["output"].exact
    compare(network, SIDES, 2)


def test_a_row_beyond_the_table_sees_nothing():
    found = {mode: receptive.extent(taken(mode), SHAPE)["output"].box((2, 0)) for mode in ("fill", "clip")}
    assert found == {"fill": ((0, 0), (0, 0)), "clip": ((5, 6), (0, 1))}


@pytest.mark.parametrize("joined", [jnp.add, lambda a, b: jnp.concatenate([a, b], -1)])
def test_rows_between_rows_are_not_seen_along_the_columns_either(joined):
    """Every other row is empty, and what it meets lies in other columns."""

    def network(x):
        spread = lax.pad(x, 0.0, ((0, 0, 0), (0, -5, 1), (0, 0, 0), (0, 0, 0)))
        return joined(spread, x[:, :, ::-1])

    found = receptive.extent(network, SHAPE)["output"]
    assert (found.size, found.exact) == ((3, 6), False)


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


def test_rows_that_the_image_chooses_are_not_exact():
    """Row k is chosen by one pixel alone, which the boxes do not tell."""

    def chosen(x):
        table, rows = x[:, 2, 2], x[0, :, 0, 0].astype(int)
        return jnp.take(table, rows, axis=1, mode="clip")

    found = receptive.extent(chosen, SHAPE)["output"]
    assert (found.size, found.start, found.exact) == ((6, 3), (0, 0), False)


def test_sorted_by_numbers():
    """Keys that are numbers put every row in one place; keys of the image bring the rows along."""
    numbers = jnp.broadcast_to(jnp.arange(6)[::-1, None, None], SHAPE[1:])[None]
    fixed = receptive.extent(lambda x: lax.sort((numbers, x), dimension=1, num_keys=1)[1], SHAPE)
    assert not fixed["output"].exact
    first = lambda x: lax.sort((x, x[:, :, ::-1]), dimension=1, num_keys=2)[0]  # noqa: E731
    keys = receptive.extent(first, SHAPE)["output"]
    assert (keys.size, keys.exact) == ((6, 1), True)
    assert np.argwhere(receptive.constant_weight(first, SHAPE, tap="output", unit=(0, 1)))[:, 1].tolist() == [1] * 6


def test_paths_to_a_row_beyond_the_table():
    """Where it was promised to lie inside: moved there if it is read, and left out if it is written, as XLA does."""
    mode = "promise_in_bounds"
    rows = lambda x: x.at[:, jnp.array([0, 3, 100])].get(mode=mode)  # noqa: E731
    read = receptive.constant_weight(rows, SHAPE, tap="output", unit=(2, 1))
    written = receptive.constant_weight(lambda x: put(x, 7, mode), SHAPE, tap="output", unit=(5, 1))
    assert np.argwhere(read).tolist() == np.argwhere(written).tolist() == [[5, 1]]


def halves(x):
    """Each half of the batch meets its own half of the channels."""
    kernel, order = jnp.ones((3, 3, 2, 4)), ("NHWC", "HWIO", "NHWC")
    both = jnp.concatenate([x, x[:, ::-1]], 0)
    return lax.conv_general_dilated(both, kernel, (1, 1), "SAME", dimension_numbers=order, batch_group_count=2)


def test_paths_of_groups_of_a_batch():
    counts = receptive.constant_weight(halves, (2, *SIDES, 2), tap="output", unit=(1, 3))
    expected = np.zeros(SIDES)
    expected[[0, 1, 2, 3, 4, 5], 2:5] = 0.5
    np.testing.assert_allclose(counts, expected)


def test_boxes_of_groups_of_a_batch():
    """Windows of rows in the batch: what each channel sees of them is not told apart."""

    def apart(x):
        rows = jnp.moveaxis(x.reshape(len(x), 2, 3, 6, 2), 1, 0).reshape(-1, 3, 6, 2)
        kernel, order = jnp.ones((1, 1, 2, 4)), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(rows, kernel, (1, 1), "SAME", dimension_numbers=order, batch_group_count=2)

    found = receptive.extent(lambda x: apart(x)[..., :2], shape_of(2, *SIDES, 2))["output"]
    assert (found.size, found.exact) == ((4, 1), False)
    assert jax.eval_shape(apart, shape_of(2, *SIDES, 2)).shape == (2, 3, 6, 4)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jnp.tile(x, (1, 0, 1, 1)),
        lambda x: jnp.concatenate([x[:, :0], x[:, 6:]], 1),
        lambda x: x[:, :0].sum(1),
        lambda x: jnp.sort(x[:, :0], 1),
        lambda x: lax.pad(x[:, :0], 0.0, ((0, 0, 0), (2, 1, 0), (0, 0, 0), (0, 0, 0))),
        lambda x: x.at[:, jnp.array([], int)].get(),
    ],
)
def test_of_no_entries_nothing_is_seen(f):
    assert receptive.extent(f, SHAPE)["output"].size[0] == 0
