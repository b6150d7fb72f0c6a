"""Class folders over several splits, images turned by their EXIF orientation, and files that are no 8-bit image."""

import io
import os
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from stabjax import data
from stabjax.data import _images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(pixels, form="PNG", **options):
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, form, **options)
    return stream.getvalue()


def gray(value):
    return encoded(np.full((2, 3), value, np.uint8))


def write(root, members):
    """Files of a folder; names that end with a slash are empty folders."""
    for name, content in members.items():
        place = root / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.write_bytes(content)


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


KINDS = {"folder": write, "tar": write_tar, "zip": write_zip}
FOUND = {"train/a/0.png": 10, "train/b/0.png": 20, "train/c/0.png": 30, "test/a/0.png": 11, "test/c/0.png": 31}
SPLITS = {name: gray(value) for name, value in FOUND.items()}


@pytest.fixture(params=KINDS)
def make(request, tmp_path):
    """Write a set as a folder or an archive, and give its path; every one of a test has its own."""
    made = []

    def make(members):
        made.append(tmp_path / f"set{len(made)}.{request.param}")
        KINDS[request.param](made[-1], members)
        return made[-1]

    return make


def labels_of(path, split=None, **options):
    """Label of each image, by the gray value it is known from."""
    images, labels = data.folder_bytes(path, split=split, **options)
    return dict(zip(images[:, 0, 0, 0].tolist(), labels.tolist()))


# Classes over the splits


def test_a_class_has_one_number_in_all_splits(make):
    path = make(SPLITS)
    assert labels_of(path, "train") == {10: 0, 20: 1, 30: 2}
    assert labels_of(path, "test") == {11: 0, 31: 2}
    assert data.folder_classes(path, split="train") == data.folder_classes(path, split="test") == ("a", "b", "c")
    assert data.folder(path, split="test")[1].tolist() == [0, 2]
    # A class that only another split has counts as well.
    path = make({**SPLITS, "valid/0/0.png": gray(1)})
    assert labels_of(path, "test") == {11: 1, 31: 3}


def test_classes_in_an_order_of_ones_own(make):
    path = make(SPLITS)
    classes = ("c", "x", "a", "b")
    assert labels_of(path, "train", classes=classes) == {10: 2, 20: 3, 30: 0}
    assert labels_of(path, "test", classes=list(classes)) == {11: 2, 31: 0}
    with pytest.raises(ValueError, match=r"expected the folders of classes=\('a', 'b'\), got also 'c'"):
        data.folder_bytes(path, split="test", classes=("a", "b"))
    with pytest.raises(ValueError, match="expected every class once"):
        data.folder_bytes(path, split="test", classes=("a", "c", "a"))
    with pytest.raises(TypeError, match=r"got the string 'ac'"):
        data.folder_bytes(path, split="test", classes="ac")


def test_an_empty_class_folder_is_named(make):
    path = make({**SPLITS, "test/b/": b""})
    with pytest.raises(ValueError, match=r"expected images in each class folder, got none in 'b'"):
        data.folder_bytes(path, split="test")
    with pytest.raises(ValueError, match="none in 'b'"):
        data.folder_classes(path, split="test")
    assert labels_of(path, "train") == {10: 0, 20: 1, 30: 2}
    # Files that are no images leave a folder empty; hidden folders are none.
    path = make({"a/0.png": gray(1), "docs/readme.txt": b"", "docs/": b"", ".git/": b"", "__MACOSX/": b""})
    with pytest.raises(ValueError, match="none in 'docs'"):
        data.folder_bytes(path)
    assert labels_of(path, classes=("z", "a")) == {1: 1}
    with pytest.raises(ValueError, match="none in 'docs'"):
        data.folder_bytes(path, classes=("docs", "a"))


def test_labels_follow_the_splits_as_they_are_now(tmp_path, cache, monkeypatch):
    write(tmp_path / "set", {name: content for name, content in SPLITS.items() if "/b/" not in name})
    assert labels_of(tmp_path / "set", "test") == {11: 0, 31: 1}
    write(tmp_path / "set", {"train/b/0.png": gray(20)})
    monkeypatch.setattr(_images, "decode_image", None)  # the images of "test" are those that were decoded
    assert labels_of(tmp_path / "set", "test") == {11: 0, 31: 2}
    write(tmp_path / "set", {"test/b/": b""})
    with pytest.raises(ValueError, match="none in 'b'"):
        data.folder_bytes(tmp_path / "set", split="test")
    assert len(list((cache / "decoded").iterdir())) == 1


