"""Write the documentation as web pages: the README, the pages of this folder, and a reference made of the docstrings.

    python docs/generate.py build/docs

Needs no network. Links between Markdown files become links between pages; what else a page names (a figure, the numbers
behind it, a script) is copied to the same place below the output folder. `KeyError` and `FileNotFoundError` name a link
that leads nowhere.
"""

import inspect
import re
import shutil
import sys
from html import escape
from os.path import relpath
from pathlib import Path
from typing import Any

import _signatures
import pdoc.doc
import pdoc.render
import pdoc.render_helpers
import pygments
import pygments.lexers
from markupsafe import Markup

import stabjax

HERE = Path(__file__).parent
ROOT = HERE.parent

PAGES = {
    "README.md": ("index.html", "stabjax"),
    "docs/all-of-stabjax.md": ("all-of-stabjax.html", "All on one page"),
    "docs/measure.md": ("measure.html", "From the command line"),
    "docs/results.md": ("results.html", "Results"),
    "docs/architecture.md": ("architecture.html", "Architecture"),
    "docs/frameworks.md": ("frameworks.html", "Networks of every framework"),
    "docs/recognition.md": ("recognition.html", "How operations are recognized"),
    "docs/extending.md": ("extending.html", "Extending stabjax"),
    "docs/inputs.md": ("inputs.html", "Wrong input"),
    "CONTRIBUTING.md": ("contributing.html", "Contributing"),
    "CHANGELOG.md": ("changelog.html", "Changelog"),
}
"""Markdown files, each with its page and its title, in the order of the menu."""

TYPES = "types.html"
"""The page of the names that stand for array types."""

HIDDEN = ("tree_flatten", "tree_flatten_with_keys", "tree_unflatten")
"""What JAX calls, and no user."""


def find_rooms() -> dict[str, str]:
    """Return the name that each public module goes by: the rooms, and the modules that a room lists as its own."""
    rooms = {}
    for room in stabjax.__all__:
        rooms[f"stabjax.{room}"] = room
        names = getattr(stabjax, room).__all__
        inner = [name for name in names if inspect.ismodule(getattr(getattr(stabjax, room), name))]
        rooms |= {f"stabjax.{room}.{name}": f"{room}.{name}" for name in inner}
    return rooms


ROOMS = find_rooms()


def build(output: Path) -> None:
    """Write all pages, the search index and the files that pages name."""
    site = Site(output)
    for name in PAGES:
        site.write_page(name)
    site.write_reference()
    site.write_types()


