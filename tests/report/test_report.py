"""A measurement as a folder: what is written is what was measured, and the page shows it and needs nothing else."""

import dataclasses
import json
import re
from itertools import pairwise

import numpy as np
import pytest
import xarray

from stabjax import report
from tests.report.pages import LAYERS, Page, needs_nothing_else, result

IMAGES = np.random.default_rng(0).random((2, 12, 10, 3))
EVIL = "<script>alert(\"x\")</script> & 'y'"


def measured(label="a network", seed=0, **changes):
    values = {
        "result": result(seed),
        "settings": {"images": "photos, 12 images", "seed": str(seed)},
        "command": "stabjax measure module:function --images photos",
        "versions": {"stabjax": "0.1.0", "jax": "0.0"},
        "hidden": (("sin, cos", "inside a loop"),),
    }
    return report.Measured(label, **(values | changes))


def table_of(page, number=0):
    head, *rows = page.tables[number]
    return head, rows


def test_the_page_has_every_number_and_needs_nothing_else():
    one = measured(examples=(IMAGES, IMAGES / 2, IMAGES / 3))
    page = needs_nothing_else(report.page(one))
    head, rows = table_of(page)
    assert [re.match(r"#|\w+", cell["text"]).group() for cell in head] == "# operation kind D G R valid".split()
    assert [cell["aria-sort"] for cell in head] == ["ascending", *["none"] * 6]
    assert [row[1]["text"] for row in rows] == list(one.result.layers)
    assert [row[2]["text"] for row in rows] == list(one.result.kinds)
    for column, name in ((3, "deformation"), (4, "noise"), (5, "relative")):
        values, ends = (np.asarray(getattr(one.result, part)) for part in (name, f"{name}_interval"))
        np.testing.assert_allclose([float(row[column]["data-value"]) for row in rows], values, rtol=1e-8)
        for row, value, (low, high) in zip(rows, values, ends, strict=True):
            shown, interval = row[column]["text"].split("[")
            assert float(shown) == pytest.approx(float(value), rel=6e-3)
            assert list(map(float, interval.strip("]").split(","))) == pytest.approx([low, high], rel=6e-2)
    text = " ".join(page.texts.values())
    for word in (one.command, "0.1.0", "photos, 12 images", "inside a loop", "not valid", "R = D / G"):
        assert word in text
    images = [known["src"] for tag, known in page.tags if tag == "img"]
    assert len(set(images)) == 6
    assert all(known["alt"] for tag, known in page.tags if tag == "img")


def test_the_figure_names_the_operations():
    one = measured()
    page = Page(report.page(one))
    columns = [known for tag, known in page.tags if tag == "rect" and known.get("class") == "column"]
    notes = page.titles[1:]
    assert len(columns) == len(notes) == len(one.result.layers)
    for note, layer, kind, value in zip(notes, one.result.layers, one.result.kinds, one.result.relative, strict=True):
        first, *_, last = note.splitlines()
        assert first == f"{layer} ({kind})"
        assert float(re.match(r"R = (\S+)", last).group(1)) == pytest.approx(float(value), rel=6e-3)
    # Side by side, without gaps.
    edges = [(float(known["x"]), float(known["x"]) + float(known["width"])) for known in columns]
    for (_, right), (left, _) in pairwise(edges):
        assert left == pytest.approx(right, abs=0.02)


def test_what_is_not_defined_is_said_and_has_no_value_to_sort_by():
    one = measured(result=result(0, dead=LAYERS[1]))
    _, rows = table_of(Page(report.page(one)))
    assert [row[6]["text"] for row in rows] == ["yes", "no", "yes", "yes"]
    assert rows[1][3]["text"] == "–"
    assert rows[1][3]["data-value"] == ""


def test_names_are_escaped():
    names = ("input", EVIL, "output")
    examples = (IMAGES, IMAGES, IMAGES)
    one = measured(
        EVIL,
        result=result(0, names),
        settings={EVIL: EVIL},
        command=EVIL,
        versions={EVIL: EVIL},
        hidden=((EVIL, EVIL),),
        examples=examples,
    )
    for text in (
        report.page(one),
        report.page([one, measured()]),
        report.page([one, dataclasses.replace(one, label="b")]),
    ):
        page = needs_nothing_else(text)
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert any(EVIL in cell["text"] for row in page.tables[0] for cell in row)
        assert f"Stability of {EVIL}" in page.titles[0]


