"""The pages that `make docs` writes: every public name has an entry, and every link leads somewhere."""

import inspect
import re
import sys
from html.parser import HTMLParser

import pytest

import stabjax as sj
from tests import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    output = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import generate

        generate.build(output)
    yield output
    del sys.modules["generate"], sys.modules["_signatures"]


class Page(HTMLParser):
    """Anchors and links of a page, and the text of each entry."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.entries = set(), [], {}
        self.entry, self.depth = None, 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        if "id" in known:
            self.anchors.add(known["id"])
        self.links += [known[name] for name in ("href", "src") if known.get(name)]
        if tag == "section":
            self.entry = known.get("id")
        if tag == "div" and (self.depth or known.get("class") == "docstring"):
            self.depth += 1

    def handle_endtag(self, tag):
        if tag == "div" and self.depth:
            self.depth -= 1

    def handle_data(self, data):
        if self.entry and self.depth and data.strip():
            self.entries[self.entry] = self.entries.get(self.entry, "") + data


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def public_modules():
    """The rooms, and the modules that a room lists as its own."""
    for room in map(sj.__getattr__, sj.__all__):
        yield from [room, *(value for value in map(room.__dict__.get, room.__all__) if inspect.ismodule(value))]


def test_every_public_name_has_an_entry_with_text(site, pages):
    for module in public_modules():
        entries = pages[site / f"{module.__name__.replace('.', '/')}.html"].entries
        missing = [name for name in module.__all__ if not entries.get(name)]
        assert not missing, f"no text for {missing} of {module.__name__}"


def test_the_menu_names_all_pages(site, pages):
    top = [path.name for path in site.glob("*.html")]
    rooms = [f"stabjax/{room}.html" for room in sj.__all__]
    assert set(pages[site / "index.html"].links) >= {*top, *rooms} - {"stabjax.html"}


def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if link.startswith(("http://", "https://", "data:")):
                continue
            target = (path.parent / file).resolve() if file else path
            if not target.exists() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_signatures_are_as_written(site):
    text = re.sub(r"<[^>]+>", "", (site / "stabjax/probe.html").read_text())
    assert re.search(r"def\s+stability\(\s*f: Any,\s*images: Any,\s*\*,\s*key: PRNGKey,", text)
    assert "jaxlib" not in text


def test_the_search_finds_every_public_name(site):
    index = (site / "search.js").read_text()
    for module in public_modules():
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in index
