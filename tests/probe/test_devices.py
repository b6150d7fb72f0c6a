"""The probe over devices and processes: the numbers of one device, and an even share of the work."""

import numpy as np
import pytest

from tests import workers
from tests.probe import devices_worker

WORKER = "tests.probe.devices_worker"
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


def test_eight_devices_give_the_numbers_of_one():
    workers.finish(workers.start(WORKER, "devices", devices=8))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    port = workers.free_port()
    workers.finish(*(workers.start(WORKER, "processes", port, k, tmp_path, devices=2) for k in range(2)))
    images = devices_worker.sample_images(83)
    for name, network in devices_worker.sample_networks().items():
        expected = devices_worker.numbers(devices_worker.measure(network, images))
        files = [f"{name}-0", f"{name}-1"] + (["resumed-0", "resumed-1"] if name == "nnx" else [])
        for file in files:
            found = np.load(tmp_path / f"{file}.npz")
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=f"{file} {key}")
