"""Results to report on, and a page as its readers see it."""

import re
from html.parser import HTMLParser

import jax
import numpy as np

import stabjax as sj

LAYERS = ("input", "conv<0>", "relu&0", "output")
KINDS = ("input", "conv", "activation", "output")


def result(seed, layers=LAYERS, *, dead=None):
    """D, G and R of random features; those of the layer ``dead`` are the same for all images."""
    rng = np.random.default_rng(seed)
    clean, deformed, noisy = ({name: rng.normal(size=(12, 4)).astype(np.float32) for name in layers} for _ in range(3))
    if dead:
        clean[dead][:] = 0
    kinds = {name: KINDS[min(k, 2)] for k, name in enumerate(layers[:-1])} | {layers[-1]: "output"}
    return sj.stability.from_features(jax.random.key(seed), clean, deformed, noisy, kinds=kinds)


class Page(HTMLParser):
    """The tags of a page, the cells of its tables, and the text of its parts."""

    VOID = {"meta", "img", "input", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.texts, self.open, self.titles = [], [], {}, [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append((tag, known))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append({"text": "", **known})
        elif tag == "title":
            self.titles.append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        self.texts[inside] = self.texts.get(inside, "") + data
        if inside == "title":
            self.titles[-1] += data
        if self.open and {"td", "th"} & set(self.open) and self.tables:
            self.tables[-1][-1][-1]["text"] += data


def needs_nothing_else(text):
    """Check that nothing on the page is fetched: no address, no file, no import of a style."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "xlink:href", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    styles = page.texts["style"] + " ".join(known.get("style") or "" for _, known in page.tags)
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", styles))
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML", page.texts["script"])
    assert "://" not in text
    return page
