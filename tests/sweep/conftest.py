"""A finished sweep, in memory and on disk."""

import shutil
from pathlib import Path

import pytest

from stabjax import sweep
from tests.sweep.helpers import AXES, cell, go


@pytest.fixture
def whole(key):
    return sweep.run(cell, AXES, key=key, seeds=2, chunk=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "finished"
    return go(path), path


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[1], tmp_path / "copy"))
