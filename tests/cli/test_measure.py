"""`stabjax measure`: the numbers are those of `probe.stability`, and the folder is what a reader needs."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import xarray
from flax import nnx
from PIL import Image

import stabjax as sj
from stabjax import cli
from stabjax.cli import _images
from tests.report.pages import needs_nothing_else

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")
MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
WORDS = ["--mean", *map(str, MEAN), "--deviation", *map(str, DEVIATION)]
NUMBERS = ("deformation", "noise", "relative", "relative_interval", "noise_radius")


def load(folder, name):
    """A function of the user's file."""
    spec = importlib.util.spec_from_file_location("theirs", folder / "my_networks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def measure(network, images, *words, out="report"):
    cli.main(["measure", network, "--images", str(images), "--out", str(out), *words])
    return sj.report.read(out)


def expected(network, images, *, seed=0, **options):
    options = {"normalize": (MEAN, DEVIATION)} | options
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, images.shape[1:3])
    return sj.probe.stability(network, images, key=jax.random.key(seed), deformation=deformation, **options)


def agree(found, wanted):
    assert found.layers == wanted.layers
    for name in NUMBERS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)


def test_the_numbers_are_those_of_the_library(folder, capsys):
    found = measure("my_networks.py:small", "images.npz", "--arguments", "classes=3", *WORDS)
    images = np.load(folder / "images.npz")["images"]
    wanted = expected(load(folder, "small")(nnx.Rngs(0), classes=3), images)
    agree(found.result, wanted)
    printed = capsys.readouterr().out
    for text in ("12 images of 8 x 8 x 3", "report/index.html", *found.result.layers):
        assert text in printed
    assert found.label == "small"
    assert found.command == (
        "stabjax measure my_networks.py:small --images images.npz --out report --arguments classes=3 "
        "--mean 0.5 0.4 0.3 --deviation 0.2 0.3 0.4"
    )
    assert found.settings["deformations"] == "1 pixels (rms), cutoff 3, 1 of each image"
    assert found.versions["stabjax"] == sj.__version__
    page = needs_nothing_else((folder / "report" / "index.html").read_text())
    assert [tag for tag, _ in page.tags].count("img") == 12
    assert len(page.tables[0]) == 1 + len(wanted.layers)
    record = json.loads((folder / "report" / "layers.json").read_text())
    dataset = xarray.load_dataset(folder / "report" / "stability.nc", engine="h5netcdf")
    np.testing.assert_allclose(record["result"]["relative"], dataset["relative"].values, rtol=1e-6)
    assert record["result"]["layers"] == dataset["layer"].values.tolist()


def test_options_reach_the_library(folder):
    words = ["--draws", "2", "--radius", "mean", "--average", "median", "--layers", "conv", "output", "--seed", "3"]
    found = measure("my_networks:small", "images.npz", "--count", "6", "--batch-size", "4", *words, *WORDS)
    images = np.load(folder / "images.npz")["images"]
    wanted = expected(
        load(folder, "small")(nnx.Rngs(3)),
        images[sj.data.subset(12, 6, seed=3)],
        seed=3,
        draws=2,
        radius="mean",
        average="median",
        select=["conv", "output"],
        batch_size=4,
    )
    agree(found.result, wanted)


def test_a_folder_of_images_is_cut_to_size(folder):
    found = measure("my_networks:plain", "photos", "--size", "8", "9")
    stream = sj.data.stream(folder / "photos", seed=0, size=(8, 9), channels=3)
    images = np.concatenate([images for images, _ in stream])
    agree(found.result, expected(load(folder, "plain")(), images, normalize=((0,), (1,))))
    assert found.settings["normalization"] == "none"


def test_an_array_is_cut_to_size_as_a_folder_is(folder):
    wanted, _ = sj.data.folder(folder / "photos", size=(6, 7), channels=3, cache=False)
    for place, name in ((0, "0.png"), (2, "2.png")):
        image = np.asarray(Image.open(folder / "photos" / name))
        for images in (image[None], sj.data.to_float(image[None])):
            # A folder is rounded to bytes twice, once for each axis.
            np.testing.assert_allclose(_images.fit(images, (6, 7))[0], wanted[place], atol=1.1 / 255)


