"""Experiments and the command line run from end to end, at a size of seconds."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from stabjax import cli

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

EXPERIMENTS = sorted(
    path.stem for path in (Path(__file__).parent.parent / "experiments").glob("*.py") if path.stem != "__init__"
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_smoke(name, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    figures = module.main(["--smoke", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])
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


CHECKS = {
    "constant_filters": check_constant_filters,
    "layerwise": check_layerwise,
    "receptive_fields": check_receptive_fields,
}


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


def test_info(capsys):
    cli.main(["info"])
    printed = capsys.readouterr().out
    for name, value in cli.versions().items():
        assert name in printed
        assert value in printed
