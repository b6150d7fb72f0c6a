"""Folders and archives of images: splits, classes, sizes, kinds of pixels, memory."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stabjax import data
from tests import ROOT
from tests.data.helpers import encoded, image_members, random_images, write_tar, write_zip


def write_folder(root, members):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "nested"])
def test_folder(tmp_path, rng, kind):
    members, told = image_members(rng, size=20, form="PNG", splits=("one",), classes=["b", "a", "10", "9"])
    members = {name.removeprefix("one/"): content for name, content in members.items()}
    members |= {".hidden/x.png": b"", "a/._x.png": b"", "a/notes.txt": b"", "__MACOSX/a/x.png": b""}
    path = tmp_path / f"set.{kind}"
    match kind:
        case "folder":
            write_folder(path, members)
        case "tar":
            write_tar(path, members)
        case "zip":
            write_zip(path, members)
        case "nested":
            write_tar(path, {f"./deep/set/{name}": content for name, content in members.items()})
    images, labels = data.folder_bytes(path)
    np.testing.assert_array_equal(images, told["one"][0])
    np.testing.assert_array_equal(labels, told["one"][1])
    assert data.folder_classes(path) == ("10", "9", "a", "b")
    floats, labels = data.folder(path, cache=False)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, images / np.float32(255))
    np.testing.assert_array_equal(labels, told["one"][1])


def test_a_changed_folder_is_decoded_anew(tmp_path, rng):
    path = tmp_path / "set"
    members, _ = image_members(rng, size=8, form="PNG", splits=("a",), classes=["x"], per_class=2)
    write_folder(path, members)
    assert len(data.folder_bytes(path, split="a")[0]) == 2
    (path / "a/x/0000.png").unlink()
    images, _ = data.folder_bytes(path, split="a")
    assert len(images) == 1


def test_without_a_cache_nothing_is_left(tmp_path, rng, cache):
    members, told = image_members(rng, form="PNG", splits=("s",))
    write_zip(tmp_path / "set.zip", members)
    images, _ = data.folder_bytes(tmp_path / "set.zip", cache=False)
    np.testing.assert_array_equal(images, told["s"][0])
    assert not cache.exists()


def test_splits_of_a_folder(tmp_path, rng):
    members, told = image_members(rng, size=8, form="PNG", classes=["x", "y"])
    write_folder(tmp_path / "set", members)
    write_tar(tmp_path / "set.tar", members)
    for path in (tmp_path / "set", tmp_path / "set.tar"):
        for split in ("train", "test"):
            images, labels = data.folder_bytes(path, split=split)
            np.testing.assert_array_equal(images, told[split][0])
            np.testing.assert_array_equal(labels, told[split][1])
            assert data.folder_classes(path, split=split) == ("x", "y")
        with pytest.raises(ValueError, match=r"pass split= one of test, train"):
            data.folder_bytes(path)
        with pytest.raises(FileNotFoundError, match=r"no folder 'val'.*; there are test, train"):
            data.folder_bytes(path, split="val")
    write_tar(tmp_path / "two.tar", {f"{top}/{name}": c for top in "ab" for name, c in members.items()})
    with pytest.raises(ValueError, match="more than one folder 'train'"):
        data.folder_bytes(tmp_path / "two.tar", split="train")


def test_images_without_classes(tmp_path, rng):
    pixels, _ = random_images(rng, 3, 6, 5)
    write_folder(tmp_path / "flat", {f"{i}.png": encoded(p, "PNG") for i, p in enumerate(pixels)})
    images, labels = data.folder_bytes(tmp_path / "flat")
    np.testing.assert_array_equal(images, pixels[..., None])
    np.testing.assert_array_equal(labels, [0, 0, 0])
    write_folder(tmp_path / "flat", {"class/3.png": encoded(pixels[0], "PNG")})
    with pytest.raises(ValueError, match="beside them"):
        data.folder_bytes(tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in it"):
        data.folder_bytes(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder or archive"):
        data.folder_bytes(tmp_path / "nowhere")


def test_sizes(tmp_path):
    # Twice as wide as high: black and white halves in the middle, and gray sides for cropping to cut off.
    wide = np.full((40, 80, 3), 90, np.uint8)
    wide[:, 20:40] = 0
    wide[:, 40:60] = 255
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    write_folder(tmp_path / "set", {"a/0.png": encoded(wide, "PNG"), "b/1.png": encoded(tall, "PNG")})
    with pytest.raises(ValueError, match=r"one size, got \(40, 80, 3\) for 'a/0.png' and \(80, 40, 3\) for 'b/1.png'"):
        data.folder_bytes(tmp_path / "set")
    images, _ = data.folder_bytes(tmp_path / "set", size=16)
    assert images.shape == (2, 16, 16, 3)
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, 8:] = 255
    away = np.r_[1:7, 9:15]  # the filter mixes the two pixels at an edge
    np.testing.assert_array_equal(images[0][:, away], half[:, away])
    np.testing.assert_array_equal(images[1], images[0].transpose(1, 0, 2))
    stretched, _ = data.folder_bytes(tmp_path / "set", size=(10, 20), fit="stretch")
    assert stretched.shape == (2, 10, 20, 3)
    away = np.setdiff1d(np.arange(20), [4, 5, 9, 10, 14, 15])
    np.testing.assert_array_equal(stretched[0, 0, away, 0], np.repeat([90, 0, 255, 90], [4, 3, 3, 4]))
    assert np.all(stretched[0, :, 0] == 90)
    assert np.all(stretched[1, [0, -1]] == 90)
    assert np.all(stretched[1, 3] == 0)
    for wrong in (0, (4, -1)):
        with pytest.raises(ValueError, match="positive size"):
            data.folder_bytes(tmp_path / "set", size=wrong)
    with pytest.raises(ValueError, match="fit 'crop' or 'stretch', got 'pad'"):
        data.folder_bytes(tmp_path / "set", size=8, fit="pad")


def test_kinds_of_pixels(tmp_path):
    gray = np.full((2, 2), 100, np.uint8)
    color = np.full((2, 2, 3), (200, 100, 0), np.uint8)
    clear = np.dstack([color, np.full((2, 2), 0, np.uint8)])  # fully transparent
    palette = io.BytesIO()
    Image.fromarray(color).convert("P", palette=Image.Palette.ADAPTIVE).save(palette, "PNG")
    cmyk = io.BytesIO()
    Image.fromarray(color).convert("CMYK").save(cmyk, "TIFF")
    members = {
        "0/gray.png": encoded(gray, "PNG"),
        "1/color.png": encoded(color, "PNG"),
        "2/clear.png": encoded(clear, "PNG"),
        "3/palette.png": palette.getvalue(),
        "4/cmyk.tiff": cmyk.getvalue(),
    }
    write_zip(tmp_path / "set.zip", members)
    with pytest.raises(
        ValueError, match=r"one channels, .*'0/gray.png'.*'1/color.png'; pass channels=3|pass channels="
    ):
        data.folder_bytes(tmp_path / "set.zip")
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=3)
    np.testing.assert_array_equal(images[:, 0, 0], [[100] * 3, [200, 100, 0], [255] * 3, [200, 100, 0], [200, 100, 0]])
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=1)
    luma = round(0.299 * 200 + 0.587 * 100)
    np.testing.assert_allclose(images[:, 0, 0, 0], [100, luma, 255, luma, luma], atol=1)
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=4)
    np.testing.assert_array_equal(images[:, 0, 0, 3], [255, 255, 0, 255, 255])
    for name, channels in (("0/gray.png", 1), ("1/color.png", 3), ("2/clear.png", 4), ("3/palette.png", 3)):
        write_zip(tmp_path / "one.zip", {name: members[name]})
        assert data.folder_bytes(tmp_path / "one.zip")[0].shape == (1, 2, 2, channels)
    with pytest.raises(ValueError, match="channels 1, 3, 4 or None, got 2"):
        data.folder_bytes(tmp_path / "set.zip", channels=2)
    write_zip(tmp_path / "deep.zip", {"0/a.png": encoded(gray.astype(np.uint16), "PNG")})
    with pytest.raises(ValueError, match=r"'0/a.png' has 16 or 32 bits"):
        data.folder_bytes(tmp_path / "deep.zip")


def test_a_large_folder_takes_little_memory(tmp_path):
    """240 images of 224x224x3 are 36 MB: decoding them takes a few images more than nothing."""
    content = encoded(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), "BMP")
    write_zip(tmp_path / "large.zip", {f"{i % 3}/{i:03d}.bmp": content for i in range(240)})
    code = (
        "import resource, sys\n"
        "from stabjax import data\n"
        "data.folder_bytes(sys.argv[1], cache=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images, _ = data.folder_bytes(sys.argv[2])\n"
        "floats = data.to_float(images) if len(sys.argv) > 3 else images\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, floats.size)\n"
    )
    write_zip(tmp_path / "small.zip", {f"0/{i}.bmp": content for i in range(3)})
    arguments = [str(tmp_path / "small.zip"), str(tmp_path / "large.zip")]
    for extra, times in (([], 0.3), (["float"], 5.5)):
        run = [sys.executable, "-c", code, *arguments, *extra]
        kilobytes, size = map(int, subprocess.run(run, cwd=ROOT, check=True, capture_output=True).stdout.split())
        assert size == 240 * 224 * 224 * 3
        assert kilobytes * 1024 < times * size, extra