def test_images_beyond_memory_pass_as_a_stream(folder, monkeypatch):
    held = measure("my_networks:plain", "photos", "--size", "8", out="held").result
    monkeypatch.setattr(_images, "IN_MEMORY", 0)
    streamed = measure("my_networks:plain", "photos", "--size", "8", out="streamed").result
    np.testing.assert_allclose(streamed.relative, held.relative, rtol=1e-4)


def test_untrained_batch_statistics(folder):
    words = ["--mode", "batch_statistics", "--batch-size", "4"]
    found = measure("my_networks:small", "images.npz", *words, *WORDS)
    network = sj.networks.wrap(load(folder, "small")(nnx.Rngs(0)), mode="batch_statistics")
    agree(found.result, expected(network, np.load(folder / "images.npz")["images"], batch_size=12))


def test_networks_of_other_forms(folder):
    images = np.load(folder / "images.npz")["images"]
    found = measure("my_networks:linen", "images.npz", "--call", "train=False", *WORDS)
    bound = load(folder, "linen")(jax.random.key(0))
    agree(found.result, expected(sj.networks.wrap(bound, train=False), images))
    found = measure("my_networks:network", "images.npz", *WORDS)
    agree(found.result, expected(load(folder, "network"), images))


def test_hidden_operations_are_on_the_page(folder, capsys):
    found = measure("my_networks:loop", "images.npz")
    assert found.hidden
    assert "hidden" in capsys.readouterr().out
    page = needs_nothing_else((folder / "report" / "index.html").read_text())
    assert "Hidden operations" in page.texts["p"]


def test_a_named_set_has_its_statistics(folder, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28, 1), np.uint8)
    monkeypatch.setattr(sj.data, "load_bytes", lambda name, split: (images, np.zeros(6, np.int32)))
    source = sj.data.Source("fashion-mnist", folder, "idx", True, "", ())
    monkeypatch.setattr(sj.data, "describe", lambda name: source)
    found = measure("my_networks:plain", "fashion-mnist")
    wanted = expected(load(folder, "plain")(), images, normalize=sj.data.STATISTICS["fashion-mnist"])
    agree(found.result, wanted)


@pytest.mark.parametrize(("before", "backend"), [("", "jax"), ("numpy", "numpy")])
def test_keras_gets_the_backend_jax(folder, capsys, monkeypatch, before, backend):
    monkeypatch.setenv("KERAS_BACKEND", before)
    if not before:
        monkeypatch.delenv("KERAS_BACKEND")
    # Read where a module of the user imports Keras.
    (folder / "its_backend.py").write_text("import os\nprint(os.environ['KERAS_BACKEND'])\ndef build(): pass\n")
    with pytest.raises(SystemExit):
        cli.main(["measure", "its_backend.py:build", "--images", "images.npz"])
    assert capsys.readouterr().out == f"{backend}\n"


def test_two_networks_side_by_side(folder, capsys):
    measure("my_networks:small", "images.npz", out="a")
    measure("my_networks:small", "images.npz", "--seed", "1", "--label", "other", out="b")
    measure("my_networks:plain", "images.npz", out="c")
    capsys.readouterr()
    cli.main(["compare", "a", "b", "--out", "ab"])
    printed = capsys.readouterr().out
    assert "seed: '0' in small, '1' in other" in printed
    assert "layers differ" not in printed
    page = needs_nothing_else((folder / "ab" / "index.html").read_text())
    assert page.titles[0] == "Stability of small and other"
    assert page.texts["pre"].count("stabjax measure") == 2
    assert "stabjax compare a b --out ab" in page.texts["pre"]
    cli.main(["compare", "a", "c", "--labels", "[one]", "two", "--out", "ac"])
    printed = capsys.readouterr().out
    assert "[one]" in printed
    assert "the layers differ" in printed
    assert (folder / "ac" / "layers.png").stat().st_size > 10_000
