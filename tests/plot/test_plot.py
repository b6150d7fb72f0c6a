"""Figures: the numbers drawn are the numbers given."""

import dataclasses
import json
import warnings
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.legend import Legend

import stabjax as sj


def result(seed, *, layers=("input", "conv", "relu_0", "output"), dead=None, strength=1.0):
    kinds = ("input", "conv", "activation", "output")
    rng = np.random.default_rng(seed)

    def features(scale):
        return {name: (rng.normal(size=(30, 4)) * scale).astype(np.float32) for name in layers}

    clean = features(1.0)
    if dead:
        clean[dead][:] = 0
    deformed = {
        name: value + 0.1 * strength * rng.normal(size=value.shape).astype(np.float32) for name, value in clean.items()
    }
    noisy = {
        name: value + 0.2 * strength * rng.normal(size=value.shape).astype(np.float32) for name, value in clean.items()
    }
    return sj.stability.from_features(
        jax.random.key(seed), clean, deformed, noisy, kinds=dict(zip(layers, kinds, strict=True))
    )


def curves(axes):
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def test_layerwise_draws_the_numbers():
    initial, trained = result(0), result(1)
    figure = sj.plot.layerwise({"at initialization": initial, "trained": trained}, title="a title")
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
    assert texts == ["at initialization", "trained", "input", "conv", "activation"]


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
    from stabjax.features._traced import KINDS

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


