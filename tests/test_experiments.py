"""Experiments and the command line run from end to end, at a size of seconds."""

import ast
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import tyro

from stabjax import cli
from tests import ROOT

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")

EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiment_imports_another(name):
    tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    modules = {alias.name for node in imports if node.module == "experiments" for alias in node.names}
    modules |= {node.module.split(".")[1] for node in imports if node.module.startswith("experiments.")}
    assert "_study" in modules
    assert all(module.startswith("_") for module in modules)


# The most expensive to compile run in the long run alone. What they share with others runs in the short one too, and
# docs/results.md draws the figure of `relative_stability` there.
LONG = (
    "bounds",
    "constant_filters",
    "convolutions",
    "layerwise",
    "noise_curves",
    "relative_stability",
    "representations",
    "training",
)


# Run in tests/guests, with the packages that they need.
GUESTS = ("pretrained",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
        for name in EXPERIMENTS
        if name not in GUESTS
    ],
)
def test_smoke(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    runs = ["--runs", str(tmp_path / "runs")] if hasattr(module.Config, "runs") else []
    figures = module.main(["--smoke", "--out", str(tmp_path), *runs])
    assert figures
    for figure, record in figures.items():
        for suffix in ("png", "pdf", "json"):
            assert 0 < (tmp_path / f"{figure}.{suffix}").stat().st_size < 1_000_000
        written = json.loads((tmp_path / f"{figure}.json").read_text())
        assert set(written) == set(record)
        assert written["command"].startswith(f"python -m experiments.{name}")
        assert written["versions"] == cli.versions()
        assert written["config"]["smoke"]
        CHECKS[name](written)


def check_layerwise(written):
    for label, (result,) in written["results"].items():
        assert result["layers"][0] == "input", label
        assert result["relative"][0] == pytest.approx(1, rel=1e-4)
        assert all(np.isfinite(result["relative"]))


def check_bounds(written):
    assert len(written["stages"]) == 3
    for stage, found in written["stages"].items():
        certified, local = np.array(found["certified"]), np.array(found["local"])
        assert len(certified) == len(found["layers"]) == 2
        for what in ("deformation", "noise", "found", "local"):
            assert (np.array(found[what]) <= certified).all(), (stage, what)
        # The first layer is linear: as steep everywhere as at the steepest image, and almost as its bound.
        assert found["found"][0] == pytest.approx(local[0], rel=1e-3)
        assert local[0] == pytest.approx(certified[0], rel=0.05)
    *_, inside = written["stages"].values()
    assert max(inside["largest_norm_of_a_kernel_after_each_epoch"]) <= written["config"]["bound"]


def check_constant_filters(written):
    if "closed_form" in written:
        measured = np.array(written["measured"]["numerator_over_radius_squared"])
        # The closed form is on a grid twice as fine; two noises of 64 images.
        exact = np.array(written["closed_form"]["numerator_over_radius_squared"])[:, ::2]
        np.testing.assert_allclose(measured, exact, rtol=0.15)
    for name, numbers in written.get("networks", {}).items():
        if "exact" in numbers:
            for quantity in ("deformation_numerators", "denominators", "deformation"):
                np.testing.assert_allclose(numbers["measured"][quantity], numbers["exact"][quantity], rtol=1e-5)
            np.testing.assert_allclose(numbers["measured"]["noise"], numbers["exact"]["noise"], rtol=0.2)
        elif "receptive_fields" in numbers:
            assert numbers["sums_of_squared_differences"][0] == 2, name


def check_receptive_fields(written):
    for network in written.get("networks", {}).values():
        for layer, extent in network["extents"].items():
            for sizes in network["effective_size"].values():
                size = sizes[network["layers"].index(layer)]
                assert size is None or 0 < size <= 1.01 * extent["size"][0]
    if "box" in written:
        (top, bottom), (left, right) = written["box"]
        gradient = np.array(written["gradient"]["last"])
        assert gradient.max() > 0
        gradient[max(top, 0) : bottom, max(left, 0) : right] = 0
        assert gradient.max() == 0


def check_relative_stability(written):
    records = written["networks"]
    assert len(records) == 3
    for network in records.values():
        (trained,) = network["stability"]["best"]
        for numbers in trained.values():
            assert numbers["relative"] == pytest.approx(numbers["deformation"] / numbers["noise"], rel=1e-4)
            low, high = numbers["relative_interval"]
            assert low <= numbers["relative"] <= high
        # One draw of two: not the same, but not far.
        assert trained["published"]["relative"] != trained["median"]["relative"]
        assert network["parameters"] > 0


def check_noise_curves(written):
    for network in written.get("networks", {}).values():
        for curve in network.values() if "same class" in network else (network,):
            radius = np.array(curve["radius"])
            assert (np.diff(radius, axis=-1) > 0).all()
            changed = np.array(curve["noise_changed"])
            assert ((changed >= 0) & (changed <= 1)).all()
            # In the linear regime a step ten times as long changes outputs a hundred times as much.
            slope = np.polyfit(np.log(radius[..., :3].ravel()), np.log(np.array(curve["noise"])[..., :3].ravel()), 1)[0]
            assert 1.2 < slope < 2.8


def check_training(written):
    for network in written["networks"].values():
        if "epoch" in network:
            assert network["epoch"][0] == 0
            assert all(r > 0 for r in network["R"])
        else:
            assert np.shape(network["equal steps"]["R"]) == (2, 1)


def check_convolutions(written):
    if "top" in written:
        for name, (low, high) in written["range"].items():
            assert low < 0 < high, name
    if "routes" in written:
        for table in written["routes"].values():
            for each in table.values():
                assert max(each["error"]) < 1e-5
                assert all(low <= t <= high for t, (low, high) in zip(each["seconds"], each["interval"], strict=True))
    if "box" in written:
        assert written["box"] == [[9, 16], [9, 16]]
        assert written["pixels_with_a_path"] == written["pixels_that_change_it"] == 49
        assert written["all_within_the_box"]
        one = np.array([1, 1, 2, 1, 2, 1, 1])
        np.testing.assert_array_equal(written["paths"], np.outer(one, one))
    if "largest_difference" in written:
        assert written["largest_difference"] < 1e-5
        assert written["root_mean_square"]["sum"] > 0
    if "networks" in written:
        dense = written["networks"]["dense 784-50-10"]
        assert dense["parameters"] == 39_760
        assert np.shape(dense["accuracy"]) == (2, 1)


def check_vanishing_gradients(written):
    assert written["exponents"]["nearest"][2] > written["exponents"]["farthest"][2]
    middle = {name: (found["smallest"][2], found["largest"][2]) for name, found in written["gradients"].items()}
    assert middle["plain, float64"][1] < 1e-8
    assert middle["plain, median bandwidth"][0] > 1e-4
    assert middle["log space"][1] > 1 > 1e-8 > middle["log space"][0]
    start = {name: climb["objective"][2][0] for name, climb in written["climbs"].items()}
    assert max(start.values()) - min(start.values()) < 1e-3
    assert written["climbs"]["log space"]["objective"][2][-1] > start["log space"] + 1
    assert written["climbs"]["plain, float64"]["objective"][2][-1] < start["log space"] + 1


def check_representations(written):
    results = written.get("results", {})
    for result in results.values():
        matrix = np.array(result["matrix"], float)
        assert matrix.shape == (len(result["layers"]), len(result["other_layers"]))
        assert np.nanmax(np.abs(matrix)) <= 1
        assert result["images"] == written["config"]["images"]
    if "1" in results:
        last = max(results, key=float)
        np.testing.assert_allclose(np.diag(results[last]["matrix"]), 1, atol=1e-5)
    for numbers in written.get("ways", {}).values():
        values = np.array(numbers["correlations"])
        assert ((values >= 0) & (values <= 1)).all()
        assert numbers["valid"]
    if "saved" in written:
        assert written["saved"]["all positions"] == {"times_faster": 1, "largest_difference": 0}


CHECKS = {
    "bounds": check_bounds,
    "constant_filters": check_constant_filters,
    "convolutions": check_convolutions,
    "layerwise": check_layerwise,
    "noise_curves": check_noise_curves,
    "receptive_fields": check_receptive_fields,
    "relative_stability": check_relative_stability,
    "representations": check_representations,
    "training": check_training,
    "vanishing_gradients": check_vanishing_gradients,
}


def test_law_of_planted_points():
    """``eps = 0.2 R^0.5`` with a network at chance and one that diverged beside it."""
    from experiments import relative_stability as study

    def network(r, error, family):
        numbers = {"relative": r, "deformation": 0.03 / error, "noise": 0.03 / error / r}
        numbers |= {f"{name}_interval": [value, value] for name, value in numbers.items()}
        return {"family": family, "test_error": {"best": [error]}, "stability": {"best": [{"median": numbers}]}}

    rs = np.geomspace(0.1, 5, 9)
    records = {f"net {k}": network(r, 0.2 * r**0.5, "abc"[k % 3]) for k, r in enumerate(rs)}
    records |= {
        "chance": network(0.9, 0.9, "a"),
        "not finite": network(np.nan, 0.5, "b"),
        "diverged": network(0.9, 0.5, "b") | {"diverged": [17]},
        "stopped at once": network(0.9, np.nan, "b") | {"diverged": [0]},
    }
    # One of two seeds failed: the other one counts.
    first, failed = records["net 0"], network(3.0, 0.9, "a")
    for part in ("test_error", "stability"):
        first[part]["best"] += failed[part]["best"]
    found = study.law(records, resamples=50)
    assert found["left_out"] == ["chance", "diverged", "not finite", "stopped at once"]
    np.testing.assert_allclose([found["amplitude"], found["exponent"]], [0.2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found["exponent_interval"], [0.5, 0.5], rtol=1e-6)
    assert found["rank_correlation"]["R"] == pytest.approx(1)
    assert found["rank_correlation"]["D"] == pytest.approx(-1)
    assert set(found["without_family"]) == {"a", "b", "c"}
    assert study.law(records, stage="last", resamples=2)["amplitude"] == found["amplitude"]
    assert study.draw(records).axes[0].get_xscale() == "log"
    with pytest.raises(ValueError, match="expected statistic"):
        study.law(records, statistic="medians")


def test_gradients_of_far_gaussians():
    """Against the derivative by hand, in both precisions, at both bandwidths."""
    from experiments import vanishing_gradients as study

    y = np.random.default_rng(1).normal(size=(50, 10, 3))
    difference = np.array(study.X) - y**2
    distances = (difference**2).sum(-1)
    for name, variant in study.VARIANTS.items():
        sigma = (np.median(distances, axis=1) if variant.median else np.ones(50))[:, None]
        weights = np.exp(-distances / sigma)
        total = weights.sum(1, keepdims=True)
        sigmoid = 1 / (1 + np.exp(-total))
        outer = 1 / total if variant.objective is study.log_space else sigmoid * (1 - sigmoid)
        expected = np.linalg.norm((outer * weights / sigma)[..., None] * 4 * y * difference, axis=-1)
        norms, value = study.gradients(y, variant)
        single = variant.dtype == np.float32
        np.testing.assert_allclose(norms, expected, rtol=1e-4 if single else 1e-9, atol=1e-36 if single else 0)
        exact = np.log(total) if variant.objective is study.log_space else sigmoid
        np.testing.assert_allclose(value, exact[:, 0], rtol=1e-6 if single else 1e-12, err_msg=name)


def test_a_damaged_file_is_made_again_and_another_one_is_not_read(tmp_path):
    from experiments import _records

    file, calls = tmp_path / "deep" / "record.json", []

    def compute():
        calls.append(1)
        return {"value": (len(calls), np.nan)}

    first = _records.load_or_compute(file, {"of": (1, 2)}, compute)
    assert (
        _records.load_or_compute(file, {"of": [1, 2]}, compute)
        == first
        == {"of": [1, 2], "value": [1, pytest.approx(np.nan, nan_ok=True)]}
    )
    file.write_text(file.read_text()[:-9])
    assert _records.load_or_compute(file, {"of": (1, 2)}, compute)["value"][0] == 2
    assert _records.load_or_compute(file, {"of": (1, 3)}, compute)["value"][0] == 3
    assert [path.name for path in file.parent.iterdir()] == ["record.json"]


def test_networks_that_join_the_figure(tmp_path):
    """A Linen and an Equinox module; what cannot join says why."""
    import equinox as eqx
    import jax
    from flax import linen, nnx

    import stabjax as sj
    from experiments import relative_stability as study

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(linen.relu(linen.Conv(4, (3, 3))(x)).mean((1, 2)))

    class Equinox(eqx.Module):
        conv: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __call__(self, x):
            return self.dense(jax.nn.relu(self.conv(x)).mean((1, 2)))

    keys = jax.random.split(jax.random.key(0))
    module = Linen()
    networks = {
        "linen": module.bind(module.init(keys[0], np.zeros((1, 28, 28, 1), np.float32))),
        "equinox": sj.networks.wrap(
            Equinox(eqx.nn.Conv2d(1, 4, 3, key=keys[0]), eqx.nn.Linear(4, 2, key=keys[1])),
            single=True,
            layout="channels_first",
        ),
    }
    probe = study.probe("smoke", images=12, draws=2)
    records = {
        name: study.record(probe, error=0.1 * (k + 1), family=name, best=network)
        for k, (name, network) in enumerate(networks.items())
    }
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps({"networks": records}))
    assert study.read(path) == json.loads(json.dumps(records))
    texts = {text.get_text() for text in study.draw(study.read(path), title="with strangers").axes[0].texts}
    assert set(networks) <= texts
    normed = sj.models.SmallCNN(channels=(4,), in_channels=1, num_classes=2, rngs=nnx.Rngs(0))
    found = study.record(probe, error=0.1, family="own", best=normed, initial=normed)["stability"]
    assert found["initial"] != found["best"]
    with pytest.raises(ValueError, match="a share of the test images"):
        study.record(probe, error=6.98, family="own", best=normed)
    with pytest.raises(ValueError, match="expected size"):
        study.probe("cup")
    path.write_text(json.dumps({"networks": {"a": {"mean": 1}}}))
    with pytest.raises(ValueError, match="figure of trained networks"):
        study.read(path)


def test_a_training_that_fails_at_once_is_reported():
    import jax

    from experiments import _networks, _probe, _records

    task = _networks.load_task("smoke", training=128)
    probe = _probe.draw_probe(task, images=12, draws=1, seed=0)
    architecture = _networks.Architecture("SmallCNN", "a", 1, 1e39, options={"channels": (4,)})
    with pytest.warns(RuntimeWarning, match="diverged"):
        record = _records.zoo_record("d", architecture, task, probe, key=jax.random.key(0), seeds=1, path=None)
    assert record["diverged"][0] >= 0
    assert _records.successes(record) == []


def test_demo(tmp_path, capsys):
    cli.main(["demo", "--images", "256", "--epochs", "1", "--probed", "32", "--draws", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert "classifier" in printed
    record = json.loads((tmp_path / "demo_scale-detection.json").read_text())
    assert record["trained"]["layers"][-1] == "output"
    assert (tmp_path / "demo_scale-detection.png").stat().st_size > 10_000


def test_command_line_that_makes_a_result_again():
    config = cli.Demo(images=10, out=Path("elsewhere"), data="mnist")
    assert cli.command("experiments.layerwise", config) == ("python -m experiments.layerwise --data mnist --images 10")
    assert cli.command("m", cli.Demo()) == "python -m m"


def test_command_line_of_several_values():
    from experiments import convolutions

    config = convolutions.Config(figures=("edges", "rgb"), kernels=(3, 5))
    command = cli.command("m", config)
    assert command == "python -m m --figures edges rgb --kernels 3 5"
    assert tyro.cli(convolutions.Config, args=command.split()[3:]) == config


def test_info(capsys):
    cli.main(["info"])
    printed = capsys.readouterr().out
    for name, value in cli.versions().items():
        assert name in printed
        assert value in printed
