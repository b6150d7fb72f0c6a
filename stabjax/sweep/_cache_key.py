"""Keys of static values and functions in the cache of compiled programs.

Python calls 1, 1.0 and True equal, -0.0 and 0.0 too, and NaN unequal to itself. A program compiled for one of them is
wrong for another, so programs are told apart by `cache_key`.
"""

import dataclasses
import dis
import functools
from collections.abc import Hashable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from stabjax._provenance import compared_fields, is_compared_by_fields


def cache_key(value: Any) -> Hashable:
    """Return the key of a static value: like ``==``, but it tells 1 from 1.0 and 0.0 from -0.0."""
    kind, parts = type(value), value
    if isinstance(value, float):
        parts = value.hex()
    elif isinstance(value, complex):
        parts = value.real.hex(), value.imag.hex()
    elif isinstance(value, np.generic):
        parts = value.tobytes()
    elif kind.__eq__ in (tuple.__eq__, list.__eq__):
        parts = tuple(map(cache_key, value))
    elif kind.__eq__ is frozenset.__eq__:
        parts = frozenset(map(cache_key, value))
    elif is_compared_by_fields(value):
        fields = tuple(cache_key(getattr(value, name)) for name in compared_fields(value))
        # The kind is in the key, so that equal fields of two classes are two keys.
        parts = fields if _hashable(fields) else value
    return kind, parts, read_values(value) if callable(value) else ()


def structure_key(treedef: Any) -> Hashable:
    """Return the key of the structure of a pytree, and of what its nodes hold besides their leaves."""
    kind, held = treedef.node_data() or (object, None)
    code = read_values(kind.__call__) if isinstance(kind.__call__, FunctionType) else ()
    return kind, code, cache_key(held), tuple(map(structure_key, treedef.children()))


@functools.lru_cache(maxsize=256)
def intern(identity: Hashable) -> object:
    """Return one object for all equal keys: every call of a program hashes and compares it, at once.

    The cache holds what the identities refer to, so it forgets the oldest; those compile again.
    """
    return object()


def read_values(f: Any) -> Hashable:
    """Return what the code of a callable reads besides its arguments, by identity: what is bound anew is seen.

    That is the code itself, its defaults, the variables it closes over, the globals it names, and the attributes of the
    object it belongs to, unless that is compared by value.
    """
    # The function that holds the code, and the object whose attributes it may read. A callable object with an equality
    # of its own is compared by that already.
    owner = None
    if isinstance(f, MethodType):
        owner, f = f.__self__, f.__func__
    elif not isinstance(f, FunctionType | type):
        owner, f = (f if type(f).__eq__ is object.__eq__ else None), type(f).__call__
    if not isinstance(f, FunctionType):
        return ()
    found = {"code": f.__code__, "defaults": f.__defaults__, "keyword defaults": f.__kwdefaults__}
    for name, variable in zip(f.__code__.co_freevars, f.__closure__ or ()):
        try:
            found[f"variable {name}"] = variable.cell_contents
        except ValueError:  # not bound yet
            continue
    # Values as they are now, so a global that is bound anew gives another key, and another program.
    found |= {f"global {name}": f.__globals__[name] for name in _globals(f.__code__) if name in f.__globals__}
    found |= {f"attribute {name}": value for name, value in getattr(owner, "__dict__", {}).items()}
    return tuple((name, SameObject(value)) for name, value in found.items())


@dataclasses.dataclass(frozen=True, eq=False)
class SameObject:
    """A reference, equal to those to the same object; held, so that no other object takes its place."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameObject) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def _globals(code: CodeType) -> tuple[str, ...]:
    """Return the names of globals in some code, and in the functions written inside of it."""

    def names(code: CodeType) -> Iterator[str]:
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield step.argval
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from names(constant)

    return tuple(dict.fromkeys(names(code)))
