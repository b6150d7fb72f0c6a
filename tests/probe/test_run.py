"""`probe.run`: several measurements of images that come in any form, in any grouping."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import perturb, probe
from stabjax.probe import _checkpoint, _plan, _source
from tests.probe.test_stability import DEFORMATION, SIDE, make_images, network

N, BATCH = 37, 8
KEY = jax.random.key(1)
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


@pytest.fixture(scope="module")
def images():
    return np.asarray(make_images(N))


@dataclasses.dataclass(frozen=True)
class MeanActivation:
    """Average clean activations, and keep that of every image and the change of every draw."""

    versions = ("deformed",)

    def reduce(self, tap, clean, deformed, noisy, context):
        assert noisy is None
        assert tap.shape == clean.shape
        axes = tuple(range(1, clean.ndim))
        return jnp.mean(clean, axes), jnp.mean(deformed - clean[None], tuple(axis + 1 for axis in axes))

    def init(self, reduced):
        return {name: probe.Moments.init() for name in reduced}

    def update(self, state, reduced, context):
        states = {name: state[name].merge(probe.Moments.of(x, context.weights)) for name, (x, _) in reduced.items()}
        per_image = {name: x for name, (x, _) in reduced.items()}
        return states, probe.Rows(per_image | {"position": context.positions}, {n: x for n, (_, x) in reduced.items()})

    def merge(self, one, other):
        return {name: moments.merge(other[name]) for name, moments in one.items()}

    def finish(self, state, rows, summary):
        return {name: moments.mean for name, moments in state.items()}, rows, summary


def close(found, expected, *, intervals=True):
    """Compare all that does not depend on how images are grouped; intervals of R neither."""
    assert found.layers == expected.layers
    for name in ("deformation", "noise", "relative", "pair_distance", "noise_radius", "relative_interval"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-7, err_msg=name)
    for name in ("deformation_numerators", "noise_numerators"):
        # To 1e-5 of the largest of a layer: one image may change by nearly nothing.
        one, other = np.asarray(getattr(found, name)), np.asarray(getattr(expected, name))
        np.testing.assert_allclose(
            one / other.max((1, 2), keepdims=True), other / other.max((1, 2), keepdims=True), atol=1e-5
        )
    np.testing.assert_array_equal(found.measured, expected.measured)


def measure(images, **options):
    options = {"deformation": DEFORMATION, "batch_size": BATCH, "draws": 2} | options
    return probe.stability(network(), images, key=KEY, **options)


@pytest.fixture(scope="module")
def expected(images):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return measure(images)


def parts(images, *lengths):
    """Cut into parts of these lengths, the rest last."""
    return np.split(images, np.cumsum(lengths))


FORMS = {
    "generator": lambda x: iter(parts(x, 5, 11, 1, 4)),
    "with empty batches": lambda x: iter(parts(x, 0, 20, 0, 5)),
    "function": lambda x: lambda: iter(parts(x, 20)),
    "pairs": lambda x: ((part, np.zeros(len(part), int)) for part in parts(x, 9, 9)),
    "dictionaries": lambda x: ({"label": 0, "image": part} for part in parts(x, 30)),
    "arrays of JAX": lambda x: (jnp.asarray(part) for part in parts(x, 13, 13)),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_form_gives_the_numbers_of_an_array(images, expected, form):
    close(measure(FORMS[form](images)), expected)


def test_an_array_on_disk_is_read_batch_by_batch(images, expected, tmp_path):
    np.save(tmp_path / "images.npy", images)
    close(measure(np.load(tmp_path / "images.npy", mmap_mode="r")), expected)


def test_channels_first_and_bytes_are_normalized(images):
    pixels = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)
    mean, deviation = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    floats = ((pixels.astype(np.float32) / 255) - np.float32(mean)) / np.float32(deviation)
    wanted = measure(floats)
    close(measure(pixels, normalize=(mean, deviation)), wanted)
    first = (np.moveaxis(part, -1, 1) for part in parts(pixels, 10, 10))
    close(measure(first, normalize=(mean, deviation), images_layout="channels_first"), wanted)


@pytest.mark.parametrize("length", [*(pytest.param(n, marks=pytest.mark.slow) for n in (BATCH - 1, BATCH)), BATCH + 1])
def test_a_short_stream(images, length):
    close(measure(iter(parts(images[:length], 3))), measure(images[:length]))


def test_one_radius_takes_two_passes(images):
    wanted = measure(images, radius="mean")
    close(measure(lambda: iter(parts(images, 9, 9)), radius="mean"), wanted)
    with pytest.raises(ValueError, match="an iterator that is spent"):
        measure(iter(parts(images, 9, 9)), radius="mean")


def test_a_measurement_of_ones_own_beside_another(images, expected):
    f = network()
    found = probe.run(
        f,
        iter(parts(images, 10, 10)),
        {"mean": MeanActivation(), "stability": probe.RelativeStability()},
        key=KEY,
        deformation=DEFORMATION,
        batch_size=BATCH,
        draws=2,
    )
    close(found["stability"], expected)
    means, rows, summary = found["mean"]
    assert tuple(tap.name for tap in summary.taps) == expected.layers
    assert set(means) == set(expected.layers)
    np.testing.assert_array_equal(rows.per_image["position"], np.arange(N))
    activations = {"input": images, "output": f(jnp.asarray(images))}
    for name, x in activations.items():
        per_image = np.mean(np.reshape(x, (N, -1)), 1)
        np.testing.assert_allclose(rows.per_image[name], per_image, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(means[name], per_image.mean(), rtol=1e-4, atol=1e-6)
    deformed, _ = probe.perturbed(images, key=KEY, deformation=DEFORMATION, draws=2)
    changes = np.mean(deformed - images[None], axis=(2, 3, 4))
    np.testing.assert_allclose(rows.per_draw["input"], changes, atol=1e-6)
    np.testing.assert_allclose(
        summary.sizes["deformed"], np.linalg.norm((deformed - images).reshape(2, N, -1), axis=2), rtol=1e-5
    )


@dataclasses.dataclass(frozen=True)
class FieldsAndExtents(MeanActivation):
    """Keep the fields that were drawn."""

    def reduce(self, tap, clean, deformed, noisy, context):
        extents = context.extents
        assert tap.name == "input" or extents[tap.name].size
        return ()

    def init(self, reduced):
        return jnp.zeros(())

    def update(self, state, reduced, context):
        return state, probe.Rows((), jnp.moveaxis(context.fields, 2, 4))

    def merge(self, one, other):
        return one + other

    def finish(self, state, rows, summary):
        return np.moveaxis(rows.per_draw, 4, 2)


@pytest.mark.parametrize(
    "deformation",
    [
        DEFORMATION,
        *(pytest.param(x, marks=pytest.mark.slow) for x in (perturb.Translation(1.5), perturb.Affine(rotation=0.3))),
    ],
)
def test_the_fields_that_were_drawn(images, deformation):
    options = {"key": KEY, "deformation": deformation, "draws": 2}
    fields = probe.run(network(), images, {"fields": FieldsAndExtents()}, batch_size=BATCH, **options)["fields"]
    assert fields.shape == (2, N, 2, SIDE, SIDE)
    from stabjax import warp

    deformed, _ = probe.perturbed(images, **options)
    pulled = jax.vmap(jax.vmap(warp.pull_back), (None, 0))(jnp.asarray(images), jnp.asarray(fields))
    np.testing.assert_allclose(pulled, deformed, atol=1e-5)


def test_clean_images_alone_pass_once(images):
    class Clean(MeanActivation):
        versions = ()

        def reduce(self, tap, clean, deformed, noisy, context):
            assert deformed is None
            assert clean.shape[0] == BATCH - 3 + (tap.name != tap.name)
            return jnp.mean(clean), jnp.zeros(())

        def update(self, state, reduced, context):
            return state, probe.Rows(context.positions)

    _, rows, summary = probe.run(network(), images, {"clean": Clean()}, key=KEY, batch_size=BATCH - 3)["clean"]
    np.testing.assert_array_equal(rows.per_image, np.arange(N))
    assert summary.sizes == {}


def test_an_image_that_is_not_finite_counts_nowhere(images):
    broken = images.copy()
    broken[[3, 20], 2, 2, 0] = np.nan, np.inf
    found = measure(iter(parts(broken, 10, 10)))
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(found.measured)), [3, 20])
    close(found, measure(broken))
    assert found.valid.all()


def test_inside_jit_as_outside(images, expected):
    jitted = jax.jit(lambda f, x: probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=BATCH, draws=2))
    close(jitted(network(), images), expected)


def of_three(batch):
    """Three batches, one of which is not as the others."""
    good = np.ones((4, SIDE, SIDE, 3), np.float32)
    return lambda: iter([good, good, batch])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": lambda: iter([])}, ValueError, "an iterable that yields none"),
        ({"images": of_three(np.ones((4, SIDE, 9, 3), np.float32))}, ValueError, r"\(8, 9, 3\) in batch 2"),
        ({"images": of_three(np.ones((4, SIDE, SIDE, 3), np.float16))}, ValueError, "float16 images"),
        ({"images": of_three(np.ones((4, SIDE, SIDE, 3), np.uint8))}, TypeError, "got uint8"),
        ({"images": of_three({"pixels": 3})}, ValueError, "'image' or 'images', got"),
        ({"images": iter([np.ones((1, SIDE, SIDE, 3), np.float32)])}, ValueError, "at least two images"),
        ({"images": 3}, TypeError, "as an array, got int"),
        ({"measurements": {}}, ValueError, "expected measurements by name"),
        ({"measurements": {"x": probe.RelativeStability}}, TypeError, "'x' to be a Measurement"),
        ({"measurements": {"x": 3}}, TypeError, "'x' to be a Measurement"),
        ({"deformation": None}, ValueError, "a deformation for RelativeStability"),
        ({"radius": "mean", "deformation": None, "noise": perturb.GaussianNoise(1.0)}, ValueError, "radius='mean'"),
        ({"images_layout": "first"}, ValueError, "images_layout"),
        ({"normalize": ((0.5,), (0.0,))}, ValueError, "positive deviations"),
    ],
)
def test_errors_say_what_to_do(unchecked, images, change, error, message):
    arguments = {
        "f": jnp.tanh,
        "images": images,
        "measurements": {"stability": probe.RelativeStability()},
        "key": KEY,
        "deformation": DEFORMATION,
        "batch_size": 4,
    }
    with pytest.raises(error, match=message):
        probe.run(**(arguments | change))


class Killed(Exception):
    pass


def dying(batches, after) -> Iterator[np.ndarray]:
    """Yield batches, and end as a killed process does."""
    for number, batch in enumerate(batches):
        if number == after:
            raise Killed
        yield batch


@pytest.mark.parametrize("as_array", [True, False])
def test_a_pass_that_was_killed_goes_on(images, expected, tmp_path, monkeypatch, as_array):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(_plan, "MOST_BATCHES", 2)
    cut = parts(images, *[6] * 6)
    # Killed again and again, each time a little later, once without having come any further.
    for after in (2, 4, 4, 6):
        with pytest.raises(Killed):
            measure(dying(cut, after), path=tmp_path / "run")
    found = measure(iter(cut), path=tmp_path / "run")
    close(found, expected)
    # Finished: all is there, and nothing is computed.
    again = measure(iter(cut), path=tmp_path / "run")
    np.testing.assert_array_equal(again.relative, found.relative)
    with pytest.raises(ValueError, match="got others: give the same images and the same order"):
        measure(iter([*cut[1:], cut[0]]), path=tmp_path / "run")
    with pytest.raises(ValueError, match="draws: 2 there, 3 here"):
        measure(iter(cut), path=tmp_path / "run", draws=3)
    (tmp_path / "run" / "rows-00001.npz").write_bytes(b"half a file")
    with pytest.raises(OSError, match=r"rows-00001.npz cannot be read"):
        measure(iter(cut), path=tmp_path / "run")


@pytest.mark.parametrize("as_number", [True, False])
def test_a_folder_knows_numbers_and_arrays_that_a_function_closes_over(images, tmp_path, as_number):
    def scaled(factor):
        factor = factor if as_number else np.arange(3, dtype=np.float32) + factor
        return lambda x: jnp.mean(jax.nn.relu(x * factor), axis=(1, 2))

    options = {"deformation": DEFORMATION, "batch_size": BATCH, "key": KEY, "path": tmp_path / "run"}
    found = probe.run(scaled(2.0), images, {"mean": MeanActivation()}, **options)["mean"][0]
    again = probe.run(scaled(2.0), images, {"mean": MeanActivation()}, **options)["mean"][0]
    assert float(found["output"]) == float(again["output"])
    with pytest.raises(ValueError, match=r"got another \(network"):
        probe.run(scaled(3.0), images, {"mean": MeanActivation()}, **options)


def test_a_loader_may_fill_one_buffer_again_and_again(images, expected):
    def batches():
        buffer = np.empty_like(images[:5])
        for start in range(0, N, 5):
            part = images[start : start + 5]
            buffer[: len(part)] = part
            yield buffer[: len(part)]

    close(measure(batches()), expected)


def test_channels_first_inside_jit(images, expected):
    first = np.moveaxis(images, -1, 1)
    close(jax.jit(lambda x: measure(x, images_layout="channels_first"))(first), expected)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(MeanActivation):
    """Average activations times a number."""

    scale: jax.Array

    def reduce(self, tap, clean, deformed, noisy, context):
        return jax.tree.map(lambda x: self.scale * x, super().reduce(tap, clean, deformed, noisy, context))

    def finish(self, state, rows, summary):
        return state["output"].mean, rows.per_image["output"]


def test_a_measurement_with_arrays_is_traced_and_differentiated(images):
    def run(scale):
        options = {"deformation": DEFORMATION, "batch_size": BATCH, "key": KEY}
        return probe.run(network(), images, {"scaled": Scaled(scale)}, **options)["scaled"]

    mean, rows = run(jnp.float32(1))
    np.testing.assert_allclose(jax.jit(run)(jnp.float32(2))[1], 2 * rows, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda scale: run(scale)[0])(jnp.float32(2)), mean, rtol=1e-5)


class InHalf(MeanActivation):
    """A state and rows of bfloat16."""

    def init(self, reduced):
        return {name: jnp.zeros((), jnp.bfloat16) for name in reduced}

    def update(self, state, reduced, context):
        rows = {name: x.astype(jnp.bfloat16) for name, (x, _) in reduced.items()}
        return {name: (state[name] + jnp.sum(context.weights)).astype(jnp.bfloat16) for name in state}, probe.Rows(rows)

    def finish(self, state, rows, summary):
        return state["output"], rows.per_image["output"]


def test_a_folder_keeps_types_that_numpy_does_not_have(images, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0)
    options = {"deformation": DEFORMATION, "batch_size": BATCH, "key": KEY, "path": tmp_path / "run"}
    one, other = (probe.run(network(), images, {"half": InHalf()}, **options)["half"] for _ in range(2))
    assert one[0] == other[0]
    assert one[1].dtype == other[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(one[1], other[1])


def test_a_damaged_header_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0)
    measure(images, path=tmp_path / "run")
    state = max((tmp_path / "run").glob("state-*.npz"))
    contents = bytearray(state.read_bytes())
    # The way in which the first entry is packed, in the directory at the end.
    contents[contents.index(b"PK\x01\x02") + 10] = 99
    state.write_bytes(contents)
    with pytest.raises(OSError, match="cannot be read"):
        measure(images, path=tmp_path / "run")


@pytest.mark.parametrize("versions", ["noisy", ("noise",)])
def test_unknown_versions_are_refused(images, versions):
    measurement = MeanActivation()
    object.__setattr__(measurement, "versions", versions)
    with pytest.raises(ValueError, match=r"expected the versions of 'mean' as some of"):
        probe.run(network(), images, {"mean": measurement}, key=KEY, deformation=DEFORMATION)


def test_states_of_a_loader_are_forgotten(images, expected, monkeypatch):
    class Loader:
        def __init__(self):
            self.next = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.next == N:
                raise StopIteration
            self.next += 1
            return images[self.next - 1 : self.next]

        def get_state(self):
            return {"next": self.next}

        def set_state(self, state):
            self.next = state["next"]

    sources = []
    start = _source.StreamSource.__init__

    def init(self, *arguments, **options):
        sources.append(self)
        start(self, *arguments, **options)

    monkeypatch.setattr(_plan, "MOST_BATCHES", 1)
    monkeypatch.setattr(_source.StreamSource, "__init__", init)
    close(measure(Loader()), expected)
    assert len(sources[0]._marks) <= 2 * BATCH


@dataclasses.dataclass(frozen=True)
class SumOverDraws(MeanActivation):
    """Sum changes over images and draws in the state."""

    def init(self, reduced):
        return dict.fromkeys(reduced, jnp.zeros(()))

    def update(self, state, reduced, context):
        counted = context.counted[None]
        return {name: state[name] + jnp.sum(x, where=counted) for name, (_, x) in reduced.items()}, probe.Rows()

    def merge(self, one, other):
        return {name: one[name] + other[name] for name in one}

    def finish(self, state, rows, summary):
        return state["output"]


def test_a_sum_over_draws_does_not_depend_on_steps(images):
    options = {"key": KEY, "deformation": DEFORMATION, "draws": 3}
    sums = [
        probe.run(network(), images, {"sum": SumOverDraws()}, batch_size=batch_size, **options)["sum"]
        for batch_size in (BATCH, N)
    ]
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4)
    assert sums[0] != 0


def test_a_stream_within_jit_is_refused(images):
    with pytest.raises(TypeError, match="an array within jit, vmap and grad, got list_iterator"):
        jax.jit(lambda f: measure(iter(parts(images, 9)), radius="each") if f is not None else 0)(network())


@dataclasses.dataclass(frozen=True)
class Odd:
    """Returns something wrong."""

    what: str

    def reduce(self, tap, clean, deformed, noisy, context):
        return jnp.mean(clean)

    def init(self, reduced):
        return {name: jnp.zeros(()) for name in reduced}

    def update(self, state, reduced, context):
        match self.what:
            case "tuple":
                return state, (reduced, ())
            case "dtype":
                return {name: x.astype(jnp.bfloat16) for name, x in state.items()}, probe.Rows()
            case "length":
                return state, probe.Rows({"a": jnp.zeros(3)})
            case "draws":
                return state, probe.Rows((), jnp.zeros((len(context.weights), 2)))

    def merge(self, one, other):
        return one

    def finish(self, state, rows, summary):
        return state


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("tuple", TypeError, r"update of 'odd' to return a state and probe.Rows"),
        ("dtype", TypeError, r"a state like the one it takes, .*float32.*, got .*bfloat16"),
        ("length", ValueError, r"per_image of the rows of 'odd' to begin with \(4,\), got shape \(3,\)"),
        ("draws", ValueError, r"per_draw of the rows of 'odd' to begin with \(2, 4\), got shape \(4, 2\)"),
    ],
)
def test_what_a_measurement_returns_is_checked(unchecked, images, what, error, message):
    options = {"key": KEY, "deformation": DEFORMATION, "draws": 2, "batch_size": BATCH}
    with pytest.raises(error, match=message):
        probe.run(network(), images, {"odd": Odd(what)}, **options)


def test_images_without_a_finite_one_have_no_mean_size(images):
    with pytest.raises(ValueError, match="images with finite pixels for radius='mean', got none"):
        measure(np.full_like(images, np.nan), radius="mean")


def test_a_traced_normalization_is_refused(images):
    with pytest.raises(TypeError, match="mean and deviation of normalize= as numbers, got traced ones"):
        jax.jit(lambda mean: measure(images, normalize=(mean, (1.0, 1.0, 1.0))).relative)(jnp.ones(3))
