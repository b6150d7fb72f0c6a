"""The scale-detection task: published labels, pairs by number, draws without replacement, local translations."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given

from stabjax import data
from stabjax.data._pairs import ROUNDS, shuffled
from tests import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "scale_detection.npz"


@pytest.mark.parametrize("convert", [np.asarray, lambda p: jnp.asarray(p, jnp.int32)], ids=["numpy", "jax"])
@pytest.mark.parametrize(("norm", "border"), list(itertools.product(["L2", "Linf"], ["open", "periodic"])))
def test_labels_are_the_published_ones(norm, border, convert):
    golden = np.load(GOLDEN)
    task = data.ScaleTask.plane(size=10, xi=5, gap=2, norm=norm, periodic=border == "periodic")
    labels = data.scale_labels(convert(golden["points"]), task)
    np.testing.assert_array_equal(labels, golden[f"label_{norm}_{border}_xi5_gap2"])


def test_quadrants_are_the_published_ones():
    golden = np.load(GOLDEN)
    labels = data.scale_labels(golden["points"], data.ScaleTask.quadrants(size=10))
    np.testing.assert_array_equal(labels == 1, golden["same_quadrant"])
    assert set(np.unique(labels)) == {-1, 1}


def numbers(points, task):
    return data.pair_number(np.ravel_multi_index(np.moveaxis(np.asarray(points), -1, 0), task.shape))


def every_pair(task):
    return np.stack(np.unravel_index(data.pair(np.arange(task.pairs)), task.shape), -1)


@pytest.mark.parametrize("norm", ["L2", "Linf"])
@pytest.mark.parametrize("periodic", [False, True])
def test_labels_over_all_pairs_of_a_small_plane(norm, periodic):
    d, xi, gap = 5, 1.6, 0.6
    task = data.ScaleTask.plane(size=d, xi=xi, gap=gap, norm=norm, periodic=periodic)
    expected = {}
    pixels = list(itertools.product(range(d), repeat=2))
    for p, q in itertools.combinations(pixels, 2):
        images = itertools.product((-d, 0, d), repeat=2) if periodic else [(0, 0)]
        steps = [(p[0] - q[0] + s, p[1] - q[1] + t) for s, t in images]
        sizes = [max(abs(s), abs(t)) if norm == "Linf" else (s * s + t * t) ** 0.5 for s, t in steps]
        distance = min(sizes)
        expected[p, q] = -1 if distance < xi - gap / 2 else 1 if distance >= xi + gap / 2 else 0
    points = every_pair(task)
    labels = data.scale_labels(points, task)
    found = {tuple(sorted((tuple(p), tuple(q)))): label for (p, q), label in zip(points.tolist(), labels.tolist())}
    assert found == expected
    assert {-1, 1} <= set(expected.values())
    assert norm == "Linf" or 0 in expected.values()


def test_thresholds_are_met_exactly():
    # 3-4-5: distance 5 is "at least 5" and not "below 5", in both kinds of array.
    points = np.array([[[0, 0], [3, 4]], [[0, 0], [4, 4]], [[0, 0], [3, 3]]])
    task = data.ScaleTask.plane(size=10, xi=5, gap=0)
    for p in (points, jnp.asarray(points)):
        np.testing.assert_array_equal(data.scale_labels(p, task), [1, 1, -1])


def test_labels_on_a_line():
    points = np.array([[[0], [31]], [[0], [32]], [[1], [127]], [[31], [32]], [[64], [95]], [[0], [96]]])
    np.testing.assert_array_equal(data.scale_labels(points, data.ScaleTask.line()), [1, -1, 1, 1, 1, -1])
    np.testing.assert_array_equal(data.scale_labels(points, data.ScaleTask.segments()), [1, -1, -1, -1, 1, -1])
    gap = data.ScaleTask.line(gap=1)
    np.testing.assert_array_equal(data.scale_labels(points, gap), [0, 0, 1, 1, 0, 0])


@given(st.integers(0, 2**63 - 2**31 - 1))
@example(2**63 - 2**31 - 1)
def test_pair_is_a_bijection_of_large_numbers(number):
    i, j = data.pair(np.array([number]))[0].tolist()
    assert 0 <= i < j
    assert j * (j - 1) // 2 + i == number
    assert data.pair_number(np.array([[j, i]]))[0] == number


@given(st.integers(2, 2**32 - 1))
@example(2**32 - 1)
def test_pair_at_the_first_and_last_of_a_row(j):
    first = j * (j - 1) // 2
    assert data.pair(np.array([first - 1, first, first + j - 1])).tolist() == [[j - 2, j - 1], [0, j], [j - 1, j]]


def test_pair_lists_all_pairs():
    pairs = data.pair(np.arange(21 * 20 // 2))
    assert sorted(map(tuple, pairs.tolist())) == list(itertools.combinations(range(21), 2))


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_all_pairs_are_drawn_once(key, size):
    task = data.ScaleTask((size, size), near=1.5, far=1.5)
    drawn = data.scale_detection(key, task.pairs, task=task, balanced=False)
    np.testing.assert_array_equal(np.sort(numbers(drawn.points, task)), np.arange(task.pairs))


def test_the_order_is_uniform():
    # The first two of 12 places: 132 ordered pairs of values over 3,000 random keys. Chi squared, 131 degrees.
    words = np.random.default_rng(0).integers(2**64, size=(3000, ROUNDS), dtype=np.uint64)
    first = np.array([shuffled(np.arange(2, dtype=np.uint64), 12, w) for w in words]).astype(int)
    assert np.all(first[:, 0] != first[:, 1])
    counts = np.bincount(first @ [12, 1], minlength=144).reshape(12, 12)[~np.eye(12, dtype=bool)]
    expected = 3000 / 132
    assert np.sum((counts - expected) ** 2) / expected < 185  # 0.1 % quantile


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 16, 17, 100, 4097])
def test_the_order_is_a_permutation(total):
    words = np.random.default_rng(total).integers(2**64, size=ROUNDS, dtype=np.uint64)
    values = shuffled(np.arange(total, dtype=np.uint64), total, words)
    np.testing.assert_array_equal(np.sort(values), np.arange(total))


TASKS = [
    data.ScaleTask.line(),
    data.ScaleTask.segments(),
    data.ScaleTask.plane(),
    data.ScaleTask.plane(xi=8, norm="Linf", periodic=True),
    data.ScaleTask.quadrants(),
    data.ScaleTask.quadrants(size=9),
]


@pytest.mark.parametrize("task", TASKS, ids=["line", "segments", "plane", "Linf", "quadrants", "odd"])
def test_draw(key, task):
    train = data.scale_detection(key, 256, task=task)
    test = data.scale_detection(key, 301, task=task, skip=256)
    both = data.scale_detection(key, 557, task=task)
    for part in (train, test):
        n = len(part.labels)
        assert part.images.shape == (n, *task.shape, 1)
        assert part.images.dtype == jnp.float32
        assert part.labels.dtype == part.points.dtype == jnp.int32
        assert abs(int(part.labels.sum())) <= 1
        np.testing.assert_array_equal(part.labels, data.scale_labels(part.points, task))
        lit = jax.vmap(data.lit_points)(part.images)
        np.testing.assert_array_equal(numbers(lit, task), numbers(part.points, task))
        np.testing.assert_allclose(part.images.sum((1, *range(2, part.images.ndim))), 2 * task.value, rtol=1e-6)
    np.testing.assert_array_equal(jnp.concatenate([train.images, test.images]), both.images)
    assert len(np.unique(numbers(both.points, task))) == 557


def test_published_values():
    assert data.ScaleTask.line().value == 8
    assert data.ScaleTask.plane().value == 392
    assert (data.ScaleTask.plane().near, data.ScaleTask.plane().far) == (13, 15)
    assert data.ScaleTask.plane().pairs == 306_936


def test_unbalanced_draws_follow_the_population(key):
    task = data.ScaleTask.quadrants()
    drawn = data.scale_detection(key, 4000, task=task, balanced=False)
    share = 4 * (196 * 195) / (784 * 783)
    assert abs(float((drawn.labels == 1).mean()) - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_same_key_same_set_other_key_other_set(key):
    one, two = data.scale_detection(key, 50), data.scale_detection(key, 50)
    np.testing.assert_array_equal(one.points, two.points)
    other = data.scale_detection(jax.random.key(1), 50)
    assert not np.array_equal(one.points, other.points)


def test_a_large_image(key):
    task = data.ScaleTask.plane(size=1000, xi=14)
    assert task.pairs > 2**38
    drawn = data.scale_detection(key, 6, task=task)
    np.testing.assert_array_equal(drawn.labels, [1, -1] * 3)
    apart = np.linalg.norm(np.diff(np.asarray(drawn.points), axis=1)[:, 0], axis=-1)
    assert np.all((apart < 13) == (np.asarray(drawn.labels) < 0))


def test_noise_keeps_the_pairs_and_has_its_size(key):
    plain, noisy = data.scale_detection(key, 200), data.scale_detection(key, 200, noise=0.5)
    np.testing.assert_array_equal(plain.points, noisy.points)
    noise = np.asarray(noisy.images - plain.images)
    assert abs(noise.mean()) < 0.5 * 4 / noise.size**0.5
    assert abs(noise.std() - 0.5) < 0.01
    later = data.scale_detection(key, 10, skip=190, noise=0.5)
    np.testing.assert_array_equal(later.images, noisy.images[190:])


def test_both_routes_draw_the_same_images(key):
    drawn = data.scale_detection(key, 30)
    np.testing.assert_array_equal(data.scale_images(drawn.points, drawn.task), drawn.images)
    np.testing.assert_array_equal(data.scale_images(np.asarray(drawn.points), drawn.task), drawn.images)
    twice = data.scale_images(np.array([[3], [3]]), data.ScaleTask.line(), value=2.0)
    assert twice[3, 0] == 4


def test_a_set_is_a_pytree(key):
    drawn = data.scale_detection(key, 4)
    flipped = jax.jit(lambda s: jax.tree.map(lambda leaf: -leaf, s))(drawn)
    assert flipped.task == drawn.task
    np.testing.assert_array_equal(flipped.labels, -drawn.labels)


def test_steps_are_unit_vectors_rounded(key):
    steps = np.asarray(data.translation_steps(key, (20_000,)))
    kinds, counts = np.unique(steps, axis=0, return_counts=True)
    assert len(kinds) == 8
    assert not np.any(np.all(kinds == 0, axis=1))
    # A coordinate rounds to zero where its sine is below a half: a third of the circle, one sixth to each side.
    along = counts[np.abs(kinds).sum(1) == 1] / 20_000
    np.testing.assert_allclose(along, 1 / 6, atol=0.011)
    line = np.asarray(data.translation_steps(key, (1000,), ndim=1))
    assert set(np.unique(line)) == {-1, 1}
    assert abs(line.mean()) < 0.13


def test_moves_stop_where_the_study_stops_them():
    plane, line, segments = data.ScaleTask.plane(), data.ScaleTask.line(), data.ScaleTask.segments()
    corner = np.array([[0, 5], [27, 27]])
    np.testing.assert_array_equal(
        data.translate_points(corner, np.array([[-1, 1], [1, -1]]), plane), [[0, 6], [27, 26]]
    )
    ends = np.array([[[0], [127]], [[31], [32]], [[5], [64]]])
    outward = np.array([[[-1], [1]], [[1], [-1]], [[1], [-1]]])
    np.testing.assert_array_equal(data.translate_points(ends, outward, line)[..., 0], [[0, 127], [32, 31], [6, 63]])
    np.testing.assert_array_equal(data.translate_points(ends, outward, segments)[..., 0], [[0, 127], [31, 32], [6, 64]])


def test_label_changes(key):
    drawn = data.scale_detection(key, 2000)
    moved = data.translate_points(drawn.points, data.translation_steps(key, (2000, 2)), drawn.task)
    changed = np.asarray(data.label_changes(drawn.points, moved, drawn.task))
    apart = np.linalg.norm(np.diff(np.asarray(drawn.points), axis=1)[:, 0], axis=-1)
    assert 0.03 < changed.mean() < 0.3
    # Two points move apart by at most twice the square root of two.
    assert np.all((np.abs(apart - 14) < 1 + 2 * 2**0.5)[changed])
    segments = data.ScaleTask.segments()
    line = data.scale_detection(key, 500, task=segments)
    steps = data.translation_steps(key, (500, 2), ndim=1)
    assert not np.any(data.label_changes(line.points, data.translate_points(line.points, steps, segments), segments))


@pytest.mark.parametrize("task", TASKS[:3], ids=["line", "segments", "plane"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_local_translation_of_images(key, task, noise):
    drawn = data.scale_detection(key, 64, task=task, noise=noise)
    keys = jax.random.split(key, 64)
    move = jax.jit(jax.vmap(data.LocalTranslation(task)))
    images = move(keys, drawn.images)
    assert images.shape == drawn.images.shape
    assert images.dtype == drawn.images.dtype
    points = jax.vmap(data.lit_points)(drawn.images)
    steps = jax.vmap(lambda k: data.translation_steps(k, (2,), ndim=len(task.shape)))(keys)
    moved = data.translate_points(points, steps, task)
    background = drawn.images - data.scale_images(drawn.points, task)
    np.testing.assert_allclose(images, data.scale_images(moved, task) + background, atol=1e-4)
    loop = jnp.stack([data.LocalTranslation(task)(k, x) for k, x in zip(keys[:3], drawn.images[:3])])
    np.testing.assert_array_equal(loop, images[:3])
    with pytest.raises(ValueError, match="expected an image"):
        data.LocalTranslation(task)(key, drawn.images[0, :-1])


def test_local_translation_of_scaled_images(key):
    drawn = data.scale_detection(key, 1)
    move = data.LocalTranslation(drawn.task, value=2.0)
    scaled = drawn.images[0] * (2.0 / drawn.task.value)
    np.testing.assert_allclose(
        move(key, scaled), data.LocalTranslation(drawn.task)(key, drawn.images[0]) * (2 / 392), atol=1e-6
    )
    assert len(jax.tree.leaves(move)) == 1


def test_errors(key):
    with pytest.raises(ValueError, match="9000 of any label are asked for, 8128 found"):
        data.scale_detection(key, 9000, task=data.ScaleTask.segments(), balanced=False)
    with pytest.raises(ValueError, match=r"label \+1 are asked for, 0 found"):
        data.scale_detection(key, 2, task=data.ScaleTask.plane(size=10, xi=30))
    with pytest.raises(ValueError, match="count >= 1"):
        data.scale_detection(key, 0)
    with pytest.raises(TypeError, match="cannot be traced"):
        jax.jit(lambda k: data.scale_detection(k, 4).images)(key)
    with pytest.raises(ValueError, match="2 coordinates"):
        data.scale_labels(np.zeros((3, 2, 1), int), data.ScaleTask.plane())
    with pytest.raises(ValueError, match="norm 'L2' or 'Linf'"):
        data.ScaleTask.plane(norm="L1")
    with pytest.raises(ValueError, match="near <= far"):
        data.ScaleTask.plane(gap=-1)
    with pytest.raises(ValueError, match="two pixels"):
        data.ScaleTask((1, 1))
    with pytest.raises(ValueError, match=r"2\^32"):
        data.ScaleTask((70_000, 70_000))
    with pytest.raises(ValueError, match="one or two dimensions"):
        data.translation_steps(key, (3,), ndim=3)
