"""The grammar of the library: what every public name keeps to, and which room may import which."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest

import stabjax as sj

ROOT = Path(sj.__file__).parent
ROOMS = sj.__all__

# A drop-in for jax.lax.conv_general_dilated takes what that takes; the command line has one optional argument.
OF_OTHERS = {("conv", "conv_general_dilated"), ("cli", "main")}

IMPORTS = {
    "_types": set(),
    "_version": set(),
    "_numerics": set(),
    "_files": set(),
    "_text": set(),
    "_images": set(),
    "_pixels": set(),
    "_arguments": {"_jaxpr"},
    "_compilation": set(),
    "_compilation_cache": {"data"},
    "_progress": set(),
    "_provenance": {"_version"},
    "_sharding": set(),
    "_jaxpr": set(),
    "fields": set(),
    "warp": set(),
    "perturb": {"fields", "warp"},
    "networks": {"_jaxpr"},
    "features": {"_jaxpr", "networks"},
    "stability": set(),
    "similarity": set(),
    "probe": {"conv", "perturb", "networks", "features", "receptive", "stability", "similarity"},
    "receptive": {"_jaxpr", "features"},
    "theory": set(),
    "lipschitz": {"_jaxpr", "features"},
    "conv": set(),
    "data": set(),
    "models": {"conv"},
    "train": {"_jaxpr", "features", "networks", "perturb"},
    "sweep": set(),
    "plot": {"stability"},
    "report": {"plot", "stability"},
    "cli": {"data", "features", "models", "networks", "perturb", "plot", "probe", "report", "stability", "train"},
}
"""The rooms that each room imports, no more and no fewer; what is common may be imported by all."""
COMMON = {room for room in IMPORTS if room.startswith("_")} - {"_version", "_jaxpr"}


def public_functions():
    for room in ROOMS:
        module = importlib.import_module(f"stabjax.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield pytest.param(room, name, value, id=f"{room}.{name}")


FUNCTIONS = list(public_functions())


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_say_what_they_hold(room):
    module = getattr(sj, room)
    assert module.__doc__, f"{room} has no contract at its head"
    assert module.__all__ == sorted(module.__all__, key=lambda name: (name.upper() != name, name[0].islower(), name))
    for name in module.__all__:
        value = getattr(module, name)
        documented = inspect.isclass(value) or inspect.isfunction(value)
        assert not documented or inspect.getdoc(value), f"{room}.{name} has no docstring"


def test_one_address_per_name():
    seen = {}
    for room in ROOMS:
        for name in getattr(sj, room).__all__:
            value = getattr(getattr(sj, room), name)
            if inspect.isfunction(value) or (inspect.isclass(value) and value.__module__.startswith("stabjax")):
                assert id(value) not in seen, f"{room}.{name} is also {seen[id(value)]}"
                seen[id(value)] = f"{room}.{name}"


@pytest.mark.parametrize(("room", "name", "function"), FUNCTIONS)
def test_grammar(room, name, function):
    parameters = list(inspect.signature(function).parameters.values())
    assert name == name.lower()
    for k, parameter in enumerate(parameters):
        assert parameter.annotation is not inspect.Parameter.empty, f"{parameter.name} has no annotation"
        if parameter.default is not inspect.Parameter.empty and (room, name) not in OF_OTHERS:
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{parameter.name} has a default by position"
        assert parameter.name not in ("rng", "prng", "seed_key", "prng_key"), "a key is called key"
        if parameter.name == "key":
            assert parameter.default is inspect.Parameter.empty, "a key has no default"
            assert k == 0 or parameter.kind is inspect.Parameter.KEYWORD_ONLY, "a key comes first"
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def imported_modules(path):
    """Modules of the library that a file imports, under TYPE_CHECKING or not, as lists of their parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stabjax":
            # `from stabjax.room import name` may name a file of the room.
            yield from [[*node.module.split(".")[1:], alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "stabjax"]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports_of_rooms():
    found = {room_of(path): set() for path in FILES}
    for path in FILES:
        for parts in imported_modules(path):
            found[room_of(path)].add(parts[0] if parts else "the root")
    return {room: rooms - {room} for room, rooms in found.items()}


def test_rooms_import_what_the_table_says():
    found = imports_of_rooms()
    assert {room: rooms - COMMON for room, rooms in found.items()} == {
        room: rooms - COMMON for room, rooms in IMPORTS.items()
    }
    assert set().union(*found.values()) >= COMMON


def test_no_room_imports_one_that_imports_it():
    above = {room: rooms & set(IMPORTS) for room, rooms in imports_of_rooms().items()}
    while above:
        floor = {room for room, rooms in above.items() if not rooms}
        assert floor, f"a circle among {sorted(above)}"
        above = {room: rooms - floor for room, rooms in above.items() if room not in floor}


def test_private_files_stay_in_their_room():
    crossings = {}
    for path in FILES:
        for parts in imported_modules(path):
            if parts and parts[0] != room_of(path) and any(part.startswith("_") for part in parts[1:]):
                crossings.setdefault(room_of(path), set()).add(parts[0])
    assert crossings == {}


@each_file
def test_only_its_room_imports_matplotlib_and_tracing(path):
    text = path.read_text()
    room = room_of(path)
    assert ("matplotlib" not in text) or room == "plot"
    assert ("make_jaxpr" not in text and "jax.extend" not in text) or room == "_jaxpr"
    assert "jax._src" not in text


@pytest.mark.parametrize("path", sorted((ROOT.parent / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_experiments_use_public_names(path):
    tree = ast.parse(path.read_text())
    assert all(parts == [] for parts in imported_modules(path)), "experiments write `import stabjax as sj`"
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert not private


def test_files_stay_readable():
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 360} == {}


def test_importing_starts_nothing():
    code = """
import sys
import jax
before = set(sys.modules)
import stabjax
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new <= {"stabjax"}, new
assert not jax._src.xla_bridge._backends, "a device was started"
for room in stabjax.__all__:
    getattr(stabjax, room)
assert not jax._src.xla_bridge._backends, "a room started a device"
assert "matplotlib.pyplot" not in sys.modules and "orbax" not in new
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_rooms_are_named():
    with pytest.raises(AttributeError, match="no room 'perturbation'; it has cli"):
        _ = sj.perturbation
    assert set(ROOMS) <= set(dir(sj))


def test_one_version():
    for file, line in (("CITATION.cff", f"version: {sj.__version__}"), ("CHANGELOG.md", f"## {sj.__version__}")):
        assert any(text.startswith(line) for text in (ROOT.parent / file).read_text().splitlines()), file


def test_types_are_checked_at_every_call():
    with pytest.raises(jaxtyping.TypeCheckError):
        sj.stability.pair_distance("no array")
