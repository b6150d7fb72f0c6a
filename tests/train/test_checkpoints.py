"""A run killed at any moment loses nothing that was saved, and ends as if it had not been killed."""

import fcntl
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from stabjax import perturb, train
from stabjax.train import _files
from tests import ROOT
from tests.train.kills import DATA, RECIPE, TEST, Net, Plain, crash, go, killed_at, same


@pytest.fixture(scope="module")
def whole():
    return go()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "finished"
    return go(path=path, save_every=0.0), path


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[1], tmp_path / "copy"))


@pytest.fixture
def every_step(monkeypatch):
    """Look at the clock after every step."""
    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 0.0)


def test_saving_changes_nothing(whole, finished):
    same(finished[0], whole)


def test_a_finished_run_is_read_back(finished):
    start = time.perf_counter()
    same(go(path=finished[1]), finished[0])
    assert time.perf_counter() - start < 5


SPARE = 20
"""The number of files that Orbax writes varies from run to run, by about ten of 340 operations."""


def operations(path):
    with killed_at(-1) as done:
        go(path=path, save_every=0.0)
    assert set(done) == {"fsync", "rename", "replace", "write_bytes", "rmtree", "save"}
    return len(done)


def test_killed_before_a_file_operation(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 1e6)  # the operations must not depend on the clock
    count = operations(tmp_path / "count")
    assert count > 100
    model = Net(rngs=nnx.Rngs(0))
    for n in range(0, count - SPARE, 59):
        path = tmp_path / str(n)
        assert crash(path, n)
        same(go(path=path), whole)
        assert sorted(train.checkpoints(path)) == [0, 4, 8, 10]
        for step in train.checkpoints(path):
            train.load(path, model, step=step)


def test_every_name_above_a_checkpoint_is_on_disk(tmp_path, monkeypatch):
    """Names are entries of the folder above: a power cut takes those that were not forced to disk there."""
    path = tmp_path / "new" / "run"
    names = [path.parent, path, path / "run.json", path / "steps", path / "steps" / "00000000"]
    on_disk = set()

    def fsync(handle):
        for folder in {name.parent for name in names}:
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                on_disk.update(folder.iterdir())

    monkeypatch.setattr(os, "fsync", fsync)
    with _files.open_run(path, {"format": _files.FORMAT}):
        _files.save_weights(path, 0, {"weights": np.ones(3, np.float32)})
    assert on_disk.issuperset(names)


@pytest.mark.slow
def test_killed_before_every_file_operation(whole, tmp_path, every_step):
    count = operations(tmp_path / "count")
    for n in range(count):
        path = tmp_path / str(n)
        assert crash(path, n) or n >= count - SPARE
        same(go(path=path), whole)
        shutil.rmtree(path)


@pytest.mark.slow
def test_killed_again_and_again_within_epochs(whole, tmp_path, every_step):
    path, kills = tmp_path / "run", 0
    while crash(path, 61):
        kills += 1
    assert kills >= 4
    same(go(path=path), whole)
    assert np.all(np.diff(train.history(path).seconds) > 0)


