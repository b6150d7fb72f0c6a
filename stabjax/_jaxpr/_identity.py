"""What a program computes, and what an object holds, as values that compare.

Two traces of one function give programs that are equal in every step and the same object in none. Here they are equal:
values count by their place, parameters by what they hold, rules of derivatives by their code and by what that closes
over. Arrays count by themselves, or by their bytes where they can be changed in place. What is not known is equal to
itself alone, so the answer may be that two programs differ although they do not, never the reverse.
"""

import abc
import functools
import hashlib
import sys
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._program import is_literal, opened

_PLAIN = (int, str, bytes, bool, type(None), type, CodeType, np.dtype)
_DATA = (int, float, complex, str, bytes, np.generic)
_TRACES = frozenset({"_trace_state", "_pytree__state", "_pytree__nodes"})
"""Where a Flax object keeps the trace it was made in, another one for each object, and which attributes are leaves."""
_OF_FRAMEWORKS = ("__", "_pytree__", "_compact_name_scope_methods", "_abc_")
"""How the names begin that Python and Flax give to attributes of a class."""
_LIBRARIES = ("jax", "jaxlib", "flax", "equinox", "keras", "numpy", "builtins", "functools", "stabjax")
"""What functions of these close over and name globally is theirs; what is handed to them is looked at."""


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
            self.foreign |= _is_foreign(value) if isinstance(value, type) else not _is_known(value.__name__)
        if isinstance(value, _PLAIN):
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
            self.changing |= not self.private and any(isinstance(item, _DATA) for item in items)
        if isinstance(value, list):
            return kind, tuple(map(self.value, value))
        if isinstance(value, set | frozenset):
            return kind, frozenset(map(self.value, value))
        if isinstance(value, Mapping):
            return kind, tuple((self.value(key), self.value(item)) for key, item in value.items())
        if _is_transformed(value):
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
        if isinstance(f, FunctionType) and _is_type_check(f):
            return self.value(f.__dict__["__wrapped__"])
        if isinstance(f, FunctionType):
            self.foreign |= not self.private and not _is_known(f.__globals__.get("__name__", ""))
            # A global variable can be bound to another value between two calls.
            variables = dict(_globals_of(f))
            self.changing |= not self.private and any(isinstance(item, (*_DATA, tuple)) for item in variables.values())
            read = (*_held_by(f), *variables.items())
            return FunctionType, f.__code__, *[(name, self.value(value)) for name, value in read]
        # A wrapper that a library has made, as `jax.jit` does: the function inside says what it computes.
        wrapped = getattr(f, "__wrapped__", None)
        if _is_of_library(type(f)) and wrapped is not None and not hasattr(f, "__self__"):
            return type(f), self.value(wrapped)
        return self.object(f)

    def object(self, value: Any) -> Hashable:
        """Identify an object by its attributes; one without any, and one of JAX, by its own equality."""
        self.foreign |= not self.private and any(map(_is_foreign, type(value).__mro__))
        attributes = _attributes(value)
        if not attributes or type(value).__module__.partition(".")[0] in ("jax", "jaxlib"):
            try:
                hash(value)
            except TypeError:
                return (type(value), self.value(value.val)) if hasattr(value, "val") else Itself(value)
            return type(value), value
        # The classes that no library has made; `library`: whether it has others too, as a module of Flax or Equinox.
        own = [base for base in type(value).__mro__[:-1] if not _is_of_library(base)]
        library = len(own) < len(type(value).__mro__) - 1
        if own and not library and any(isinstance(item, _DATA) for item in attributes.values()):
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
        own = [base for base in own if _is_foreign(base)]
        shared = _class_data(own, attributes)
        self.changing |= not self.private and any(isinstance(item, (*_DATA, tuple)) for item in shared.values())
        methods = [self.value(f) for base in own for f in _methods(base)]
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


def _is_of_library(f: Any) -> bool:
    module = f.__globals__.get("__name__") if isinstance(f, FunctionType) else getattr(f, "__module__", None)
    return str(module).partition(".")[0] in _LIBRARIES


