"""What is kept of activations: moments that merge in any grouping, and changes of one batch."""

import dataclasses
from typing import Any
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np

from stabjax import features, perturb, probe
from stabjax._numerics import centered
from stabjax.probe._moments import LayerMoments


def test_moments_merge_in_any_grouping():
    rng = np.random.default_rng(0)
    rows = (1000 + rng.normal(size=(60, 3))).astype(np.float32)
    weights = (rng.random(60) > 0.2).astype(np.float32)
    rows[weights == 0] = np.nan
    kept = rows[weights > 0].astype(np.float64)
    parts_of = [probe.Moments.of(r, w) for r, w in zip(np.split(rows, 6), np.split(weights, 6))]
    nothing = probe.Moments.init((3,))
    left = nothing
    for part in parts_of:
        left = left.merge(part)
    right = parts_of[3].merge(parts_of[4].merge(parts_of[5])).merge(nothing)
    grouped = parts_of[0].merge(parts_of[1]).merge(parts_of[2]).merge(right)
    for found in (left, grouped):
        assert found.count == len(kept)
        np.testing.assert_allclose(found.mean, kept.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.squares + found.lost, np.sum((kept - kept.mean(0)) ** 2), rtol=1e-4)
        pairs = np.mean(np.sum((kept[:, None] - kept[None]) ** 2, 2))
        np.testing.assert_allclose(found.pair_distance, pairs, rtol=1e-4)


def test_moments_of_several_layers_are_those_of_each():
    rng = np.random.default_rng(1)
    layers = [(50 + rng.normal(size=(4, 10, units))).astype(np.float32) for units in (2, 7)]
    weights = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 1], np.float32)
    together = LayerMoments.init([np.zeros(2, np.float32), np.zeros(7, np.float32)])
    alone = [probe.Moments.init((2,)), probe.Moments.init((7,))]
    for batch in range(4):
        means, distances = zip(*(centered(layer[batch], weights=weights) for layer in layers))
        together = together.merge(LayerMoments.of_distances(means, jnp.stack(distances, axis=1), jnp.asarray(weights)))
        alone = [each.merge(probe.Moments.of(layer[batch], weights)) for each, layer in zip(alone, layers)]
    for k, each in enumerate(alone):
        np.testing.assert_allclose(together.means[k], each.mean, rtol=1e-6)
        np.testing.assert_allclose(together.pair_distance[k], each.pair_distance, rtol=1e-6)
    assert together.count == alone[0].count


def test_equal_rows_have_no_scatter():
    row = jnp.full((5, 2), 0.1)
    moments = probe.Moments.of(row).merge(probe.Moments.of(row)).merge(probe.Moments.of(row))
    assert moments.squares == 0
    assert moments.lost == 0


def test_all_versions_in_one_array_or_apart():
    rng = np.random.default_rng(0)
    versions = jnp.asarray(rng.normal(size=(5, 6, 4, 3)), jnp.float32)
    context: Any = MagicMock(spec=probe.Context, weights=jnp.array([1.0, 1, 1, 0, 1, 1]))
    measurement, tap = probe.RelativeStability(), features.Tap("x", "other", (6, 4, 3), np.dtype(np.float32), 2)
    one = measurement.reduce_versions(tap, versions, context)
    apart = measurement.reduce(tap, versions[0], versions[1:3], versions[3:], context)
    for found, expected in zip(one, apart, strict=True):
        np.testing.assert_array_equal(found, expected)
    changes = np.square(np.asarray(versions) - np.asarray(versions[:1])).sum((2, 3))
    np.testing.assert_allclose(np.concatenate([one.deformed, one.noisy]), changes[1:], rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class OfSigns(probe.RelativeStability):
    """Measure signs instead of activations."""

    def reduce(self, tap, clean, deformed, noisy, context):
        return super().reduce(tap, jnp.sign(clean), jnp.sign(deformed), jnp.sign(noisy), context)


def test_a_measurement_made_from_it_reduces_in_its_own_way():
    images = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    noise = perturb.GaussianNoise(0.5)
    options = {"key": jax.random.key(0), "deformation": perturb.Translation(1.0), "noise": noise}
    found = probe.run(jnp.tanh, images, {"plain": probe.RelativeStability(), "signs": OfSigns()}, **options)
    of_signs = probe.stability(jnp.sign, images, **options)
    output = found["signs"].layers.index("output")
    np.testing.assert_allclose(found["signs"].relative[output], of_signs.relative[-1], rtol=1e-6)
    assert not np.allclose(found["signs"].relative[output], found["plain"].relative[output])
