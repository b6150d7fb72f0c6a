"""Every test has a cache of its own; those of the real sets have the one that everybody uses."""

import numpy as np
import pytest

from tests.data.helpers import CACHE, REAL


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own, and knows of no data."""
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STABJAX_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def real(monkeypatch):
    """The real data, and the cache that everybody uses."""
    monkeypatch.setenv("STABJAX_DATA", REAL)
    if CACHE is None:
        monkeypatch.delenv("STABJAX_CACHE")
    else:
        monkeypatch.setenv("STABJAX_CACHE", CACHE)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
