"""Functions that return results: their fields are labeled as the results label them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

import stabjax as sj
from stabjax import sweep

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)


def network(x):
    return jnp.sum(jax.nn.relu(x), axis=(1, 2))


def stability(key, *, temperature):
    deformation = sj.perturb.Diffeomorphism(temperature, 2.0, max_cutoff=2)
    return sj.probe.stability(network, jnp.asarray(IMAGES), key=key, deformation=deformation)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "stability"
    axes = {"temperature": [0.0, 0.01]}
    return sweep.run(stability, axes, key=KEY, seeds=2, path=path), path, axes


def test_a_stability_is_labeled_by_its_layers(swept, tmp_path):
    found, path, axes = swept
    for seed in range(2):
        for temperature in axes["temperature"]:
            one = stability(jax.random.fold_in(KEY, seed), temperature=jnp.float32(temperature)).to_xarray()
            cell = found.sel(temperature=temperature, seed=seed)
            for name in one:
                mine = cell["stability_valid" if name == "valid" else name]
                assert mine.dims == one[name].dims
                np.testing.assert_allclose(mine, one[name], rtol=1e-4, atol=1e-6)
            for name in one.coords:
                assert cell[name].dims == one[name].dims
            assert cell[name].values.tolist() == one[name].values.tolist()
    assert found.relative.dims == ("temperature", "seed", "layer")
    assert found.relative.sel(layer="output", temperature=0.01).dims == ("seed",)
    assert found.relative.attrs == {"confidence": 0.95, "average": "mean"}
    assert found.valid.to_numpy().tolist() == [[False, False], [True, True]]
    xarray.testing.assert_identical(sweep.run(stability, axes, key=KEY, seeds=2, path=path), found)
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as back:
        xarray.testing.assert_equal(back.load(), found)


def similarity(key, *, scale):
    x = jnp.asarray(IMAGES) + scale * jax.random.normal(key, IMAGES.shape)
    return sj.probe.similarity(network, network, x)


def test_a_similarity_is_labeled_by_both_networks():
    found = sweep.run(similarity, {"scale": [1.0]}, key=KEY)
    assert found.matrix.dims == ("scale", "seed", "layer", "other_layer")
    assert found.interval.dims[-1] == "bound"
    assert found.bound.values.tolist() == ["low", "high"]
    assert found.other_kind.dims == ("other_layer",)
    assert found.similarity_valid.all()
    assert found.valid.all()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Profile:
    """A result of someone else's."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    height: Any
    seed: Any

    def to_xarray(self):
        variables = {"height": (("place",), np.asarray(self.height)), "extra": (("place",), np.zeros(len(self.names)))}
        return xarray.Dataset(variables, {"place": list(self.names)})


def profile(*names, scale=1.0):
    return Profile(names, scale * jnp.arange(1.0, 1 + len(names)), jnp.zeros((2,)))


def test_results_side_by_side_share_what_they_agree_in():
    def f(key, a):
        return {"one": profile("u", "v"), "two": {"deep": profile("u", "v", scale=a)}, "plain": a}

    found = sweep.run(f, {"a": [1.0, 2.0]}, key=KEY)
    assert found["one.height"].dims == found["two.deep.height"].dims == ("a", "seed", "place")
    assert found["one.seed"].dims == ("a", "seed", "one.seed_dim_0")
    assert found.plain.dims == ("a", "seed")
    np.testing.assert_array_equal(found["two.deep.height"].sel(place="v")[:, 0], [2.0, 4.0])


def test_results_that_differ_have_dimensions_of_their_own():
    def f(key, a):
        return [profile("u", "v"), profile("u", "v", "w", scale=a)]

    found = sweep.run(f, {"a": [1.0, 2.0]}, key=KEY)
    assert found["0.height"].dims == ("a", "seed", "0.place")
    assert found["1.height"].sel({"1.place": "w"}).values.ravel().tolist() == [3.0, 6.0]


def test_names_that_are_taken_stand_behind_the_name_of_the_result():
    found = sweep.run(lambda key, place, height: profile("u", "v"), {"place": [1.0], "height": [1.0]}, key=KEY)
    assert found.profile_height.dims == ("place", "height", "seed", "profile_place")
    assert found.profile_seed.dims == ("place", "height", "seed", "profile_seed_dim_0")
    assert found.profile_place.values.tolist() == ["u", "v"]
    found = sweep.run(lambda key, a: {"place": a, "p": profile("u")}, {"a": [1.0]}, key=KEY)
    assert found["p.height"].dims == ("a", "seed", "p.place")


def test_results_without_labels_are_named_by_their_fields():
    found = sweep.run(
        lambda key, a: sj.similarity.cca(jax.random.normal(key, (9, 2)), a * jax.random.normal(key, (9, 3))),
        {"a": [0.0, 1.0]},
        key=KEY,
    )
    assert found.correlations.dims == ("a", "seed", "correlations_dim_0")
    assert found.cca_valid.values.ravel().tolist() == found.valid.values.ravel().tolist() == [False, True]


def test_results_are_known_by_their_labels_for_all_static_values():
    def f(key, names):
        return profile(*names)

    with pytest.raises(ValueError, match=r"the same labels for all static values, got other ones along \['place'\]"):
        sweep.run(f, {"names": [("u", "v"), ("u", "w")]}, key=KEY, static="names")
    found = sweep.run(f, {"names": [("u", "v"), ("u", "v")]}, key=KEY, static="names")
    assert found.place.values.tolist() == ["u", "v"]


def test_plain_outputs_with_a_reserved_name_are_refused():
    for name in ("valid", "seed", "a"):
        with pytest.raises(ValueError, match=rf"an output '{name}', which is also the name of .*'my_{name}'"):
            sweep.run(lambda key, a, name=name: {name: a}, {"a": [1.0]}, key=KEY)


def test_what_is_no_array_is_named():
    for wrong in ("text", object(), xarray.Dataset({"x": 1})):
        with pytest.raises(TypeError, match=rf"pytrees of them, got {type(wrong).__name__} among what it returns"):
            sweep.run(lambda key, a, wrong=wrong: {"x": a, "y": wrong}, {"a": [1.0]}, key=KEY)
