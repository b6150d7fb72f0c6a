"""The folder of a sweep: read back, resumed, refused, damaged."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from stabjax import _files
from stabjax._provenance import describe_shortly
from stabjax.sweep import _grid, _store
from tests.sweep.helpers import AXES, cell, chunks, compilations, go, ok, product
from tests.sweep.test_failures import fussy


def test_a_second_call_reads_what_is_there(finished, copy, monkeypatch):
    monkeypatch.setattr(_store.Store, "write", None)
    with compilations() as compiled:
        xarray.testing.assert_identical(go(copy), finished[0])
    assert not compiled
    xarray.testing.assert_identical(go(copy, chunk=None), finished[0])


def test_the_folder_is_listed_once(finished, copy, monkeypatch):
    listed, counts = [], []
    for name in ("scandir", "listdir"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, original=original: listed.append(path) or original(path))
    with _store.Store(copy) as store:
        store.open({k: v for k, v in store.saved().items() if k not in ("format", "order")})
        for number in range(3):
            counts.append(len(listed))
            assert store.read(number) is not None
    assert counts[0] == counts[-1] == len(listed) > 0


def test_without_files_the_bits_are_the_same(finished):
    xarray.testing.assert_identical(go(None), finished[0])


def test_chunks_are_chosen_so_that_a_kill_costs_little(tmp_path):
    axes = {"a": np.arange(100.0)}
    found = go(tmp_path / "a", f=lambda key, a: a, axes=axes, chunk=None)
    assert len(chunks(tmp_path / "a")) == 17
    assert found.attrs["chunk"] == 12  # six points with two seeds each


@settings(max_examples=7)
@given(kept=st.sets(st.integers(0, 2)), damage=st.sampled_from(["none", "torn", "flipped", "swapped", "empty"]))
def test_resume_from_any_subset_of_chunks(finished, tmp_path_factory, kept, damage):
    path = tmp_path_factory.mktemp("subset") / "copy"
    shutil.copytree(finished[1], path)
    files = chunks(path)
    assert len(files) == 3
    before = {file.name: file.stat().st_mtime_ns for file in files}
    for k, file in enumerate(files):
        if k not in kept:
            file.unlink()
    (path / ".chunk-00000-1.npz.draft").write_bytes(b"half of")
    damaged = files[min(kept)] if kept and damage != "none" else None
    if damaged:
        content = damaged.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        other = chunks(finished[1])[(min(kept) + 1) % 3].read_bytes()
        damaged.write_bytes({"torn": content[:middle], "flipped": flipped, "swapped": other, "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match=damaged.name) if damaged else contextlib.nullcontext():
        xarray.testing.assert_identical(go(path), finished[0])
    after = {file.name: file.stat().st_mtime_ns for file in chunks(path)}
    assert after.keys() == before.keys()
    intact = {files[k].name for k in kept} - ({damaged.name} if damaged else set())
    assert {name for name in after if after[name] == before[name]} >= intact
    assert not (path / ".chunk-00000-1.npz.draft").exists()


def test_a_whole_chunk_under_the_number_of_another_is_recognized(finished, copy):
    first, second, _ = chunks(copy)
    wrong = copy / second.name.replace("00001", "00000")
    second.rename(wrong)
    first.unlink()
    with pytest.warns(RuntimeWarning, match=wrong.name):
        xarray.testing.assert_identical(go(copy), finished[0])
    assert not wrong.exists()


def shifted(key, bias, power):
    return cell(key, bias + 1, power)


shifted.__module__, shifted.__qualname__ = cell.__module__, cell.__qualname__


def with_constant(value):
    constant = jnp.full(3, value)

    def f(key, bias, power):
        return jnp.sum(constant) * bias

    return f


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"axes": {**AXES, "power": np.array([1, 2], np.int16)}}, r"axes\.power\.dtype: int32 there, int16 here"),
        ({"key": jax.random.key(2)}, "key.data: .0, 1. there, .0, 2. here"),
        ({"key": jax.random.key(1, impl="rbg")}, "key.impl: threefry2x32 there, rbg here"),
        ({"config": {"a": 1}}, "config.a: None there, 1 here"),
        ({"chunk": 4}, "chunk: 5 there, 4 here"),
        ({"f": shifted}, r"\(program: "),
        ({"f": fussy, "axes": {"a": [1.0]}}, "function: .*cell.* there, .*fussy.* here"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_another_sweep_is_refused_by_name(finished, copy, change, named):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(ValueError, match=named):
        go(copy, **change)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    xarray.testing.assert_identical(go(copy), finished[0])


def test_other_arrays_and_constants_are_refused(tmp_path):
    for name, make, named in (
        ("constants", with_constant, "program"),
        ("arrays", lambda v: functools.partial(product, weights=np.full(3, v), size=2), "arrays"),
        ("numbers", lambda v: functools.partial(product, weights=np.ones(3), size=v), "program"),
    ):
        axes = AXES if name == "constants" else {"a": [1.0, 2.0]}
        go(tmp_path / name, f=make(1.0), axes=axes)
        go(tmp_path / name, f=make(1.0), axes=axes)
        with pytest.raises(ValueError, match=rf"\({named}: "):
            go(tmp_path / name, f=make(2.0), axes=axes)


def test_nan_on_an_axis_goes_on(tmp_path):
    first = go(tmp_path / "a", lambda key, a: a, {"a": [1.0, np.nan]})
    xarray.testing.assert_identical(go(tmp_path / "a", lambda key, a: a, {"a": [1.0, np.nan]}), first)


def test_folders_of_others_are_left_alone(tmp_path, copy):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        go(tmp_path / "mine")
    with pytest.raises(NotADirectoryError, match=r"thesis\.tex"):
        go(tmp_path / "mine" / "thesis.tex")
    with _files.locked(copy), pytest.raises(OSError, match=r"another process is at work in .*copy"):
        go(copy)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_refused_folder_is_left_as_it_was(copy):
    (copy / ".lock").unlink()
    for name in (".thesis.draft", ".chunk-00000-1.npz.draft", ".manifest.json.draft"):
        (copy / name).write_text("x")
    manifest = copy / "manifest.json"
    whole = manifest.read_text()

    def refused(error, match, **options):
        before = contents(copy)
        with pytest.raises(error, match=match):
            go(copy, **options)
        assert contents(copy) == before

    refused(ValueError, "config.a: None there, 3 here", config={"a": 3})
    for text, match in (
        (whole.replace('"seeds": 2', '"seeds": 3'), "was changed"),
        (whole[:100], "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ):
        manifest.write_text(text)
        refused(OSError, rf"manifest\.json {match}")
    _files.write_json(manifest, {"a": 1})
    refused(OSError, r"manifest\.json is damaged or not of a sweep")
    manifest.unlink()
    refused(ValueError, r"found \['chunk-")
    manifest.write_text(whole)
    go(copy)
    assert {file.name for file in copy.glob(".*")} == {".lock", ".thesis.draft"}


def test_a_failure_does_not_keep_the_folder(finished, copy, monkeypatch):
    def refuse(*args):
        raise PermissionError("no")

    (copy / ".chunk-00000-1.npz.draft").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(PermissionError) as caught:
            go(copy)
    # The traceback is alive, and with it all that was under way.
    assert caught.tb is not None
    xarray.testing.assert_identical(go(copy), finished[0])


def test_a_folder_in_the_place_of_a_chunk_is_named(copy):
    file = chunks(copy)[1]
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match=rf"{file.name} cannot be read .*: restore it, or move it elsewhere"):
        go(copy)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES])
def test_what_the_lock_says_is_told_apart(copy, monkeypatch, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    match = r"No locks available: .*\.lock" if number == errno.ENOLCK else "another process is at work"
    with pytest.raises(OSError, match=match):
        go(copy)


def test_static_values_are_written_the_same_in_every_process():
    letters = "abcdefgh"
    listed = f"frozenset({{{', '.join(repr(x) for x in letters)}}})"
    for value, text in (
        (frozenset(letters), listed),
        ((1, frozenset(letters)), f"(1, {listed})"),
        (Options(frozenset(letters)), f"Options(value={listed})"),
        ((ok,), "(tests.sweep.helpers.ok,)"),
        ((), "()"),
    ):
        assert describe_shortly(value) == text
    assert _grid.check_grid({"v": [frozenset(letters)]}, "v", 1).describe() == {"v": {"static": [listed]}}


@dataclasses.dataclass(frozen=True)
class Options:
    value: object


@pytest.mark.parametrize("full_at", range(8))
def test_a_full_disk_names_the_file_and_loses_nothing(finished, tmp_path, monkeypatch, full_at):
    calls = []
    fsync = os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    path = tmp_path / "a"
    path.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; .* the same path") as caught:
            go(path)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).parent == path
    assert Path(caught.value.filename).name.startswith("manifest" if full_at < 2 else f"chunk-{full_at // 2 - 1:05d}")
    written = chunks(path)
    assert len(written) == full_at // 2 - 1 + full_at % 2 if full_at >= 2 else not written
    for file in written:
        with np.load(file) as data:
            assert set(data) == {"norm", "x", "count", "valid"}
    xarray.testing.assert_identical(go(path), finished[0])


def test_outputs_of_any_name_are_kept(tmp_path):
    def f(key, a):
        return {"file": a, "self": 2 * a, "allow_pickle": 3 * a, "with space": a, "x": -a, "x.npy": 5 * a}

    first = go(tmp_path / "a", f, {"a": [1.0, 2.0]})
    xarray.testing.assert_identical(go(tmp_path / "a", f, {"a": [1.0, 2.0]}), first)
