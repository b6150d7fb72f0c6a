"""Weights from files: every name and shape is checked, and what is read is what was saved."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

import stabjax as sj
from stabjax.cli import _weight_files, _weights
from stabjax.cli._refusal import Refusal
from tests.cli.test_measure import load

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")


def state_of(model):
    """The weights of an NNX network, as a nested dictionary; random keys are left out."""
    return nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def save_npz(path, tree):
    np.savez(path, **_weight_files.flatten(tree))
    return path


def save_msgpack(path, tree):
    path.write_bytes(serialization.msgpack_serialize(jax.tree.map(np.asarray, tree)))
    return path


def save_orbax(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def save_manager(path, tree):
    with ocp.CheckpointManager(path) as manager:
        for step in (2, 10):
            manager.save(step, args=ocp.args.StandardSave(jax.tree.map(lambda x: x * (step == 10), tree)))
    return path


SAVED = {"w.npz": save_npz, "w.msgpack": save_msgpack, "w": save_orbax, "steps": save_manager}


@pytest.mark.parametrize("name", SAVED)
def test_nnx(folder, name):
    small = load(folder, "small")
    trained = small(nnx.Rngs(7))
    path = SAVED[name](folder / name, state_of(trained))
    found = _weights.load_into_network(sj.networks.wrap(small(nnx.Rngs(0))), path)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    np.testing.assert_array_equal(found(x), sj.networks.wrap(trained)(x))


def test_a_whole_state_of_nnx(folder):
    # As `nnx.state` has it, with the variables around the arrays.
    small = load(folder, "small")
    trained = small(nnx.Rngs(7))
    path = save_orbax(folder / "w", nnx.state(trained, (nnx.Param, nnx.BatchStat)))
    found = _weights.load_into_network(sj.networks.wrap(small(nnx.Rngs(0))), path)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    np.testing.assert_array_equal(found(x), sj.networks.wrap(trained)(x))


@pytest.mark.parametrize("name", ["w.npz", "w.msgpack", "w"])
def test_linen(folder, name):
    linen = load(folder, "linen")
    trained = linen(jax.random.key(7))
    path = SAVED[name](folder / name, dict(trained.unbind()[1]))
    found = _weights.load_into_network(sj.networks.wrap(linen(jax.random.key(0)), train=False), path)
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    np.testing.assert_array_equal(found(x), trained(x, train=False))


def test_names_of_other_customs(folder):
    small = load(folder, "small")
    trained = small(nnx.Rngs(7))
    flat = _weight_files.flatten(state_of(trained))
    np.savez(folder / "w.npz", **{f"model.net.{name.replace('/', '.')}": value for name, value in flat.items()})
    found = _weights.load_into_network(sj.networks.wrap(small(nnx.Rngs(0))), folder / "w.npz")
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
    np.testing.assert_array_equal(found(x), sj.networks.wrap(trained)(x))


def test_weights_of_another_architecture(folder):
    small = load(folder, "small")
    network = sj.networks.wrap(small(nnx.Rngs(0)))
    other = _weight_files.flatten(state_of(small(nnx.Rngs(0), classes=7)))
    np.savez(folder / "shape.npz", **other)
    with pytest.raises(Refusal) as shape:
        _weights.load_into_network(network, folder / "shape.npz")
    for text in ("2 have another shape", "head/kernel: expected (4, 5), got (4, 7)", "--arguments num_classes=..."):
        assert text in str(shape.value)
    del other["head/kernel"]
    np.savez(folder / "names.npz", **other, extra=np.zeros(3))
    with pytest.raises(Refusal) as names:
        _weights.load_into_network(network, folder / "names.npz")
    assert "1 of 8 weights are missing (head/kernel); 1 of 8 in the file are unknown to the network (extra)" in str(
        names.value
    )


def test_files_that_cannot_be_read(folder):
    (folder / "w.npz").write_bytes(b"PK nothing")
    (folder / "w.msgpack").write_bytes(b"\xc1")
    (folder / "w.h5").write_bytes(b"")
    (folder / "empty").mkdir()
    np.savez(folder / "objects.npz", a=np.array([None]))
    np.savez(folder / "none.npz")
    for name, said in {
        "w.npz": "'w.npz' cannot be read",
        "w.msgpack": "'w.msgpack' cannot be read",
        "objects.npz": "'objects.npz' cannot be read",
        "w.h5": "expected weights as .pt, .pth, .ckpt, .bin, .safetensors, .npz, .msgpack or an Orbax folder",
        "empty": "expected a checkpoint of Orbax in the folder 'empty'",
        "gone.npz": "expected a file of weights, got 'gone.npz', which is not there",
        "none.npz": "expected arrays in 'none.npz', got a file without any",
    }.items():
        with pytest.raises(Refusal) as refusal:
            _weight_files.read(folder.joinpath(name).relative_to(folder))
        assert said in str(refusal.value)