def test_a_folder_is_read_as_it_was_written(tmp_path):
    one = measured(result=result(0, dead=LAYERS[1]), examples=(IMAGES, IMAGES, IMAGES))
    files = report.write(one, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["index.html", "layers.png", "layers.pdf", "layers.json", "stability.nc"]
    assert all(file.stat().st_size > 500 for file in files)
    again = report.read(tmp_path / "new" / "folder")
    for field in dataclasses.fields(one.result):
        before, after = getattr(one.result, field.name), getattr(again.result, field.name)
        if isinstance(before, (tuple, float, str)):
            assert before == after
        else:
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
    assert again.examples is None
    assert dataclasses.replace(again, result=one.result).to_json() == one.to_json()


def test_json_and_netcdf_agree(tmp_path):
    one = measured()
    report.write(one, tmp_path)
    record = json.loads((tmp_path / "layers.json").read_text())
    dataset = xarray.load_dataset(tmp_path / "stability.nc", engine="h5netcdf")
    for name in ("deformation", "noise", "relative", "relative_interval"):
        np.testing.assert_allclose(record["result"][name], dataset[name].values, rtol=1e-6)
    assert record["result"]["layers"] == dataset["layer"].values.tolist()
    assert record["command"] == dataset.attrs["command"] == one.command
    assert record["versions"] == json.loads(dataset.attrs["versions"]) == one.versions
    assert record["settings"] == json.loads(dataset.attrs["settings"]) == one.settings


def test_networks_of_the_same_layers_share_a_table(tmp_path):
    first, second = measured("first"), measured("second", 1)
    files = report.write([first, second], tmp_path, command="stabjax compare a b")
    assert [file.name for file in files] == ["index.html", "layers.png", "layers.pdf", "layers.json"]
    page = needs_nothing_else(files[0].read_text())
    head, rows = table_of(page)
    assert [cell["text"] for cell in head[3:9]] == [f"{x}{label}" for x in "DGR" for label in ("first", "second")]
    for column, one in ((7, first), (8, second)):
        np.testing.assert_allclose([float(row[column]["data-value"]) for row in rows], one.result.relative, rtol=1e-8)
    assert "stabjax compare a b" in page.texts["pre"]
    assert "differ" not in page.texts["p"]
    # Of the settings, the seed alone is marked.
    marked = [known for tag, known in page.tags if tag == "tr" and known.get("class") == "differs"]
    assert len(marked) == 1
    record = json.loads((tmp_path / "layers.json").read_text())
    assert [each["label"] for each in record["compared"]] == ["first", "second"]
    with pytest.raises(ValueError, match="folder of one network, got a comparison"):
        report.read(tmp_path)


def test_networks_of_other_layers_have_a_table_each():
    layers = ("input", "conv<0>", "dense", "gate", "output")
    first, second = measured("first"), measured("second", result=result(1, layers))
    page = needs_nothing_else(report.page([first, second]))
    assert [len(table) for table in page.tables[:2]] == [5, 6]
    assert "1 of 4 only in first (relu&0); 2 of 5 only in second (dense, gate)" in page.texts["p"]
    notes = page.titles[1:]
    # Inputs and outputs stand at the same places.
    assert len(notes) == 4 + 5 - 2
    assert "first" in notes[0]
    assert "second" in notes[0]


def test_folders_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder that `stabjax measure --out` has written"):
        report.read(tmp_path)
    report.write(measured(), tmp_path)
    (tmp_path / "stability.nc").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"stability\.nc or layers\.json is damaged"):
        report.read(tmp_path)
    (tmp_path / "layers.json").write_text("{")
    with pytest.raises(ValueError, match=r"layers\.json is damaged"):
        report.read(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_mistakes():
    with pytest.raises(ValueError, match="a label of their own each"):
        report.page([measured(), measured()])
    with pytest.raises(ValueError, match="a label of their own each"):
        report.page([])
    with pytest.raises(ValueError, match="of one shape"):
        report.page(measured(examples=(IMAGES, IMAGES[:1], IMAGES)))
