"""Whose code a function or a class is, and what that code refers to: closures, defaults, globals, class attributes."""

import abc
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import numpy as np

PLAIN = (int, str, bytes, bool, type(None), type, CodeType, np.dtype)
"""Types of values that are equal if they compare equal."""
DATA = (int, float, complex, str, bytes, np.generic)
"""Types of plain data, which an assignment replaces."""
_OF_FRAMEWORKS = ("__", "_pytree__", "_compact_name_scope_methods", "_abc_")
"""How the names begin that Python and Flax give to attributes of a class."""
_LIBRARIES = ("jax", "jaxlib", "flax", "equinox", "keras", "numpy", "builtins", "functools", "stabjax")
"""What functions of these close over and name globally is theirs; what is handed to them is looked at."""


def is_of_library(f: Any) -> bool:
    module = f.__globals__.get("__name__") if isinstance(f, FunctionType) else getattr(f, "__module__", None)
    return str(module).partition(".")[0] in _LIBRARIES


def is_foreign(kind: type) -> bool:
    """Return whether a class is of no library. One that was made by ``type(...)`` may say that it is of ``abc``."""
    return not is_known(kind.__module__) or (kind.__module__ == "abc" and kind is not abc.ABC)


def is_known(module: str) -> bool:
    """Return whether a module is of a library or of Python, whose variables nobody binds anew."""
    return (root := module.partition(".")[0]) in _LIBRARIES or root in sys.stdlib_module_names


def is_type_check(f: FunctionType) -> bool:
    """Return whether a function checks types at run time and else is the one it wraps (jaxtyping, beartype)."""
    checks = "__beartype_wrapper" in f.__dict__ or f.__globals__.get("__name__") == "jaxtyping._decorator"
    return checks and "__wrapped__" in f.__dict__


def held_by(f: FunctionType) -> Iterator[tuple[str, Any]]:
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
    if is_of_library(f):
        yield from ((name, value) for name, value in variables.items() if _counts(value))
        return
    yield "defaults", f.__defaults__
    yield "keyword defaults", tuple((f.__kwdefaults__ or {}).items())
    yield from variables.items()


def globals_of(f: FunctionType) -> Iterator[tuple[str, Any]]:
    """Return the global variables that code names, also through modules and classes; nothing of a library."""
    if is_known(f.__globals__.get("__name__", "")):
        return
    names = _names(f.__code__)
    for name in names:
        value = f.__globals__.get(name)
        # Code names ``settings.scale`` as two names, settings and scale: all attributes of that module that it may
        # mean.
        if isinstance(value, ModuleType) and not is_known(value.__name__):
            inside = [(f"{name}.{attribute}", vars(value).get(attribute)) for attribute in names]
        elif isinstance(value, type) and is_foreign(value):
            shared = class_data(value.__mro__, {})
            inside = [(f"{name}.{attribute}", shared.get(attribute)) for attribute in names]
        else:
            inside = [(name, value)]
        for path, item in inside:
            if not isinstance(item, ModuleType | type | None) and not (callable(item) and is_of_library(item)):
                yield path, item


def class_data(classes: Sequence[type], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain data that an object reads from its classes, as none of its own attributes hides it."""
    kinds = (*DATA, list, tuple, set, Mapping, np.ndarray, jax.Array)
    return {
        name: item
        # From the last class to the first: what a class defines replaces what it inherits.
        for base in reversed(classes)
        for name, item in vars(base).items()
        if isinstance(item, kinds) and name not in attributes and not name.startswith(_OF_FRAMEWORKS)
    }


def methods_of(base: type) -> Iterator[FunctionType]:
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
    plain = isinstance(value, (*PLAIN, float, complex, np.ndarray, jax.Array))
    return plain or callable(value) or is_transformed(value)


def is_transformed(value: Any) -> bool:
    """Return whether it is a function inside of JAX, with what was done to it."""
    return hasattr(value, "transforms") and hasattr(value, "f")