class Site:
    """The pages below one folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.modules = read_modules()
        self.names = Names()
        pdoc.render.configure(
            docformat="google",
            include_undocumented=False,
            show_source=False,
            template_directory=HERE / "templates",
        )
        env = pdoc.render.env
        env.globals |= {"pages": list(PAGES.values()), "hidden": HIDDEN, "rooms": ROOMS, "types": TYPES}
        env.filters["format_signature"] = self.names.format_signature
        env.filters["link_types"] = self.names.link_types

    # The pages of the folder

    def write_page(self, name: str) -> None:
        """Write a Markdown file as a page."""
        page, title = PAGES[name]
        html = to_html((ROOT / name).read_text())
        html = re.sub(r'(href|src)="([^"]*)"', lambda found: self.link(found, name), html)
        # A public name in code leads to its entry: `sj.fields.sample(...)`.
        html = re.sub(r"<code>(?:sj\.)?([a-z]+)(?:\.(\w+))?(?=[(.<])", lambda found: to_entry(found, page), html)
        self.write(page, "page.html.jinja2", title=title, body=Markup(html), root="")

    def link(self, found: re.Match[str], name: str) -> str:
        """Return where a link of a Markdown file leads to on the page made of it; copy the file if it is no page."""
        attribute, target = found.groups()
        if target.startswith(("http://", "https://", "#")):
            return found.group()
        file, _, anchor = target.partition("#")
        path = relpath((ROOT / name).parent / file, ROOT)
        if path in PAGES:
            page = PAGES[path][0]
        elif path.endswith(".md") or (ROOT / path).is_dir():
            raise KeyError(f"{name} names {path}, which is no page")
        elif path.endswith(".py"):
            page = self.write_source(path)
        else:
            page = path
            (self.output / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, self.output / path)
        return f'{attribute}="{page}{"#" + anchor if anchor else ""}"'

    def write_source(self, path: str) -> str:
        """Write a script as a page."""
        lexer = pygments.lexers.PythonLexer()
        html = pygments.highlight((ROOT / path).read_text(), lexer, pdoc.render_helpers.signature_formatter)
        body = Markup(f'<h1>{path}</h1><div class="pdoc-code codehilite"><pre>{html}</pre></div>')
        self.write(f"{path}.html", "page.html.jinja2", title=path, body=body, root="../" * path.count("/"))
        return f"{path}.html"

    def write_types(self) -> None:
        """Write the page of the names that stand for types, after all pages that use them."""
        text = to_html("# Types\n\n" + as_markdown(stabjax._types.__doc__ or ""))
        entries = [
            (anchor, _signatures.Text(value), docstring)
            for anchor, (value, docstring) in sorted(self.names.types.items())
            if anchor in self.names.used
        ]
        self.write(TYPES, "types.html.jinja2", title="Types", body=Markup(text), entries=entries, root="")

    # The reference

    def write_reference(self) -> None:
        """Write one page per room, and the index that the search box reads."""
        for name, module in self.modules.items():
            path = self.output / f"{name.replace('.', '/')}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.names.module = name
            path.write_text(pdoc.render.html_module(module, self.modules))
        (self.output / "search.js").write_text(pdoc.render.search_index(self.modules))

    def write(self, page: str, template: str, **known: Any) -> None:
        """Write one page."""
        path = self.output / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pdoc.render.env.get_template(template).render(all_modules=self.modules, page=page, **known))


class Names:
    """Where the types in signatures are explained.

    Attributes:
        module: the module whose page is being written.
        public: the room of each public name.
        types: names that stand for types without being public, by their anchors on the page of types: ``Images`` is one
            of the whole library, ``probe.Radius`` one of a room. Each with its value and its docstring.
        used: anchors of those that a signature names.
    """

    def __init__(self) -> None:
        self.module = "stabjax"
        self.public = {name: room for room in reversed(stabjax.__all__) for name in getattr(stabjax, room).__all__}
        self.types = _signatures.constants(ROOT / "stabjax/_types") | _signatures.constants(ROOT / "stabjax/_images")
        for room in stabjax.__all__:
            found = _signatures.constants(ROOT / "stabjax" / room)
            self.types |= {f"{room}.{name}": entry for name, entry in found.items() if name not in self.public}
        self.used: set[str] = set()

    def format_signature(self, signature: Any, colon: bool) -> Markup:
        """Return a signature as HTML, with the names of types as links."""
        del colon
        html = pdoc.render_helpers.format_signature(signature, colon=False)
        return Markup(re.sub(r'(?<=<span class="n">)[A-Z]\w*(?=</span>)', lambda found: self.link(found[0]), html))

    def link_types(self, annotation: str) -> Markup:
        """Return an annotation as HTML, with the names of types as links."""
        return Markup(re.sub(r"(?<![\w.])[A-Z]\w*", lambda found: self.link(found[0]), escape(annotation, quote=False)))

    def link(self, name: str) -> str:
        """Return the name of a type as a link to where it is explained, if it is."""
        if name in getattr(sys.modules[self.module], "__all__", ()):
            return f'<a href="#{name}">{name}</a>'
        top = "../" * self.module.count(".")
        room = ROOMS.get(self.module, "").partition(".")[0]
        for anchor in (f"{room}.{name}", name):
            if anchor in self.types:
                self.used.add(anchor)
                return f'<a href="{top}{TYPES}#{anchor}">{name}</a>'
        return f'<a href="{top}stabjax/{self.public[name]}.html#{name}">{name}</a>' if name in self.public else name


def read_modules() -> dict[str, pdoc.doc.Module]:
    """Return the rooms as pdoc reads them, with signatures as they are written and a text for every name."""
    modules = {name: pdoc.doc.Module.from_name(name) for name in ("stabjax", *ROOMS)}
    for name, module in modules.items():
        written = _signatures.constants(ROOT / name.replace(".", "/")) if name in ROOMS else {}
        module.docstring = as_markdown(module.docstring if name in ROOMS else link_rooms(module.docstring))
        for member in module.members.values():
            prepare(member, written)
    return modules


def prepare(member: Any, written: dict[str, tuple[str, str]]) -> None:
    """Give one public name, and the methods of a class, the signature and the text that are in the source."""
    if isinstance(member, pdoc.doc.Variable):
        value, text = written[member.name]
        member.docstring = text or choices(value)
        member.__dict__["default_value_str"] = value if len(value) < 200 else "..."
        member.__dict__["annotation_str"] = ""
        return
    member.docstring = as_markdown(member.docstring)
    if isinstance(member, pdoc.doc.Class):
        member.__dict__["decorators"] = []
        member.__dict__["constructor"] = _signatures.of_class(member.obj)
        fields = _signatures.of_fields(member.obj)
        for method in member.own_members:
            if method.name in fields:
                annotation, default = fields[method.name]
                method.__dict__["annotation_str"] = f": {_signatures.Text(annotation)}"
                method.__dict__["default_value_str"] = default or ""
            method.docstring = as_markdown(method.docstring)
            if isinstance(method, pdoc.doc.Function) and (method.name == "__call__" or not method.name.startswith("_")):
                set_signature(method)
    elif isinstance(member, pdoc.doc.Function):
        set_signature(member)


def set_signature(function: Any) -> None:
    """Show a function as it is written, without its decorators."""
    function.__dict__["decorators"] = []
    function.__dict__["signature"] = _signatures.of_function(function.obj)


def as_markdown(docstring: str) -> str:
    """Return a docstring whose code blocks are introduced by one colon, as in Markdown."""
    return re.sub(r"::(?=\s*\n\s*\n)", ":", docstring)


def link_rooms(docstring: str) -> str:
    """Return the docstring of the library with its list of rooms as links to them."""
    return re.sub(
        r"^ {4}(\w+) +(\S.*)$",
        lambda found: (
            f"- [{found[1]}](stabjax/{found[1]}.html): {found[2]}" if found[1] in ROOMS.values() else found[0]
        ),
        docstring,
        flags=re.MULTILINE,
    )


def choices(value: str) -> str:
    """Say which values a ``Literal`` allows."""
    inside = re.fullmatch(r"Literal\[(.*)\]", value)
    return "One of " + ", ".join(f"`{text}`" for text in inside[1].split(", ")) + "." if inside else ""


def to_html(markdown: str) -> Any:
    """Return Markdown as HTML."""
    return pdoc.render_helpers.to_html(markdown)


def to_entry(found: re.Match[str], page: str) -> str:
    """Return the code of a public name as a link to its entry; anything else as it was."""
    room, name = found.groups()
    if room not in stabjax.__all__ or (name and name not in getattr(stabjax, room).__all__):
        return found.group()
    if name is None and not found.group().startswith("<code>sj."):
        return found.group()
    anchor = f"#{name}" if name else ""
    root = "../" * page.count("/")
    return f'<code><a href="{root}stabjax/{room}.html{anchor}">{escape(found.group().removeprefix("<code>"))}</a>'


if __name__ == "__main__":
    build(Path(sys.argv[1]))