def _is_foreign(kind: type) -> bool:
    """Return whether a class is of no library. One that was made by ``type(...)`` may say that it is of ``abc``."""
    return not _is_known(kind.__module__) or (kind.__module__ == "abc" and kind is not abc.ABC)


def _is_known(module: str) -> bool:
    """Return whether a module is of a library or of Python, whose variables nobody binds anew."""
    return (root := module.partition(".")[0]) in _LIBRARIES or root in sys.stdlib_module_names


def _is_type_check(f: FunctionType) -> bool:
    """Return whether a function checks types at run time and else is the one it wraps (jaxtyping, beartype)."""
    checks = "__beartype_wrapper" in f.__dict__ or f.__globals__.get("__name__") == "jaxtyping._decorator"
    return checks and "__wrapped__" in f.__dict__


def _held_by(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Return what a function closes over and its defaults, by name.

    Functions of JAX close over the trace they stand in too, which is another one every time: of what they hold, other
    functions and plain data count.
    """
    variables = {}
    for name, variable in zip(f.__code__.co_freevars, f.__closure__ or ()):
        try:
            variables[name] = variable.cell_contents
        except ValueError:  # not bound yet
            continue
    if _is_of_library(f):
        yield from ((name, value) for name, value in variables.items() if _counts(value))
        return
    yield "defaults", f.__defaults__
    yield "keyword defaults", tuple((f.__kwdefaults__ or {}).items())
    yield from variables.items()


def _globals_of(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Return the global variables that code names, also through modules and classes; nothing of a library."""
    if _is_known(f.__globals__.get("__name__", "")):
        return
    names = _names(f.__code__)
    for name in names:
        value = f.__globals__.get(name)
        # Code names ``settings.scale`` as two names, settings and scale: all attributes of that module that it may
        # mean.
        if isinstance(value, ModuleType) and not _is_known(value.__name__):
            inside = [(f"{name}.{attribute}", vars(value).get(attribute)) for attribute in names]
        elif isinstance(value, type) and _is_foreign(value):
            shared = _class_data(value.__mro__, {})
            inside = [(f"{name}.{attribute}", shared.get(attribute)) for attribute in names]
        else:
            inside = [(name, value)]
        for path, item in inside:
            if not isinstance(item, ModuleType | type | None) and not (callable(item) and _is_of_library(item)):
                yield path, item


def _class_data(classes: Sequence[type], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain data that an object reads from its classes, as none of its own attributes hides it."""
    kinds = (*_DATA, list, tuple, set, Mapping, np.ndarray, jax.Array)
    return {
        name: item
        # From the last class to the first: what a class defines replaces what it inherits.
        for base in reversed(classes)
        for name, item in vars(base).items()
        if isinstance(item, kinds) and name not in attributes and not name.startswith(_OF_FRAMEWORKS)
    }


def _methods(base: type) -> Iterator[FunctionType]:
    """Return the functions that run when an object of this class is called: all but those that make it."""
    for name, item in vars(base).items():
        # Static and class methods hold a function as `__func__`, properties as `fget`, wrappers of frameworks as
        # `method`.
        f = getattr(item, "method", getattr(item, "__func__", getattr(item, "fget", item)))
        if isinstance(f, FunctionType) and name not in ("__init__", "__post_init__", "__new__"):
            yield f


def _names(code: CodeType) -> tuple[str, ...]:
    # Functions defined inside are constants of the code; they read the same globals.
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


def _counts(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_counts, value))
    if isinstance(value, jax.custom_jvp | jax.custom_vjp):
        return False  # the function it belongs to, whose program is known
    plain = isinstance(value, (*_PLAIN, float, complex, np.ndarray, jax.Array))
    return plain or callable(value) or _is_transformed(value)


def _is_transformed(value: Any) -> bool:
    """Return whether it is a function inside of JAX, with what was done to it."""
    return hasattr(value, "transforms") and hasattr(value, "f")


def _data(given: tuple[Any, ...]) -> Iterator[Any]:
    return (value for value in given if type(value).__name__ != "DebugInfo")
