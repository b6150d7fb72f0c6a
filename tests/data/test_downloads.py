"""Where sets are looked for, and downloads."""

import functools
import hashlib
import http.server
import threading

import pytest

from stabjax import data
from stabjax.data import _named
from tests.data.helpers import assert_set, write_idx


def test_roots(tmp_path, rng, monkeypatch, cache):
    told = write_idx(tmp_path / "here" / "mnist", rng, True)
    kept = write_idx(cache / "fashion-mnist", rng, True)
    with pytest.raises(FileNotFoundError):
        data.describe("mnist")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path / "here"))
    assert_set("mnist", told, None)
    assert_set("fashion-mnist", kept, None)  # in the cache, after the data folder
    with pytest.raises(FileNotFoundError, match="fashion-mnist is not in"):
        data.describe("fashion-mnist", root=tmp_path / "here")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"STABJAX_DATA=.*nowhere.* is no folder"):
        data.load("mnist", "train")
    with pytest.raises(FileNotFoundError, match="root="):
        data.load("mnist", "train", root=tmp_path / "nowhere")


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("STABJAX_CACHE")
    assert data.cache_dir().name == "stabjax"
    assert data.cache_dir().is_absolute()


def test_names_and_splits():
    with pytest.raises(ValueError, match=r"expected one of mnist, .*got 'imagenet'; .*data\.folder"):
        data.load("imagenet", "train")
    with pytest.raises(ValueError, match="got 'validation'"):
        data.load("mnist", "validation")


def no_network(url, *args, **kwargs):
    raise ConnectionError(f"Failed to resolve {url}")


@pytest.mark.parametrize("name", list(_named.FILES))
def test_without_network(monkeypatch, cache, name):
    monkeypatch.setattr("pooch.retrieve", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, "train")
    message = str(caught.value)
    first = next(iter(_named.FILES[name]))
    for part in (name, first, _named.MIRRORS[name][0], "Failed to resolve", str(cache / name), "STABJAX_DATA"):
        assert part in message


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of a folder, which the mirrors of MNIST point to."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}/"
        monkeypatch.setattr(_named, "MIRRORS", {"mnist": (address + "gone/", address)})
        yield folder
        running.shutdown()


def test_download(server, rng, monkeypatch, cache):
    told = write_idx(server / "set", rng, True)
    hashes = {}
    for path in sorted((server / "set").iterdir()):
        hashes[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
        path.rename(server / path.name)
    monkeypatch.setattr(_named, "FILES", {"mnist": hashes})
    assert_set("mnist", told, None)  # the second mirror has it
    assert data.describe("mnist").path == cache / "mnist"


def test_download_of_another_file(server, rng, cache):
    write_idx(server / "set", rng, True)
    for path in (server / "set").iterdir():
        path.rename(server / path.name)
    with pytest.raises(FileNotFoundError, match=r"hash|Hash|MD5|md5"):
        data.load("mnist", "train")
    assert not list(cache.rglob("*ubyte*"))


def test_published_hashes():
    sums = [md5 for files in _named.FILES.values() for md5 in files.values()]
    assert len(set(sums)) == len(sums) == 11
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in sums)
    assert set(_named.FILES) == set(_named.MIRRORS) == set(_named.CLASSES) == set(data.STATISTICS)