@pytest.fixture
def strict():
    """Every warning of Matplotlib and NumPy is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def said(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def at_the_foot(axes):
    """Layers and markers of what is drawn at the foot of a panel, where a logarithmic axis has no zero."""
    foot = [
        line for line in axes.lines if line.get_transform() == axes.get_xaxis_transform() and not line.get_clip_on()
    ]
    assert all(np.all(line.get_ydata() == 0) for line in foot)
    return {int(k): line.get_marker() for line in foot for k in line.get_xdata()}


@pytest.mark.parametrize(
    "many", [lambda x: x, lambda x: [x], lambda x: {"": x}, lambda x: jax.tree.map(lambda a: a[None], x)]
)
def test_one_result_needs_no_label(strict, many):
    one = result(0)
    figure = sj.plot.layerwise(many(one))
    figure.canvas.draw()
    for axes, name in zip(figure.axes, ("deformation", "noise", "relative")):
        (curve,) = curves(axes)
        np.testing.assert_allclose(curve.get_ydata(), np.asarray(getattr(one, name)), rtol=1e-6)
        assert not said(axes)
        assert not at_the_foot(axes)


def test_stacked_results_are_several_networks():
    results = [result(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
    first, second = (sj.plot.layerwise({"a": given}).axes[2] for given in (results, stacked))
    np.testing.assert_allclose(curves(first)[0].get_ydata(), curves(second)[0].get_ydata(), rtol=1e-6)


def test_what_is_no_result_is_refused(unchecked):
    for wrong in (3, None, "name", np.ones(4), {"a": 3}, [3]):
        with pytest.raises(TypeError, match=r"expected a stabjax\.stability\.Stability or a sequence of them, got "):
            sj.plot.layerwise(wrong)
    with pytest.raises(ValueError, match="at least one result"):
        sj.plot.layerwise([])


def test_zeros_stand_at_the_foot(strict):
    cold, warm = result(0, dead="relu_0", strength=0.0), result(0, dead="relu_0")
    moved = [0, 1, 3]

    figure = sj.plot.layerwise(cold)
    figure.canvas.draw()
    *above, below = figure.axes
    for axes in above:
        assert sorted(at_the_foot(axes)) == moved
        assert at_the_foot(axes)[0] == sj.plot.MARKERS["input"]
        assert said(axes) == ["at the foot: 0"]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0"]
    assert said(below) == ["undefined in all layers"]
    assert len(below.get_yticks()) == 0

    figure = sj.plot.layerwise({"cold": cold, "warm": warm})
    figure.canvas.draw()
    for axes, name in zip(figure.axes, ("deformation", "noise", "relative")):
        assert axes.get_yscale() == "log"
        assert sorted(at_the_foot(axes)) == (moved if name != "relative" else [])
        expected = np.asarray(getattr(warm, name), np.float64)
        np.testing.assert_allclose(curves(axes)[1].get_ydata()[moved], expected[moved], rtol=1e-6)
        assert axes.get_ylim()[0] > np.nanmin(expected) / 10


def test_one_zero_makes_a_geometric_mean_of_zero(strict):
    one, other = result(0), result(1)
    still = dataclasses.replace(other, deformation=other.deformation.at[2].set(0.0))
    axes = sj.plot.layerwise([one, still]).axes[0]
    axes.figure.canvas.draw()
    assert list(at_the_foot(axes)) == [2]
    both = np.stack([np.asarray(x.deformation, np.float64) for x in (one, still)])
    mean = np.exp(np.log(both[:, [0, 1, 3]]).mean(0))
    np.testing.assert_allclose(curves(axes)[0].get_ydata()[[0, 1, 3]], mean, rtol=1e-6)


def test_an_interval_that_reaches_zero(strict):
    one = result(0)
    axes = sj.plot.layerwise(
        dataclasses.replace(one, deformation_interval=one.deformation_interval.at[:, 0].set(0.0))
    ).axes[0]
    axes.figure.canvas.draw()
    assert axes.get_ylim()[0] > 1e-4


def test_names_on_logarithmic_axes_leave_out_zero(strict):
    figure, grid = sj.plot.panels(1, 1)
    axes = grid[0, 0]
    axes.plot([1, 10], [1, 10], "o")
    axes.set_xscale("log")
    sj.plot.name_points(axes, {"a": (1.0, 1.0), "zero": (0.0, 5.0), "below": (3.0, -1.0)})
    assert [text.get_text() for text in axes.texts] == ["a", "below"]
    figure.canvas.draw()


def test_results_are_saved_as_they_say(tmp_path):
    one = result(0)
    figure, _ = sj.plot.panels(1, 1)
    sj.plot.save(figure, tmp_path / "bare", one)
    sj.plot.save(figure, tmp_path / "nested", {"trained": [one]})
    bare, nested = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("bare", "nested"))
    assert bare == nested["trained"][0] == one.to_json()
    for wrong in (object(), 1j, {"a": object()}):
        with pytest.raises(
            TypeError, match=r"a record of numbers, text, lists and mappings, got (object|complex) in it"
        ):
            sj.plot.save(figure, tmp_path / "wrong", wrong)
    assert not list(tmp_path.glob("wrong*"))


def of_layers(names):
    """A result of random features after these layers."""
    rng = np.random.default_rng(0)
    features = [{name: rng.normal(size=(9, 3)).astype(np.float32) for name in names} for _ in range(3)]
    return sj.stability.from_features(jax.random.key(0), *features)


def test_a_figure_of_a_given_width_leaves_out_names():
    layers = ("input", *(f"a_long_path/of_a_block_{k:03}/conv_and_more" for k in range(98)), "output")
    many = of_layers(layers)
    wide, narrow = sj.plot.layerwise(many), sj.plot.layerwise(many, width=8)
    assert wide.get_size_inches()[0] > 25
    assert narrow.get_size_inches()[0] == 8
    names = [text.get_text() for text in narrow.axes[-1].get_xticklabels()]
    assert names == [name if len(name) < 32 else f"…{name[-31:]}" for name in layers][::2]
    narrow.canvas.draw()
    boxes = [text.get_window_extent() for text in narrow.axes[-1].get_xticklabels()]
    assert all(left.x1 <= right.x0 + 1 for left, right in pairwise(boxes))
    assert len(narrow.axes[-1].lines[0].get_xdata()) == 100


def test_networks_of_other_layers_are_drawn_by_depth():
    first, second = result(0), of_layers(("input", "conv", "output"))
    with pytest.raises(ValueError, match=r"draw them against depth, plot\.by_depth"):
        sj.plot.layerwise({"a": first, "b": second})
    figure = sj.plot.by_depth({"a": first, "b": [second, second]}, title="two")
    for axes, name in zip(figure.axes, ("deformation", "noise", "relative")):
        one, two = curves(axes)
        np.testing.assert_allclose(one.get_xdata(), [0, 1 / 3, 2 / 3, 1])
        np.testing.assert_allclose(two.get_xdata(), [0, 1 / 2, 1])
        np.testing.assert_allclose(one.get_ydata(), np.asarray(getattr(first, name)), rtol=1e-6)
        np.testing.assert_allclose(two.get_ydata(), np.asarray(getattr(second, name)), rtol=1e-6)
    with pytest.raises(ValueError, match="give each its own label"):
        sj.plot.by_depth({"a": [first, second]})


def test_a_figure_for_a_page():
    figure = sj.plot.layerwise(result(0), width=8)
    notes = {0: "<first>", 1: "second", 2: "third", 3: "fourth & last"}
    svg = sj.plot.to_svg(figure, notes=notes)
    assert svg == sj.plot.to_svg(sj.plot.layerwise(result(0), width=8), notes=notes)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert "width" not in root.attrib
    assert "#000000" not in svg
    assert "http" not in svg
    columns = [element for element in root.iter("rect") if element.get("class") == "column"]
    assert [column.find("title").text for column in columns] == list(notes.values())
    # Each column lies around the tick of its operation.
    _, _, inches, _ = map(float, root.get("viewBox").split())
    figure.canvas.draw()
    axes = figure.axes[-1]
    for place, column in zip(notes, columns, strict=True):
        fraction = axes.transData.transform((place, 1))[0] / figure.bbox.width
        left = float(column.get("x")) / inches
        assert left < fraction < left + float(column.get("width")) / inches
    axes.set_xscale("log")
    figure.axes[0].set_xscale("log")
    with pytest.raises(ValueError, match="a linear x axis below the notes, got a log one"):
        sj.plot.to_svg(figure, notes=notes)
