"""Where a number comes from: software, device, the command that computes it again, and what it was computed from.

What goes into files is the same in every process: fingerprints of arrays, and descriptions of functions and other
values, by which a run or a sweep on disk knows its arguments again.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import platform
import re
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stabjax._arguments import is_key
from stabjax._version import version


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of stabjax and of these packages, by name; ``"python"`` is that of the language."""
    known = {"stabjax": version, "python": platform.python_version()}
    return {name: known.get(name) or importlib.metadata.version(name) for name in ("stabjax", *packages)}


def versions() -> dict[str, str]:
    """Return the versions of stabjax and what it stands on, and the device: what belongs beside every number."""
    device = jax.devices()[0]
    found = versions_of("jax", "flax", "optax", "numpy")
    return {**found, "device": f"{device.platform} ({device.device_kind}, {jax.device_count()})"}


def command(module: str, config: Any) -> str:
    """Write the command line that makes a result again: the options that differ from their defaults.

    Args:
        module: Of the script, ``experiments.layerwise``.
        config: Its settings, a dataclass with a default for each. Folders are left out.
    """
    words = ["python", "-m", module]
    for name, value in dataclasses.asdict(config).items():
        if value != getattr(type(config)(), name) and not isinstance(value, Path):
            given = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}"] if value is True else [f"--{name}", *map(str, given)]
    return " ".join(words)


def checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of the bytes of an array."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def fingerprint(array: Any) -> str:
    """Return dtype, shape and checksum of an array, as text."""
    array = np.asarray(array)
    return f"{array.dtype}{list(array.shape)} crc {checksum(array)}"


def digest(tree: Any) -> str:
    """Return the SHA-256 of all arrays of a tree, in the order of its leaves; random keys count as their integers."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return ``{"blocks/0/conv/kernel": leaf}``; the ``value`` inside a variable of NNX is left out of the path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/").removesuffix("/value"): v for k, v in leaves}


def describe(value: Any, *, inside: tuple[int, ...] = ()) -> Any:
    """Return what tells a function, or another value, from others in any process, as JSON has it.

    A function of a module counts by its name; a lambda, or a function made in another, by its code too and by what it
    closes over; an object by its ``__call__`` and its attributes. What they find by a global name does not count.

    Args:
        value: a function, a container, an array, or anything else.
        inside: ``id`` of the values that hold this one.
    """
    # An object may refer to itself, directly or through others.
    if id(value) in inside:
        return "itself"
    go = functools.partial(describe, inside=(*inside, id(value)))
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return fingerprint(jax.random.key_data(value) if isinstance(value, jax.Array) and is_key(value) else value)
    if isinstance(value, (list, tuple)):
        return [go(each) for each in value]
    if isinstance(value, (set, frozenset)):
        # Sets have another order in each process.
        return sorted(str(go(each)) for each in value)
    if isinstance(value, Mapping):
        return [[go(k), go(v)] for k, v in value.items()]
    if isinstance(value, types.CodeType):
        # Neither lines nor the file: code that was only moved stays the same.
        text = repr((value.co_code, value.co_names, go(value.co_consts)))
        return hashlib.sha256(text.encode()).hexdigest()
    if isinstance(value, functools.partial):
        return [go(value.func), go(value.args), go(sorted(value.keywords.items()))]
    if isinstance(value, types.MethodType):
        return [go(value.__func__), go(value.__self__)]
    if isinstance(value, types.FunctionType):
        # "<lambda>" and "f.<locals>.g": names that do not tell which function it is.
        if "<" not in value.__qualname__:
            return value.__qualname__
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, go(value.__code__), go((held, value.__defaults__, value.__kwdefaults__))]
    if hasattr(value, "__wrapped__"):  # by jax.jit
        return go(value.__wrapped__)
    if isinstance(value, types.ModuleType) or hasattr(value, "__qualname__"):
        return value.__name__ if isinstance(value, types.ModuleType) else value.__qualname__
    if not jax.tree_util.all_leaves([value]):
        return [without_addresses(str(jax.tree.structure(value))), go(leaves_by_path(value))]
    if hasattr(value, "__dict__"):
        return [type(value).__qualname__, go(type(value).__call__ if callable(value) else None), go(vars(value))]
    return without_addresses(repr(value))


def describe_shortly(value: Any) -> str:
    """Return a hashable value as it is shown to people and written beside results, the same in every process."""
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(sorted(map(describe_shortly, value)))}}})"
    if isinstance(value, tuple):
        # A named tuple is shown by its name, and (x,) with its comma.
        name = "" if type(value) is tuple else type(value).__qualname__
        return f"{name}({', '.join(map(describe_shortly, value))}{',' if len(value) == 1 else ''})"
    if is_compared_by_fields(value):
        fields = [f"{name}={describe_shortly(getattr(value, name))}" for name in compared_fields(value)]
        return f"{type(value).__qualname__}({', '.join(fields)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return without_addresses(repr(value))


def is_compared_by_fields(value: Any) -> bool:
    """Tell whether a value is a dataclass with an equality of its own."""
    kind = type(value)
    return dataclasses.is_dataclass(kind) and kind.__eq__ is not object.__eq__


def compared_fields(value: Any) -> list[str]:
    """Return the names of the fields by which a dataclass is compared."""
    return [field.name for field in dataclasses.fields(value) if field.compare]


def without_addresses(text: str) -> str:
    """Return a text without the addresses in memory that ``repr`` writes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