CHILD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.train.kills import go
from stabjax.train import _loop
_loop.PATIENCE = 0.0
go(path=sys.argv[1], save_every=0.0)
"""


def killed_for_real(path, whole, seed, kills):
    chance, alive = random.Random(seed), 0
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stderr=subprocess.DEVNULL)
        begun, known = time.perf_counter(), sorted((path / "state").glob("*"))
        while child.poll() is None and time.perf_counter() - begun < 120:
            if sorted((path / "state").glob("*")) != known:  # it trains now
                time.sleep(chance.uniform(0, 0.25))
                break
            time.sleep(0.002)
        alive += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert alive
    same(go(path=path), whole)


def test_killed_by_the_system(whole, tmp_path):
    killed_for_real(tmp_path / "run", whole, seed=0, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_by_the_system_many_times(whole, tmp_path, seed):
    killed_for_real(tmp_path / "run", whole, seed=seed, kills=5)


# What is kept


def test_weights_of_every_checkpoint(finished):
    run, path = finished
    assert train.checkpoints(path) == {0: 0, 4: 1, 8: 2, 10: 2.5}
    assert train.recipe(path) == RECIPE
    model = Net(rngs=nnx.Rngs(0))
    for seed in (0, 1):
        for step, which in ((0, "initial"), (10, "last"), ("last", "last"), ("best", "best"), ("initial", "initial")):
            read = jax.tree.leaves(nnx.state(train.load(path, model, step=step, seed=seed), nnx.Param, nnx.BatchStat))
            kept = jax.tree.leaves(nnx.state(run.model(which, seed=seed), nnx.Param, nnx.BatchStat))
            for a, b in zip(read, kept, strict=True):
                np.testing.assert_array_equal(a, b)
        rows = {int(s): a for s, a in zip(run.history.step, run.history.test_accuracy[:, seed])}
        for step in (4, 8):
            assert train.evaluate(run.model(step, seed=seed), *TEST).accuracy == pytest.approx(rows[step])
    assert train.load(path, model).dropout.deterministic


def test_history_beside_the_checkpoints(finished):
    run, path = finished
    read = train.history(path)
    for name in ("epoch", "step", "rate", "seconds", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(getattr(read, name), getattr(run.history, name))
    assert json.loads((path / "history.json").read_text())["test_accuracy"][0][0] == run.history.test_accuracy[0, 0]


def test_chosen_checkpoints_and_no_test_images(tmp_path):
    run = train.fit(Net, DATA, key=jax.random.key(5), recipe=RECIPE, path=tmp_path, checkpoints=(2,))
    assert sorted(train.checkpoints(tmp_path)) == [0, 8, 10]
    assert run.best_step == 10
    np.testing.assert_array_equal(run.best["out/kernel"], run.last["out/kernel"])
    best = train.load(tmp_path, Net(rngs=nnx.Rngs(0)), step="best")
    np.testing.assert_array_equal(best.out.kernel[...], run.last["out/kernel"][0])
    assert np.all(np.isnan(train.history(tmp_path).test_accuracy))


@pytest.mark.slow  # in the short run one with an optimizer of its own: tests/train/test_optimizers.py
def test_vectorized_runs_resume(tmp_path, every_step):
    assert crash(tmp_path, 70, vectorized=True)
    same(go(path=tmp_path, vectorized=True), go(vectorized=True))


def test_a_diverged_run_keeps_what_was_good(tmp_path):
    recipe = train.Recipe(epochs=20, batch_size=16, rate=1e4, schedule="constant", decay=1.0)
    diverge = functools.partial(train.fit, Plain, DATA, key=jax.random.key(5), recipe=recipe, path=tmp_path)
    with pytest.warns(RuntimeWarning, match="diverged in step"):
        run = diverge()
    step = int(run.diverged[0])
    kept = train.checkpoints(tmp_path)
    assert 4 <= max(kept) <= step < 80
    for s in kept:
        model = train.load(tmp_path, Plain(rngs=nnx.Rngs(0)), step=s)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    with pytest.warns(RuntimeWarning, match=f"diverged in step {step} "):
        same(diverge(), run)


# What is refused


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is compiled before another run is refused."""
    monkeypatch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": train.Recipe(epochs=2.5, batch_size=16, rate=0.06)}, r"recipe\.rate: 0\.05 there, 0\.06 here"),
        ({"key": jax.random.key(6)}, "key"),
        ({"seeds": 3}, "seeds: 2 there, 3 here"),
        ({"test": None}, "test"),
        ({"perturbation": lambda key, image: image}, "perturbation"),
        ({"trainable": nnx.All(nnx.Param, nnx.PathContains("out"))}, "trained"),
        ({"vectorized": True}, "vectorized: False there, True here"),
    ],
)
def test_another_configuration_is_refused_and_named(finished, untrained, change, named):
    with pytest.raises(ValueError, match=named):
        go(path=finished[1], **change)


