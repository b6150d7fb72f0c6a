"""What a static value is: exactly, for the compiled program, and as text, for files.

Python calls 1, 1.0 and True equal, -0.0 and 0.0 too, and NaN unequal to itself. A program compiled for one of them is
wrong for another, so programs are told apart by `exact`.
"""

import dataclasses
import dis
import functools
from collections.abc import Hashable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from stabjax._provenance import compared_fields, is_compared_by_fields


def exact(value: Any) -> Hashable:
    """What is equal if and only if a function cannot tell the values apart, as far as their parts are known."""
    kind, parts = type(value), value
    if isinstance(value, float):
        parts = value.hex()
    elif isinstance(value, complex):
        parts = value.real.hex(), value.imag.hex()
    elif isinstance(value, np.generic):
        parts = value.tobytes()
    elif kind.__eq__ in (tuple.__eq__, list.__eq__):
        parts = tuple(map(exact, value))
    elif kind.__eq__ is frozenset.__eq__:
        parts = frozenset(map(exact, value))
    elif is_compared_by_fields(value):
        fields = tuple(exact(getattr(value, name)) for name in compared_fields(value))
        parts = fields if _hashable(fields) else value
    return kind, parts, reads(value) if callable(value) else ()


def exact_structure(treedef: Any) -> Hashable:
    """The same for the structure of a pytree, and for what its nodes hold besides their leaves."""
    kind, held = treedef.node_data() or (object, None)
    code = reads(kind.__call__) if isinstance(kind.__call__, FunctionType) else ()
    return kind, code, exact(held), tuple(map(exact_structure, treedef.children()))


@functools.lru_cache(maxsize=256)
def token(identity: Hashable) -> object:
    """One object for all identities that are equal: hashed and compared at once, which every call of a program does.

    The cache holds what the identities refer to, so it forgets the oldest; those compile again.
    """
    return object()


def reads(f: Any) -> Hashable:
    """What the code of a callable finds outside of its arguments, by identity: what is bound anew is seen.

    That is the code itself, its defaults, the variables it closes over, the globals it names, and the attributes of the
    object it belongs to, unless that is compared by value.
    """
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
    found |= {f"global {name}": f.__globals__[name] for name in _globals(f.__code__) if name in f.__globals__}
    found |= {f"attribute {name}": value for name, value in getattr(owner, "__dict__", {}).items()}
    return tuple((name, Itself(value)) for name, value in found.items())


@dataclasses.dataclass(frozen=True, eq=False)
class Itself:
    """A reference, equal to those to the same object; held, so that no other object takes its place."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other.value is self.value

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
    """Names of globals in some code, and in the functions written inside of it."""

    def names(code: CodeType) -> Iterator[str]:
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                yield step.argval
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from names(constant)

    return tuple(dict.fromkeys(names(code)))
