"""What a program computes, and what an object holds, as values that compare.

Two traces of one function give programs that are equal in every step and the same object in none. Here they are equal:
values count by their place, parameters by what they hold, rules of derivatives by their code and by what that closes
over. Arrays count by themselves, or by their bytes where they can be changed in place. What is not known is equal to
itself alone, so the answer may be that two programs differ although they do not, never the reverse.
"""

import functools
import hashlib
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._code import (
    DATA,
    PLAIN,
    class_data,
    globals_of,
    held_by,
    is_foreign,
    is_known,
    is_of_library,
    is_transformed,
    is_type_check,
    methods_of,
)
from stabjax._jaxpr._program import is_literal, opened

_TRACES = frozenset({"_trace_state", "_pytree__state", "_pytree__nodes"})
"""Where a Flax object keeps the trace it was made in, another one for each object, and which attributes are leaves."""


class Itself:
    """A reference, equal to those to the same object. It keeps no array alive: one to what is gone is equal to none."""

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.refer = weakref.ref(value)
        except TypeError:
            self.refer = lambda: value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.refer() is not None and other.refer() is self.refer()

    def __hash__(self) -> int:
        return self.number


def of_program(jaxpr: Any) -> Hashable:
    """Return what a program computes from its constants and inputs."""
    return _Look().program(jaxpr, closed=False)


class Examined(NamedTuple):
    """What one look at an object found."""

    identity: Hashable
    """What the object holds besides the known arrays, as far as it can be followed: attributes, items, closures."""
    may_change: bool
    """Whether it holds what can change in place besides them: arrays, lists or objects of plain data."""
    foreign: bool
    """Whether it runs code that is of no known library, which may read anything when it is called."""


def examine(value: Any, known: Sequence[Any] = ()) -> Examined:
    """Look at an object once; ``known`` are arrays that do not count."""
    look = _Look(known)
    try:
        identity = look.value(value)
    except RecursionError:
        # `look` belongs to this call alone, so this identity equals no other.
        return Examined(Itself(look), may_change=True, foreign=True)
    return Examined(identity, look.changing or bool(look.arrays), look.foreign)


def of_object(value: Any) -> Hashable:
    """Return what an object holds, as far as it can be followed."""
    return examine(value).identity


@functools.lru_cache(maxsize=256)
def token(identity: Hashable) -> object:
    """Return one object for all equal identities: hashed and compared at once, as every call of a program does.

    The cache holds what the identities refer to, so it forgets the oldest; those compile again.
    """
    return object()