def shifted(key, image, *, by):
    return image + by


def made(size):
    def itself(key, image, depth=1):
        return itself(key, image + size, depth - 1) if depth else image

    return itself


class Held:
    def __init__(self, rule):
        self.rule = rule

    def __call__(self, key, image):
        return self.rule(key, image)

    def twice(self, key, image):
        return self.rule(key, self.rule(key, image))


def test_perturbations_are_told_apart_without_their_addresses():
    from stabjax.train._files import describe_perturbation

    kinds = [
        lambda: shifted,
        lambda: functools.partial(shifted, by=1),
        lambda: functools.partial(shifted, by=2),
        lambda: functools.partial(shifted, by=made(1)),
        lambda: jax.tree_util.Partial(shifted, by=3),
        lambda: lambda key, image: image,
        lambda: lambda key, image: image * 0,
        lambda: lambda key, image: image if image.ndim in {1, 2} else -image,
        lambda: jax.jit(lambda key, image: image * 3),
        lambda: made(1),
        lambda: made(2),
        lambda: made(np.arange(3000.0)),
        lambda: made(np.arange(3000.0) + (np.arange(3000) == 1500)),
        lambda: Held(made(1)),
        lambda: Held(made(2)),
        lambda: Held(lambda key, image: image),
        lambda: Held(made(1)).twice,
        lambda: perturb.Diffeomorphism(1e-3, 3),
        lambda: perturb.Diffeomorphism(2e-3, 3),
    ]
    found = [json.dumps(describe_perturbation(kind())) for kind in kinds]
    assert found == [json.dumps(describe_perturbation(kind())) for kind in kinds]
    assert len(set(found)) == len(kinds)
    assert not any("0x" in text for text in found)


def test_descriptions_of_perturbations_are_those_of_older_runs():
    from stabjax.train._files import describe_perturbation

    rule = perturb.Diffeomorphism(1e-3, 3)
    leaves = {"temperature": rule.temperature.item(), "cutoff": rule.cutoff.item()}
    assert describe_perturbation(shifted) == describe_perturbation(jax.jit(shifted)) == "shifted"
    old = {"kind": "Diffeomorphism", "structure": str(jax.tree.structure(rule)), **leaves}
    assert describe_perturbation(rule) == old


def test_a_run_knows_its_perturbation_again(tmp_path, monkeypatch):
    recipe = train.Recipe(epochs=1, batch_size=16)

    def begin(perturbation):
        return train.fit(Plain, DATA, key=jax.random.key(5), recipe=recipe, path=tmp_path, perturbation=perturbation)

    first = Held(made(1.0))
    run = begin(first)
    same(begin(Held(made(1.0))), run)
    monkeypatch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)
    for other in (Held(made(2.0)), made(1.0), functools.partial(shifted, by=1.0), lambda key, image: image + 1):
        with pytest.raises(ValueError, match=r"expected the configuration of the run .*perturbation"):
            begin(other)


def test_other_images_or_another_network_are_refused(finished, untrained):
    images, labels = DATA
    other = functools.partial(train.fit, key=jax.random.key(5), test=TEST, recipe=RECIPE, seeds=2, path=finished[1])
    with pytest.raises(ValueError, match="images: uint8"):
        other(Net, (images[::-1].copy(), labels))
    with pytest.raises(ValueError, match=r"weights\.hidden/kernel: float32\[16, 5\] there, float32\[16, 6\] here"):
        other(functools.partial(Net, width=6), DATA)


