"""Strict promotion while testing, so that no room leans on silent broadcasting or silent casts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# The suite compiles hundreds of small programs and runs each for milliseconds.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {os.environ.get('XLA_FLAGS', '')}"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile("stabjax", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("stabjax")


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
def key():
    """The fixed key of the suite."""
    return jax.random.key(20211105)