class _Look:
    """One look at something; what it meets again is not followed again."""

    def __init__(self, known: Sequence[Any] = ()) -> None:
        self.known = set(map(id, known))
        self.met: dict[int, int] = {}
        self.held: list[Any] = []
        self.arrays: list[Any] = []
        self.changing = False
        self.foreign = False
        self.private = 0  # inside of so many attributes that a library keeps for itself

    def program(self, jaxpr: Any, *, closed: bool = True) -> Hashable:
        inner, consts = opened(jaxpr)
        # Variables count by their order, so that two traces of ``a * b + a`` agree:
        #
        #     inputs 0 1    mul 0 1 -> 2    add 2 0 -> 3    outputs 3
        numbers: dict[Any, int] = {}

        def atom(a: Any) -> Hashable:
            if is_literal(a):
                return "literal", _bytes(a.val), a.aval
            return numbers.setdefault(a, len(numbers))

        def made(variables: Any) -> Hashable:
            return tuple((numbers.setdefault(var, len(numbers)), var.aval) for var in variables)

        inputs = made((*inner.constvars, *inner.invars))
        steps = tuple(
            (
                equation.primitive,
                str(equation.source_info.name_stack),
                tuple(map(atom, equation.invars)),
                tuple((name, self.value(value)) for name, value in sorted(equation.params.items())),
                made(equation.outvars),
            )
            for equation in inner.eqns
        )
        # The name of a function inside counts, as it names taps (``relu``); that of the whole program does not.
        name = getattr(getattr(inner, "debug_info", None), "func_name", "") if closed else ""
        held = tuple(map(self.value, consts)) if closed else ()
        return name, inputs, steps, tuple(map(atom, inner.outvars)), held

    def value(self, value: Any) -> Hashable:
        """Identify anything that a parameter, an attribute or a variable can be."""
        kind = type(value)
        if isinstance(value, jax.Array | np.ndarray):
            if id(value) in self.known:
                return "known"
            self.arrays.append(value)
        # An array of JAX never changes, so the object identifies it. One of NumPy may change in place: its bytes do
        # (below).
        if isinstance(value, Tracer | jax.Array):
            return Itself(value)
        if isinstance(value, type | ModuleType):
            self.foreign |= is_foreign(value) if isinstance(value, type) else not is_known(value.__name__)
        if isinstance(value, PLAIN):
            return kind, value
        # By their bits: 0.0 == -0.0, but their inverses differ, and a nan is not equal to itself.
        if isinstance(value, float):
            return kind, value.hex()
        if isinstance(value, complex):
            return kind, value.real.hex(), value.imag.hex()
        if isinstance(value, np.ndarray | np.generic) or kind.__name__ == "TypedNdArray":
            return _bytes(value)
        if isinstance(value, jax.tree_util.PyTreeDef):
            node = value.node_data() or (None, None)
            return kind, node[0], self.value(node[1]), tuple(map(self.value, value.children()))
        if isinstance(value, ModuleType):
            return Itself(value)
        if hasattr(opened(value)[0], "eqns"):
            return self.program(value)
        # A tuple is not counted as met: it cannot change, so equal ones are the same. Two references to one list are
        # not two equal lists: a change in it is seen through both.
        if isinstance(value, tuple):
            return kind, tuple(map(self.value, value))
        if id(value) in self.met:
            return "met", self.met[id(value)]
        self.met[id(value)] = len(self.met)
        self.held.append(value)  # else another object could take its place in memory
        if isinstance(value, list | set | Mapping):
            items = value.values() if isinstance(value, Mapping) else value
            # Plain data in a container can be replaced in place.
            self.changing |= not self.private and any(isinstance(item, DATA) for item in items)
        if isinstance(value, list):
            return kind, tuple(map(self.value, value))
        if isinstance(value, set | frozenset):
            return kind, frozenset(map(self.value, value))
        if isinstance(value, Mapping):
            return kind, tuple((self.value(key), self.value(item)) for key, item in value.items())
        if is_transformed(value):
            # Without what its last trace has left in it (the stores), and without the lines of code (`DebugInfo`).
            done = [(self.value(rule), tuple(map(self.value, _data(given)))) for rule, given in value.transforms]
            return kind, self.value(value.f), *done, self.value(value.params)
        return self.callable(value) if callable(value) else self.object(value)

    def callable(self, f: Any) -> Hashable:
        """Identify a function by its code and what that reads; a wrapper by what it wraps."""
        if isinstance(f, functools.partial):
            return type(f), *map(self.value, (f.func, f.args, f.keywords))
        if isinstance(f, MethodType):
            return type(f), self.value(f.__func__), self.value(f.__self__)
        if isinstance(f, FunctionType) and is_type_check(f):
            return self.value(f.__dict__["__wrapped__"])
        if isinstance(f, FunctionType):
            self.foreign |= not self.private and not is_known(f.__globals__.get("__name__", ""))
            # A global variable can be bound to another value between two calls.
            variables = dict(globals_of(f))
            self.changing |= not self.private and any(isinstance(item, (*DATA, tuple)) for item in variables.values())
            read = (*held_by(f), *variables.items())
            return FunctionType, f.__code__, *[(name, self.value(value)) for name, value in read]
        # A wrapper that a library has made, as `jax.jit` does: the function inside says what it computes.
        wrapped = getattr(f, "__wrapped__", None)
        if is_of_library(type(f)) and wrapped is not None and not hasattr(f, "__self__"):
            return type(f), self.value(wrapped)
        return self.object(f)

    def object(self, value: Any) -> Hashable:
        """Identify an object by its attributes; one without any, and one of JAX, by its own equality."""
        self.foreign |= not self.private and any(map(is_foreign, type(value).__mro__))
        attributes = _attributes(value)
        if not attributes or type(value).__module__.partition(".")[0] in ("jax", "jaxlib"):
            try:
                hash(value)
            except TypeError:
                return (type(value), self.value(value.val)) if hasattr(value, "val") else Itself(value)
            return type(value), value
        # The classes that no library has made; `library`: whether it has others too, as a module of Flax or Equinox.
        own = [base for base in type(value).__mro__[:-1] if not is_of_library(base)]
        library = len(own) < len(type(value).__mro__) - 1
        if own and not library and any(isinstance(item, DATA) for item in attributes.values()):
            self.changing |= not self.private
        found = []
        for name, item in attributes.items():
            # What a library keeps for itself counts in the identity, but says nothing of what the user changes.
            hidden = library and name.startswith("_")
            if hidden and name in _TRACES:
                continue
            self.private += hidden
            found.append((name, self.value(item)))
            self.private -= hidden
        own = [base for base in own if is_foreign(base)]
        shared = class_data(own, attributes)
        self.changing |= not self.private and any(isinstance(item, (*DATA, tuple)) for item in shared.values())
        methods = [self.value(f) for base in own for f in methods_of(base)]
        return type(value), *found, *[(name, self.value(item)) for name, item in shared.items()], *methods


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of the object itself: one that stands for another would give those of the other."""
    found = {}
    # An object can have a dictionary, slots, or both, and slots of every class it descends from.
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in ("__dict__", *((names,) if isinstance(names, str) else names)):
            try:
                found[name] = object.__getattribute__(value, name)
            except AttributeError:
                continue
    return {**found.pop("__dict__", {}), **found}


def _bytes(value: Any) -> Hashable:
    array = np.asarray(value)
    if array.dtype == object:
        return Itself(value)
    # Identities stay in caches, so large arrays are kept as digests.
    data = array.tobytes()
    return "array", array.dtype.str, array.shape, data if len(data) < 64 else hashlib.sha256(data).digest()


def _data(given: tuple[Any, ...]) -> Iterator[Any]:
    return (value for value in given if type(value).__name__ != "DebugInfo")
