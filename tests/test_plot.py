"""Figures: the numbers drawn are the numbers given."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.legend import Legend

import stabjax as sj


def result(seed, *, layers=("input", "conv", "relu_0", "output"), dead=None):
    kinds = ("input", "conv", "activation", "output")
    rng = np.random.default_rng(seed)

    def features(scale):
        return {name: (rng.normal(size=(30, 4)) * scale).astype(np.float32) for name in layers}

    clean = features(1.0)
    if dead:
        clean[dead][:] = 0
    deformed = {name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32) for name, value in clean.items()}
    noisy = {name: value + 0.2 * rng.normal(size=value.shape).astype(np.float32) for name, value in clean.items()}
    return sj.stability.from_features(
        jax.random.key(seed), clean, deformed, noisy, kinds=dict(zip(layers, kinds, strict=True))
    )


def curves(axes):
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def test_layerwise_draws_the_numbers():
    initial, trained = result(0), result(1)
    figure = sj.plot.layerwise({"at initialisation": initial, "trained": trained}, title="a title")
    panels = figure.axes
    assert len(panels) == 3
    for axes, name in zip(panels, ("deformation", "noise", "relative")):
        first, second = curves(axes)
        np.testing.assert_allclose(first.get_ydata(), np.asarray(getattr(initial, name)), rtol=1e-6)
        np.testing.assert_allclose(second.get_ydata(), np.asarray(getattr(trained, name)), rtol=1e-6)
        assert axes.get_yscale() == "log"
        assert axes.get_ylabel().endswith(("$D$", "$G$", "$R = D/G$"))
    assert [text.get_text() for text in panels[-1].get_xticklabels()] == list(initial.layers)
    legends = [child for child in panels[0].get_children() if isinstance(child, Legend)]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert texts == ["at initialisation", "trained", "input", "conv", "activation"]


def test_seeds_are_drawn_as_geometric_mean_with_their_deviation():
    results = [result(seed) for seed in range(3)]
    figure = sj.plot.layerwise({"trained": results})
    logs = np.log(np.stack([np.asarray(one.relative, np.float64) for one in results]))
    (curve,) = curves(figure.axes[2])
    np.testing.assert_allclose(curve.get_ydata(), np.exp(logs.mean(0)), rtol=1e-6)
    low = figure.axes[2].collections[0].get_paths()[0].vertices[:, 1].min()
    np.testing.assert_allclose(low, np.exp(logs.mean(0) - logs.std(0, ddof=1)).min(), rtol=1e-6)


def test_undefined_layers_are_left_out():
    figure = sj.plot.layerwise({"trained": result(0, dead="relu_0")})
    (curve,) = curves(figure.axes[0])
    assert np.isnan(curve.get_ydata()[2])
    assert np.isfinite(curve.get_ydata()[[0, 1, 3]]).all()


def test_layers_must_agree():
    with pytest.raises(ValueError, match="layers"):
        sj.plot.layerwise({"a": result(0), "b": result(0, layers=("input", "conv", "relu_1", "output"))})
    with pytest.raises(ValueError, match="at least one result"):
        sj.plot.layerwise({"a": []})
    with pytest.raises(ValueError, match="at least one result"):
        sj.plot.layerwise({})


def test_every_kind_has_a_marker():
    from stabjax.features._capture import KINDS

    assert set(KINDS) <= set(sj.plot.MARKERS)


def test_panels_and_what_is_saved_beside_them(tmp_path):
    figure, axes = sj.plot.panels(2, 3, size=(2.0, 1.5), sharex=True)
    assert axes.shape == (2, 3)
    assert tuple(figure.get_size_inches()) == (6.0, 3.0)
    axes[1, 2].plot([1, 2], [3, 4])
    record = {
        "numbers": np.array([[1.5, np.nan], [np.inf, 2]], np.float32),
        "count": np.int64(3),
        "traced": jax.numpy.float32(0.25),
        "folder": Path("figures"),
        "nested": {1: (True, None, float("nan"), "text")},
    }
    said = sj.plot.save(figure, tmp_path / "new" / "name.of.it", record)
    assert "name.of.it.png" in said
    for suffix in ("png", "pdf"):
        assert (tmp_path / "new" / f"name.of.it.{suffix}").stat().st_size > 1000
    assert json.loads((tmp_path / "new" / "name.of.it.json").read_text()) == {
        "numbers": [[1.5, None], [None, 2.0]],
        "count": 3,
        "traced": 0.25,
        "folder": "figures",
        "nested": {"1": [True, None, None, "text"]},
    }


def test_names_of_points_stand_clear_inside():
    from matplotlib.text import Text

    figure, grid = sj.plot.panels(1, 1)
    axes = grid[0, 0]
    draw = np.random.default_rng(0)
    points = {f"network {k}": tuple(xy) for k, xy in enumerate(10 ** draw.uniform(-1, 1, (14, 2)))}
    points |= {"twin": points["network 0"], "failed": (np.nan, 1.0)}
    axes.loglog(*np.array(list(points.values())).T, "o", label="all")
    axes.legend(loc="upper left")
    sj.plot.name_points(axes, points)
    figure.canvas.draw()
    boxes = {text.get_text(): Text.get_window_extent(text).extents for text in axes.texts}
    assert set(boxes) == set(points) - {"failed"}
    frame = axes.get_window_extent().extents
    for a, first in boxes.items():
        assert np.all(first[:2] >= frame[:2]), a
        assert np.all(first[2:] <= frame[2:]), a
        for b, second in boxes.items():
            apart = np.any(first[2:] <= second[:2]) or np.any(second[2:] <= first[:2])
            assert a == b or apart, (a, b)


def test_ticks_of_short_and_long_logarithmic_axes():
    figure, grid = sj.plot.panels(1, 2)
    for axes, high in zip(grid[0], (30, 3e4), strict=True):
        axes.loglog([1, high], [1, high])
        sj.plot.plain_ticks(axes.xaxis)
    figure.canvas.draw()
    short, long = ([label.get_text() for label in axes.get_xticklabels()] for axes in grid[0])
    assert {"1", "2", "5", "10", "20"} <= set(short)
    assert "2" not in long
