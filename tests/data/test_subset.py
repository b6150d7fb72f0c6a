"""Positions of random subsets."""

import numpy as np
import pytest

from stabjax import data


def test_subset():
    few, many = (data.subset(100, count, seed=3) for count in (10, 40))
    for chosen, count in ((few, 10), (many, 40)):
        assert len(chosen) == len(set(chosen.tolist())) == count
        assert chosen.min() >= 0
        assert chosen.max() < 100
        assert (np.diff(chosen) > 0).all()
    assert set(few) <= set(many)
    # Not the first few, and another seed takes others; the same seed always the same, so these are published numbers.
    assert few.max() > 20
    assert set(few) != set(data.subset(100, 10, seed=4))
    np.testing.assert_array_equal(few, np.sort(np.random.default_rng(3).permutation(100)[:10]))
    np.testing.assert_array_equal(data.subset(7, 500, seed=0), range(7))
    assert data.subset(7, 0, seed=0).shape == (0,)
    with pytest.raises(ValueError, match="at least 0, got total 7 and count -1"):
        data.subset(7, -1, seed=0)
