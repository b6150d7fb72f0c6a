"""Arrays over explicit mesh axes, the default of `jax.make_mesh`, pass every public entrance."""

import pytest

from tests import workers


@pytest.mark.parametrize("arguments", [("brief",), pytest.param((), marks=pytest.mark.slow)])
def test_arrays_over_explicit_axes_give_the_numbers_of_one_device(arguments):
    """In a process of its own: the number of devices is fixed when JAX starts."""
    workers.finish(workers.start("tests.probe.sharding_worker", *arguments, devices=4), timeout=600)
