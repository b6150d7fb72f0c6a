"""The probe over devices and processes: the numbers of one device, and an even share of the work."""

import numpy as np
import pytest

from tests import workers
from tests.probe import devices_worker

WORKER = "tests.probe.devices_worker"
NETWORKS = pytest.mark.parametrize(
    "names", [("nnx",), pytest.param(devices_worker.NAMES, marks=pytest.mark.slow)], ids=["one", "three"]
)
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


@NETWORKS
def test_eight_devices_give_the_numbers_of_one(names):
    workers.finish(workers.start(WORKER, "devices", *names, devices=8), timeout=900)


@NETWORKS
def test_two_processes_give_the_numbers_of_one(tmp_path, names):
    port = workers.free_port()
    both = (workers.start(WORKER, "processes", port, k, tmp_path, *names, devices=2) for k in range(2))
    workers.finish(*both, timeout=900)
    images = devices_worker.sample_images(83)
    for name in names:
        network = devices_worker.sample_networks()[name]
        expected = devices_worker.numbers(devices_worker.measure(network, images))
        similar = devices_worker.compare(network, images, *devices_worker.ways(names))
        whole = [f"{name}-0", f"{name}-1"] if len(names) > 1 else []
        files = whole + (["resumed-0", "resumed-1"] if name == "nnx" else [])
        for file in files:
            found = np.load(tmp_path / f"{file}.npz")
            for key, value in expected.items():
                np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5, err_msg=f"{file} {key}")
            kept = {key: value for key, value in similar.items() if "grams" in key or "resumed" not in file}
            devices_worker.alike(found, kept)
