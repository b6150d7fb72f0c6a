"""Several devices, several processes, and kills."""

import random
import signal
import time
from functools import partial

import pytest
import xarray

from tests import workers
from tests.sweep import sweep_worker
from tests.sweep.helpers import chunks

worker = partial(workers.start, "tests.sweep.sweep_worker")


def load(file):
    return xarray.load_dataset(file, engine="scipy")


def test_eight_devices_give_the_values_of_one(tmp_path):
    workers.finish(worker("devices", tmp_path, devices=8))
    alone = sweep_worker.sweep()
    for name in ("spread", "stored"):
        found = load(tmp_path / f"{name}.nc")
        xarray.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
        assert found.attrs["device"] == "cpu (cpu, 8)"


def test_two_processes_get_everything_and_one_writes(tmp_path):
    port = workers.free_port()
    workers.finish(*(worker("processes", port, k, tmp_path) for k in range(2)))
    first, *others = (load(tmp_path / f"{name}-{k}.nc") for name in ("first", "again") for k in range(2))
    xarray.testing.assert_allclose(first, sweep_worker.sweep(), rtol=1e-5, atol=1e-6)
    for other in others:
        xarray.testing.assert_identical(first, other)
    assert len(chunks(tmp_path / "files-0")) == 2 * -(-3 * 2 * 5 // 4)
    assert not (tmp_path / "files-1").exists()


@pytest.mark.parametrize("moments", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_sweep_resumes_to_the_same_bits(tmp_path, moments):
    draw = random.Random(moments)
    expected = sweep_worker.long_sweep()
    total = 3 * 2 * 40
    counts = []
    for k in range(moments):
        path = tmp_path / str(k)
        process = worker("kill", path)
        assert process.stdout.readline() == "ready\n"
        # A moment counted in chunks as well as in time: machines differ in speed.
        wanted = draw.randrange(total // 2)
        while len(chunks(path)) < wanted and process.poll() is None:
            time.sleep(1e-4)
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(chunks(path)))
        xarray.testing.assert_identical(sweep_worker.long_sweep(path), expected)
        assert len(chunks(path)) == total
    assert any(0 < count < total for count in counts), counts
