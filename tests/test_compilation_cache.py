"""What one process has compiled, the next one reads; what the user has chosen stays."""

import json
import os
import subprocess
import sys

import jax
import pytest

from stabjax import cli
from tests import ROOT

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)

COUNT = """
import collections, json
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.split("/")[-1]]))
{program}
print(json.dumps(counts))
"""

MEASUREMENTS = """
import stabjax as sj
from stabjax._compilation_cache import keep_compiled_programs
keep_compiled_programs()
key = jax.random.key(0)
images = jax.random.normal(key, (6, 8, 8, 2))
arrays = {"conv": {"kernel": jax.numpy.ones((3, 3, 2, 4))}, "dense": {"kernel": jax.numpy.ones((4, 3))}}

def apply(arrays, x):
    x = jax.nn.relu(sj.conv.convolve(x, arrays["conv"]["kernel"]))
    return x.mean((1, 2)) @ arrays["dense"]["kernel"]

network = sj.networks.wrap(jax.tree_util.Partial(apply, arrays))
deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (8, 8), convention="paper")
sj.probe.stability(network, images, key=key, deformation=deformation)
noise = lambda key, *, radius, scale: scale * sj.perturb.SphericalNoise(radius)(key, images[0])
sj.sweep.run(noise, {"radius": [1.0, 2.0], "scale": [1.0, 3.0]}, key=key, seeds=2)
"""


def count_events(program, folder, *, hash_seed):
    """Run a program in a new process with all compilations kept, and return the events of the cache by name."""
    chosen = {name for name in os.environ if name.startswith("JAX_") and "CACHE" in name}
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", COUNT.format(program=program)],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name not in chosen},
            "STABJAX_CACHE": str(folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # Sets, and what is made of them, have another order in each process.
            "PYTHONHASHSEED": str(hash_seed),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1]), finished.stderr


def check_that_the_second_run_compiles_nothing(program, folder):
    first, _ = count_events(program, folder, hash_seed=1)
    assert first["cache_misses"] > 10
    second, said = count_events(program, folder, hash_seed=2)
    assert second["compile_requests_use_cache"] == second["cache_hits"] > 10
    assert "cache_misses" not in second
    assert not said


def test_a_second_process_compiles_nothing(tmp_path):
    check_that_the_second_run_compiles_nothing(MEASUREMENTS, tmp_path)


@pytest.mark.slow
def test_a_second_demo_compiles_nothing(tmp_path):
    argv = [
        "demo",
        "--images",
        "256",
        "--epochs",
        "1",
        "--probed",
        "32",
        "--draws",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    program = f"from stabjax import cli\ncli.main({argv})"
    check_that_the_second_run_compiles_nothing(program, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bounds", "representations"])
def test_a_second_experiment_compiles_nothing(name, tmp_path):
    # The second run reads the training that the first one has finished.
    argv = ["--smoke", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    program = f"from experiments import {name}\n{name}.main({argv})"
    check_that_the_second_run_compiles_nothing(program, tmp_path)


@pytest.fixture
def options(monkeypatch, tmp_path):
    """Options as JAX has them; nothing may be compiled while they are."""
    before = chosen()
    for name in os.environ:
        if name.startswith("JAX_") and "CACHE" in name:
            monkeypatch.delenv(name)
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "cache"))
    for name, value in zip(OPTIONS, (None, True, 1.0)):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def chosen():
    return {name: getattr(jax.config, name) for name in OPTIONS}


@pytest.mark.usefixtures("options")
def test_programs_are_kept_in_the_folder_of_the_user(tmp_path):
    cli.keep_compiled_programs()
    folder = tmp_path / "cache" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o077 == 0
    found = chosen()
    cli.keep_compiled_programs()
    assert chosen() == found


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("name", "value"), [("jax_compilation_cache_dir", "/elsewhere"), ("jax_enable_compilation_cache", False)]
)
def test_what_the_user_has_chosen_stays(name, value, tmp_path):
    jax.config.update(name, value)
    before = chosen()
    cli.keep_compiled_programs()
    assert chosen() == before
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("options")
def test_the_shortest_compilation_that_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    cli.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is not None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1


@pytest.mark.usefixtures("options")
def test_a_folder_that_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Set STABJAX_CACHE"):
        cli.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_imports_change_no_option(tmp_path):
    code = """
import jax
before = dict(jax.config.values)
import stabjax
for room in stabjax.__all__:
    getattr(stabjax, room)
from experiments import layerwise
assert jax.config.values == before
"""
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "STABJAX_CACHE": str(tmp_path)}, check=True
    )
    assert not list(tmp_path.iterdir())
