"""The grammar of the library: what every public name keeps to, and which room may import which."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stabjax as sj

ROOT = Path(sj.__file__).parent
ROOMS = sj.__all__

# A drop-in for jax.lax.conv_general_dilated takes what that takes; the command line has one optional argument.
OF_OTHERS = {("conv", "conv_general_dilated"), ("cli", "main")}

MAY_IMPORT = {
    "_types": set(),
    "_numerics": set(),
    "_files": set(),
    "_text": set(),
    "_images": set(),
    "_arguments": set(),
    "_sharding": set(),
    "_jaxpr": set(),
    "fields": set(),
    "warp": set(),
    "perturb": {"fields", "warp"},
    "features": {"_jaxpr"},
    "stability": set(),
    "similarity": set(),
    "probe": {"perturb", "features", "stability", "similarity"},
    "receptive": {"_jaxpr", "features"},
    "theory": set(),
    "lipschitz": {"_jaxpr", "features"},
    "conv": set(),
    "data": set(),
    "models": {"conv"},
    "train": {"perturb", "features"},
    "sweep": set(),
    "plot": {"stability"},
    "cli": set(ROOMS),
}
COMMON = {"_types", "_numerics", "_files", "_text", "_images", "_arguments", "_sharding"}
"""What every room may import."""


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


def imported_rooms(path):
    """Rooms that a file imports, under TYPE_CHECKING or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "stabjax":
                yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("stabjax.")]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = MAY_IMPORT[room] | COMMON | {room}
    assert set(imported_rooms(path)) <= allowed


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_its_room_imports_matplotlib_and_tracing(path):
    text = path.read_text()
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert ("matplotlib" not in text) or room in ("plot", "__init__")
    assert ("make_jaxpr" not in text and "jax.extend" not in text) or room == "_jaxpr"
    assert "jax._src" not in text


@pytest.mark.parametrize("path", sorted((ROOT.parent / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_experiments_use_public_names(path):
    tree = ast.parse(path.read_text())
    assert set(imported_rooms(path)) == set(), "experiments write `import stabjax as sj`"
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    assert not private


def test_files_stay_readable():
    sizes = {path.name: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 360} == {}


def test_importing_starts_nothing():
    code = """
import sys, time
import jax
before = set(sys.modules)
start = time.perf_counter()
import stabjax
elapsed = time.perf_counter() - start
new = {name.split(".")[0] for name in set(sys.modules) - before}
assert new <= {"stabjax"}, new
assert not jax._src.xla_bridge._backends, "a device was started"
for room in stabjax.__all__:
    getattr(stabjax, room)
assert not jax._src.xla_bridge._backends, "a room started a device"
assert "matplotlib.pyplot" not in sys.modules and "orbax" not in new
assert elapsed < 0.1, elapsed
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_rooms_are_named():
    with pytest.raises(AttributeError, match="no room 'perturbation'; it has cli"):
        _ = sj.perturbation
    assert set(ROOMS) <= set(dir(sj))
