"""Arrays over explicit mesh axes, the default of `jax.make_mesh`, pass every public entrance."""

import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.parametrize("arguments", [("brief",), pytest.param((), marks=pytest.mark.slow)])
def test_arrays_over_explicit_axes_give_the_numbers_of_one_device(arguments):
    """In a process of its own: the number of devices is fixed when JAX starts."""
    flags = (
        f"--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
    )
    found = subprocess.run(
        [sys.executable, "-m", "tests.probe.sharding_worker", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