def test_order_of_names(make):
    names = ["10", "2", "B", "a", "Z", "é", "日本"]
    path = make({f"s/{name}/0.PNG": gray(k) for k, name in enumerate(names)} | {"t/2/1.Png": gray(99)})
    assert data.folder_classes(path, split="t") == ("10", "2", "B", "Z", "a", "é", "日本")
    assert labels_of(path, "s") == {0: 0, 1: 1, 2: 2, 4: 3, 3: 4, 5: 5, 6: 6}
    assert labels_of(path, "t") == {99: 1}


def test_spellings_of_a_class(make):
    parts, whole = unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é")
    path = make({f"train/{parts}/0.png": gray(1), "train/z/0.png": gray(2), f"test/{whole}/0.png": gray(3)})
    assert data.folder_classes(path, split="test") == ("z", "é")
    assert labels_of(path, "train") == {1: 1, 2: 0}
    assert labels_of(path, "train", classes=(parts, "z")) == {1: 0, 2: 1}
    path = make({"train/cat/0.png": gray(1), "train/dog/0.png": gray(2), "test/Cat/0.png": gray(3)})
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"one spelling of a class in all splits, got 'Cat' and 'cat'"):
            data.folder_bytes(path, split=split)
    assert labels_of(path, "test", classes=("cat", "Cat", "dog")) == {3: 1}
    # Letters of both cases are two classes where they stand side by side.
    path = make({"train/A/0.png": gray(1), "train/a/0.png": gray(2), "test/a/0.png": gray(3)})
    assert labels_of(path, "test") == {3: 1}


def test_a_class_may_have_the_name_of_a_split(make):
    path = make(
        {f"{split}/{name}/0.png": gray(k) for k, split in enumerate(("test", "train")) for name in ("car", "train")}
    )
    assert data.folder_bytes(path, split="train")[1].tolist() == [0, 1]
    assert data.folder_bytes(path, split="test")[1].tolist() == [0, 1]


def test_images_without_a_class_folder_beside_splits_with_them(make):
    path = make({"train/a/0.png": gray(1), "test/0.png": gray(2), "test/1.png": gray(3)})
    with pytest.raises(ValueError, match=r"as in other splits \(a\), got images without one; give the path"):
        data.folder_bytes(path, split="test")
    assert labels_of(path, "train") == {1: 0}
    flat = make({"train/0.png": gray(1), "test/0.png": gray(2)})
    assert labels_of(flat, "test") == {2: 0}


def test_splits_within_one_folder(make):
    path = make({"train/deep/a/0.png": gray(1), "train/deep/b/0.png": gray(2)})
    if path.is_dir():
        write(path, {"test/deep/b/0.png": gray(3)})
        assert labels_of(path, "test") == {3: 1}
    with pytest.raises(ValueError, match="folders in folders"):
        data.folder_bytes(make({"train/a/x/0.png": gray(1), "train/b/0.png": gray(2)}), split="train")
    with pytest.raises(FileNotFoundError, match="no image in it"):
        data.folder_classes(make({"a/": b"", "b/x.txt": b""}))


def test_links_and_what_lies_beside(tmp_path):
    write(tmp_path / "store", {"x/0.png": gray(1), "x/.0.png": b"", "x/Thumbs.db": b""})
    write(
        tmp_path / "set",
        {"train/b/0.png": gray(2), "train/list.csv": b"", "readme.png.txt": b"", "test/b/0.png": gray(3)},
    )
    (tmp_path / "set/train/a").symlink_to(tmp_path / "store/x", target_is_directory=True)
    (tmp_path / "set/train/b/9.jpg").symlink_to(tmp_path / "store/x/0.png")
    assert labels_of(tmp_path / "set", "train") == {1: 1, 2: 1}
    assert data.folder_bytes(tmp_path / "set", split="train")[1].tolist() == [0, 1, 1]
    assert labels_of(tmp_path / "set", "test") == {3: 1}
    os.remove(tmp_path / "store/x/0.png")
    with pytest.raises((FileNotFoundError, ValueError), match=r"0\.png|9\.jpg|'a'"):
        data.folder_bytes(tmp_path / "set", split="train")


