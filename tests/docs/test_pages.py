"""README and docs: their code runs as it stands, their links lead somewhere, their tables are those of the code."""

import io
import pickle
import re
from contextlib import redirect_stdout

import numpy as np
import pytest

from stabjax._jaxpr import _patterns, _regions
from stabjax.features import Tap
from stabjax.networks import _network
from tests import ROOT
from tests.test_api import COMMON, IMPORTS

PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A folder in the official format, with a hundred test images of noise."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        content = {
            "data": rng.integers(0, 256, (100, 3072), dtype=np.uint8),
            "labels": [k % 10 for k in range(100)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (tmp_path / "figures").symlink_to(ROOT / "figures")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def undone(monkeypatch):
    """What a page registers is gone after it."""
    monkeypatch.setattr(_network, "FRAMEWORKS", list(_network.FRAMEWORKS))
    monkeypatch.setattr(_patterns, "PATTERNS", _patterns.PATTERNS)


@pytest.mark.usefixtures("tiny_cifar", "undone", "relaxed_promotion", "unchecked")
@pytest.mark.parametrize("name", [name for name in PAGES if "```python" in (ROOT / name).read_text()])
def test_code_runs(name):
    names = {}
    printed = ""
    for code, expected in BLOCK.findall((ROOT / name).read_text()):
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(code, name, "exec"), names)
        assert not expected or output.getvalue() == expected
        printed += output.getvalue()
    assert printed


def anchors(text):
    """The anchors of the headings of a Markdown file: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.is_file(), f"{name} points to {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{name} points to {target}"


def test_the_readme_scans_in_a_minute():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 700
    assert text.count("![") == 1


def rows(name, heading):
    """The rows of the tables under a heading, as lists of their cells."""
    section = (ROOT / name).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]


def test_the_table_of_rooms_is_that_of_the_imports():
    table = {
        room.strip("`"): set(re.findall(r"`(\w+)`", imports))
        for room, _, imports in rows("docs/architecture.md", "Rooms")
    }
    assert table == {room: rooms - (COMMON if room not in COMMON else set()) for room, rooms in IMPORTS.items()}


def test_the_words_of_recognition_are_those_of_the_code():
    text = (ROOT / "docs/recognition.md").read_text().split("## Words")[1]
    named = re.findall(r"\| `(\w+)(?:\.(\w+))?` \|$", text, flags=re.MULTILINE)
    assert named
    for owner, attribute in named:
        found = Tap if owner == "Tap" else getattr(_regions, owner)
        assert not attribute or attribute in found.__dataclass_fields__, f"{owner}.{attribute}"