def test_load_refuses(finished, tmp_path):
    path, model = finished[1], Net(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"model\.out/kernel: float32\[5, 3\] there, float32\[4, 3\] here"):
        train.load(path, Net(width=4, rngs=nnx.Rngs(0)))
    with pytest.raises(FileNotFoundError, match=r"expected one of the steps \[0, 4, 8, 10\]"):
        train.load(path, model, step=5)
    with pytest.raises(ValueError, match=r"seed in 0\.\.1"):
        train.load(path, model, seed=2)
    with pytest.raises(FileNotFoundError, match="expected a run in"):
        train.load(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="expected a run in"):
        train.history(tmp_path)


def test_steps_are_whole_numbers_or_words(finished, unchecked):
    run, path = finished
    model = Net(rngs=nnx.Rngs(0))
    for read in (lambda step: train.load(path, model, step=step), run.model):
        np.testing.assert_array_equal(read(np.int64(10)).out.kernel[...], run.last["out/kernel"][0])
        with pytest.raises(ValueError, match="expected 'initial', 'best', 'last' or the number of a step, got 'final'"):
            read("final")
        with pytest.raises(TypeError, match=r"or the number of a step, got 4\.0"):
            read(4.0)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes").write_text("important")
    with pytest.raises(ValueError, match=r"expected a folder for the run at .*notes, found a file"):
        go(path=tmp_path / "notes")


def test_another_format_is_refused(copy):
    from stabjax.train import _files

    manifest = _files.read_json(copy / "run.json")
    _files.write_json(copy / "run.json", {**manifest, "format": 99})
    with pytest.raises(ValueError, match=r"expected format 1 in .*run\.json, got 99"):
        go(path=copy)
    with pytest.raises(ValueError, match="expected format 1"):
        train.load(copy, Net(rngs=nnx.Rngs(0)))


def test_other_versions_are_told(copy):
    from stabjax.train import _files

    manifest = _files.read_json(copy / "run.json")
    _files.write_json(copy / "run.json", {**manifest, "versions": {**manifest["versions"], "jax": "0.1"}})
    with pytest.warns(UserWarning, match="bits may differ"):
        go(path=copy)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_named_and_an_older_one_taken(copy, whole, tmp_path):
    states, model = sorted((copy / "state").iterdir()), Net(rngs=nnx.Rngs(0))
    assert len(states) == 2
    arrays, kept = states[-1] / "arrays", tmp_path / "kept"
    shutil.copytree(arrays, kept)
    for damage in ("flip", "cut", "remove", "swap"):
        shutil.rmtree(arrays)
        # "swap": a folder that Orbax finds in order, with other numbers
        shutil.copytree(states[0] / "arrays" if damage == "swap" else kept, arrays)
        for file in (f for f in arrays.rglob("*") if f.is_file() and f.parent.name == "d" and damage != "swap"):
            data = bytearray(file.read_bytes())
            if damage == "flip":
                for i in range(40, len(data), 97):
                    data[i] ^= 1
            file.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
            if damage == "remove":
                file.unlink()
        for read in (lambda: go(path=copy), lambda: train.load(copy, model)):
            with pytest.raises(OSError, match=f"{states[-1].name} is damaged .*remove that folder"):
                read()
    shutil.rmtree(states[-1])
    same(go(path=copy), whole)


@pytest.mark.parametrize("file", ["run.json", "history.json", "steps/00000008/meta.json"])
@pytest.mark.parametrize("damage", ["cut", "change", "empty"])
def test_a_damaged_note_is_named(copy, file, damage):
    text = (copy / file).read_text()
    changed = text.replace("0", "1", 3) if damage == "change" else text[: len(text) // 2 if damage == "cut" else 0]
    (copy / file).write_text(changed)

    def read():
        train.history(copy)
        train.load(copy, Net(rngs=nnx.Rngs(0)), step=8)

    with pytest.raises(OSError, match=Path(file).name):
        read()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match=r"expected a run or an empty folder.*thesis\.tex"):
        go(path=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "important"


def test_two_processes_do_not_share_a_folder(copy):
    with (copy / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is at work"):
            go(path=copy)
    go(path=copy)