# Images as viewers show them

# What a file of each orientation holds, by the place of its first row and column in the upright picture (EXIF 2.3,
# table of the tag Orientation).
STORED = {
    1: lambda u: u,  # top, left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}
FORMS = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def turned(upright, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(STORED[orientation](upright)), form, exif=exif, **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_exif_orientation(tmp_path, form):
    upright = np.zeros((16, 40, 3), np.uint8)  # one quarter of each color, so that no turn leaves it as it is
    upright[:8, :20], upright[:8, 20:], upright[8:, :20] = (250, 250, 250), (200, 0, 0), (0, 0, 200)
    write(tmp_path, {f"set/x/{k}.{form.lower()}": turned(upright, k, form) for k in STORED})
    images, _ = data.folder_bytes(tmp_path / "set")
    assert images.shape == (8, 16, 40, 3)  # one size, once turned
    for orientation, image in zip(STORED, images):
        np.testing.assert_allclose(image.astype(int), upright, atol=12, err_msg=str(orientation))
    small, _ = data.folder_bytes(tmp_path / "set", size=(4, 10))
    np.testing.assert_allclose(small.astype(int), np.broadcast_to(small[:1], small.shape), atol=12)
    assert small[0, 0, 0].min() > 230


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_orientation_of_other_modes_and_of_broken_tags(tmp_path):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    write(tmp_path, {"gray/x/0.png": turned(upright, 6, "PNG")})
    np.testing.assert_array_equal(data.folder_bytes(tmp_path / "gray")[0][0, ..., 0], upright)
    palette = Image.fromarray(np.ascontiguousarray(STORED[5](upright))).convert("P")
    exif = Image.Exif()
    exif[0x0112] = 5
    write(tmp_path, {"palette/x/0.png": encoded(palette, exif=exif, transparency=5)})
    np.testing.assert_array_equal(data.folder_bytes(tmp_path / "palette", channels=1)[0][0, ..., 0], upright)
    for k, broken in enumerate((b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"nonsense")):
        write(tmp_path, {f"broken{k}/x/0.jpg": encoded(upright, "JPEG", quality=95, exif=broken)})
        images, _ = data.folder_bytes(tmp_path / f"broken{k}")
        np.testing.assert_allclose(images[0, ..., 0].astype(int), upright, atol=20)
    exif[0x0112] = 9  # no orientation
    write(tmp_path, {"nine/x/0.png": encoded(upright, exif=exif)})
    np.testing.assert_array_equal(data.folder_bytes(tmp_path / "nine")[0][0, ..., 0], upright)


# Files that are no 8-bit image


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels, color, *, depth=16):
    """A PNG file: color 0 is gray, 2 RGB, 4 gray with alpha, 6 RGB with alpha."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2" if depth == 16 else np.uint8))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels, *, sample=1):
    """An uncompressed TIFF file in little-endian order; sample 1 is unsigned, 2 signed."""
    height, width, channels = pixels.shape
    start = 8 + 2 + 12 * 10 + 4
    bits = struct.pack("<4H", *[8 * pixels.itemsize] * 4)[: 2 * channels]
    kinds = struct.pack("<4H", *[sample] * 4)[: 2 * channels]
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, start), (259, 3, 1, 1)]
    fields += [(262, 3, 1, 2 if channels > 2 else 1), (273, 4, 1, start + 16), (277, 3, 1, channels)]
    fields += [(278, 4, 1, height), (279, 4, 1, pixels.nbytes), (339, 3, channels, start + 8)]
    if channels == 1:
        fields[2], fields[-1] = (258, 3, 1, 8 * pixels.itemsize), (339, 3, 1, sample)
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    values = bits.ljust(8, b"\0") + kinds.ljust(8, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + values + pixels.tobytes()


DEEP = np.random.default_rng(3).integers(0, 65536, (2, 3, 4)).astype("<u2")
FRAMES = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 200)]


def animated(form):
    return encoded(FRAMES[0], form, save_all=True, append_images=FRAMES[1:])


REFUSED = {
    "gray.png": (png(DEEP[..., 0], 0), "16 or 32 bits"),
    "rgb.png": (png(DEEP[..., :3], 2), "16 or 32 bits"),
    "gray-alpha.png": (png(DEEP[..., :2], 4), "16 or 32 bits"),
    "rgb-alpha.png": (png(DEEP, 6), "16 or 32 bits"),
    "rgb.tiff": (tiff(DEEP[..., :3]), "16 or 32 bits"),
    "gray.tiff": (tiff(DEEP[..., :1]), "16 or 32 bits"),
    "float.tiff": (encoded(np.ones((2, 3), np.float32), "TIFF"), "16 or 32 bits"),
    "signed.tiff": (tiff(np.array([[[-1], [5]]], np.int8), sample=2), "signed numbers"),
    "rgb.ppm": (b"P6 3 2 65535\n" + DEEP[..., :3].tobytes(), "16 or 32 bits"),
    "ten-bits.ppm": (b"P3 1 1 1023\n1023 0 512\n", "16 or 32 bits"),
    "gray.pgm": (b"P5 3 2 65535\n" + DEEP[..., 0].tobytes(), "16 or 32 bits"),
    "frames.gif": (animated("GIF"), "several frames"),
    "frames.png": (animated("PNG"), "several frames"),
    "frames.webp": (animated("WEBP"), "several frames"),
    "pages.tiff": (animated("TIFF"), "several frames or pages; keep one"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("channels", [None, 3])
def test_refused_files(tmp_path, name, channels):
    content, says = REFUSED[name]
    write(tmp_path, {f"set/x/{name}": content})
    with pytest.raises(ValueError, match=f"image 'x/{name}' has {says}"):
        data.folder_bytes(tmp_path / "set", channels=channels)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_files_that_end_early(tmp_path, form):
    whole = encoded(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8), form)
    for share in (0.5, 0.9):
        write(tmp_path, {f"set/x/0.{form.lower()}": whole[: int(share * len(whole))]})
        with pytest.raises(ValueError, match=rf"cannot read the image 'x/0.{form.lower()}'.*Replace or remove it"):
            data.folder_bytes(tmp_path / "set")


def test_what_becomes_of_other_kinds_of_pixels(tmp_path):
    """Each is brought to 8-bit gray, RGB or RGBA; over white where three channels are asked for."""
    rgb = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    faint = np.dstack([rgb, np.full((1, 2), 128, np.uint8)])
    over = np.round(128 / 255 * rgb[0, 0] + 127 / 255 * 255)
    bits = np.array([[0b00011011]], np.uint8)
    palette = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE)
    kinds = {
        "rgb8.png": (png(rgb, 2, depth=8), [200, 100, 0], [200, 100, 0]),
        "faint.png": (png(faint, 6, depth=8), [200, 100, 0, 128], over),
        "gray-alpha.png": (png(np.array([[[50, 0]]]), 4, depth=8), [50, 50, 50, 0], [255] * 3),
        "two-bits.png": (png(bits, 0, depth=2), [0], [0] * 3),
        "one-bit.png": (encoded(np.ones((1, 2), bool)), [255], [255] * 3),
        "palette.png": (encoded(palette), [200, 100, 0], [200, 100, 0]),
        "clear-palette.png": (encoded(palette, transparency=palette.getpixel((0, 0))), [200, 100, 0, 0], [255] * 3),
        "cmyk.jpg": (encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100), [200, 100, 0], [200, 100, 0]),
        "still.gif": (encoded(palette, "GIF"), [200, 100, 0], [200, 100, 0]),
        "rgb8.tiff": (tiff(rgb), [200, 100, 0], [200, 100, 0]),
        "fifteen.ppm": (b"P6 1 1 15\n\x0f\x01\x00", [255, 17, 0], [255, 17, 0]),
        "camera.jpg": (encoded(FRAMES[1], "MPO", save_all=True, append_images=FRAMES[:1]), [200] * 3, [200] * 3),
    }
    for name, (content, own, three) in kinds.items():
        write(tmp_path, {f"{name}/x/{name}": content})
        images, _ = data.folder_bytes(tmp_path / name)
        np.testing.assert_allclose(images[0, 0, 0].astype(int), own, atol=3, err_msg=name)
        images, _ = data.folder_bytes(tmp_path / name, channels=3)
        np.testing.assert_allclose(images[0, 0, 0].astype(int), three, atol=3, err_msg=name)
