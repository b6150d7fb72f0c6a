"""What people do wrong: one line that says what was expected, what came and what to do; no traceback; the code 2."""

import sys

import numpy as np
import pytest

from stabjax import cli
from stabjax.cli import _model

pytestmark = pytest.mark.usefixtures("relaxed_promotion", "unchecked")


def refused(capsys, *words):
    """The line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("stabjax: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


NETWORKS = {
    "my_networks": "expected a network as module:function, got 'my_networks'",
    "torchvison_typo.models:resnet18": "there is no module 'torchvison_typo': install it, or run the command in",
    "my_networks.inner:small": "there is no module 'my_networks.inner'",
    "elsewhere/file.py:small": "expected a Python file, got 'elsewhere/file.py', which is not there",
    "my_networks:smal": "expected a function of my_networks, got 'smal', which it does not have: perhaps small",
    "my_networks:of_images": "which needs images, other: give --arguments images=... other=...",
    "my_networks:nothing": "expected a network from my_networks:nothing, got None",
    "my_networks:broken": "my_networks:broken raised an error: RuntimeError: no such file of mine. Run again with",
    "my_networks:bare_linen": "expected a bound Linen module, got Linen without variables",
    "my_networks:linen": "the network cannot run on images of 8 x 8 x 3",
    "needs_haiku.py:build": "needs the module 'haiku', which is not installed: pip install 'stabjax[haiku]'",
    "needs_other:build": "'needs_other' needs the module 'no_such_module', which is not installed",
    "not_python.py:build": "the file 'not_python.py' cannot be run: SyntaxError",
    "keras:build": "there is no module 'keras': pip install 'stabjax[keras]'",
}


@pytest.mark.parametrize("network", NETWORKS)
def test_networks(folder, capsys, monkeypatch, network):
    (folder / "needs_haiku.py").write_text("import haiku")
    (folder / "needs_other.py").write_text("import no_such_module")
    (folder / "not_python.py").write_text("def def")
    # Not installed, wherever the tests run.
    for name in ("keras", "haiku"):
        monkeypatch.setitem(sys.modules, name, None)
    assert NETWORKS[network] in refused(capsys, "measure", network, "--images", "images.npz")


IMAGES = {
    "nowhere": "expected images as a folder, an .npz file or one of mnist, fashion-mnist, cifar10, svhn, got 'nowhere'",
    "empty": "empty: no image in it (looked for .bmp",
    "one": "expected at least two images in 'one', got 1",
    "broken": "cannot read the image 'broken.png'",
    "photos": "expected images of one size",
    "text.npz": "the file 'text.npz' cannot be read",
    "gray.npz": "expected an array 'images' (n, height, width, channels) in 'gray.npz', got gray (4, 8, 8)",
    "first.npz": "move the channels to the end",
    "bright.npz": "expected values in (0.0, 1.0), got 0 to 255; divide by 255",
}


@pytest.mark.parametrize("images", IMAGES)
def test_images(folder, capsys, images):
    for name in ("empty", "one", "broken"):
        (folder / name).mkdir()
    (folder / "one" / "0.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    (folder / "broken" / "0.png").write_bytes((folder / "photos" / "0.png").read_bytes())
    (folder / "broken" / "broken.png").write_bytes(b"no image")
    (folder / "text.npz").write_text("no arrays")
    np.savez(folder / "gray.npz", gray=np.zeros((4, 8, 8)))
    np.savez(folder / "first.npz", images=np.zeros((4, 3, 8, 8), np.float32))
    np.savez(folder / "bright.npz", images=np.full((4, 8, 8, 3), 255.0) * np.arange(4)[:, None, None, None] / 3)
    assert IMAGES[images] in refused(capsys, "measure", "my_networks:plain", "--images", images)


OPTIONS = {
    ("--mean", "0.5", "0.5"): "expected --mean as one number, or one for each of the 3 channels of the images, got 2",
    ("--deviation", "0"): "--mean and --deviation: expected positive deviations",
    ("--size", "0"): "expected --size as one side or as height and width, got (0,)",
    ("--size", "8", "8", "8"): "expected --size as one side or as height and width",
    ("--count", "1"): "expected --count of at least 2 images",
    ("--arguments", "5"): "expected arguments as name=value, got '5'",
    ("--arguments", "clases=5"): "which has rngs, classes, got clases: leave them out, or check their names",
    ("--layers", "no-such"): "no-such",
    ("--cutoff", "1", "--convention", "paper"): "cutoff",
    ("--draws", "0"): "expected draws >= 1",
}


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_options(folder, capsys, words):
    assert OPTIONS[words] in refused(capsys, "measure", "my_networks:small", "--images", "images.npz", *words)


def test_images_of_other_channels(folder, capsys):
    words = ["--images", "photos", "--size", "8", "--channels", "1"]
    found = refused(capsys, "measure", "my_networks:small", *words)
    assert "the network cannot run on images of 8 x 8 x 1 (height x width x channels)" in found


def test_images_of_another_size(folder, capsys):
    found = refused(capsys, "measure", "my_networks:flat", "--images", "images.npz", "--size", "10")
    assert "the network cannot run on images of 10 x 10 x 3 (height x width x channels)" in found
    assert "Bring them to the --size and --channels that it was made for" in found
    cli.main(["measure", "my_networks:flat", "--images", "images.npz", "--size", "8"])
    assert "report" in capsys.readouterr().out


def test_arguments_of_what_is_no_function(folder, capsys):
    words = ["measure", "my_networks:network", "--images", "images.npz", "--arguments", "a=1"]
    assert "expected no --arguments for my_networks:network" in refused(capsys, *words)


def test_a_traceback_on_request(folder):
    words = ["measure", "my_networks:broken", "--images", "images.npz", "--traceback"]
    with pytest.raises(Exception, match="no such file of mine") as raised:
        cli.main(words)
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_a_folder_that_cannot_be_written(folder, capsys):
    found = refused(capsys, "measure", "my_networks:plain", "--images", "images.npz", "--out", "images.npz")
    assert "the folder 'images.npz' cannot be written" in found


def test_comparisons(folder, capsys):
    assert "got photos twice" in refused(capsys, "compare", "photos", "photos")
    assert "expected a folder that `stabjax measure --out` has written" in refused(capsys, "compare", "photos", "x")


def test_arguments_are_read_as_python_writes_them():
    words = ["a=1", "b=1.5", "c=[1, 2]", "d=true", "e=None", "f=text", "g=resnet-18", "h='1'", "i=x=y"]
    assert _model.parse(words) == {
        "a": 1,
        "b": 1.5,
        "c": [1, 2],
        "d": True,
        "e": None,
        "f": "text",
        "g": "resnet-18",
        "h": "1",
        "i": "x=y",
    }
