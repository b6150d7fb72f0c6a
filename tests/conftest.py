"""Strict promotion while testing, so that no room leans on silent broadcasting or silent casts."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

from importlib import metadata

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# What is traced and compiled stays: looking for garbage in it takes a tenth of the time.
gc.set_threshold(100_000, 50, 50)

hypothesis.settings.register_profile("stabjax", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("stabjax")


def pytest_configure(config):
    """The short run compiles ten thousand programs for milliseconds of work each; the long run, as users do."""
    if config.option.markexpr == "not slow":
        flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
        release = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))
        if release < (0, 11):  # later ones have the faster code generator only
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def relaxed_promotion():
    """Standard promotion, for guests (Flax, Equinox, optax) that rely on it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def unchecked():
    """What a user sees, whose calls are not checked at run time: our own errors, and no time for checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def key():
    """The fixed key of the suite."""
    return jax.random.key(20211105)
