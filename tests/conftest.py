"""Strict promotion while testing, so that no room leans on silent broadcasting or silent casts."""

import gc
import os
import re

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# The command line and the experiments keep what they compile; the folder of whoever runs the tests is not theirs.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")
# For the workers of pytest-xdist, which inherit it: there is one for each core, and more threads of NumPy's linear
# algebra would only wait in a loop.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from importlib import metadata

import hypothesis
import jax
import jaxtyping
import pytest
from jax._src.interpreters import mlir, partial_eval

from tests import ROOT

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Types and shapes are checked at every call of the modules that annotate shapes; of others, the type checker knows as
# much. Not in those of many short calls without arrays, and in those that define functions inside of functions: the
# check of a function is written anew wherever the function is defined.
UNCHECKED = ("receptive/_box_axes", "receptive/_box_windows")
PACKAGE = ROOT / "stabjax"
SHAPED = [path for path in PACKAGE.rglob("*.py") if re.search("from (jaxtyping|stabjax._types) ", path.read_text())]
FILES = [path.relative_to(ROOT).with_suffix("") for path in SHAPED]
CHECKED = [".".join(file.parts) for file in FILES if not str(file.relative_to("stabjax")).startswith(UNCHECKED)]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

hypothesis.settings.register_profile("stabjax", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("stabjax")


def share_one_mlir_context():
    """Lower all programs in one MLIR context: JAX makes a new one for each, which takes a tenth of the suite's time.

    A program that is compiled while another is being lowered gets its own, as it must not become a part of the other.
    """
    make, shared = mlir.make_ir_context, mlir.make_ir_context()

    def make_or_share():
        return shared if mlir.ir.Context.current is None else make()

    mlir.make_ir_context = make_or_share


def pytest_collection_finish(session):
    # What is imported, traced and compiled stays: looking for garbage in it takes a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def pytest_configure(config):
    """The short run compiles ten thousand programs for milliseconds of work each; the long run, as users do."""
    if "not slow" in config.option.markexpr:
        flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
        release = tuple(map(int, metadata.version("jaxlib").split(".")[:2]))
        if release < (0, 11):  # later ones have the faster code generator only
            flags.append("--xla_cpu_use_fusion_emitters=false")
        os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])
        share_one_mlir_context()
        # Flax asks every tracer for its sharding while a network is made, and JAX searches the program for where the
        # tracer comes from, for the text of an error that nobody reads.
        partial_eval.DynamicJaxprTracer._origin_msg = lambda tracer: ""


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
