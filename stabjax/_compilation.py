"""How hard the compiler works on a program: less where a program runs for a shorter time than it takes to compile."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from stabjax._sharding import is_traced

_OPTION = "xla_backend_optimization_level"


class QuickJit:
    """A function compiled with few optimizations on a CPU, in about half the time, and as usual anywhere else.

    For programs that run seldom or shortly: drawing deformations, resampling. Numbers may differ by rounding from those
    of the same function inside a program of the caller's, where it is compiled with the rest. What ``XLA_FLAGS`` says
    of the level holds.
    """

    def __init__(self, f: Callable[..., Any], level: int, static_argnames: Sequence[str]) -> None:
        functools.update_wrapper(self, f)
        self._plain = jax.jit(f, static_argnames=static_argnames)
        self._quick = jax.jit(f, static_argnames=static_argnames, compiler_options={_OPTION: level})

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call the function."""
        # Options belong to a whole program: JAX refuses them for a part of another one.
        return (self._plain if is_traced((args, keywords)) else self._compiled)(*args, **keywords)

    def eval_shape(self, *args: Any, **keywords: Any) -> Any:
        """Return the shapes of what the function returns; what is traced for that is not traced again."""
        return self._compiled.eval_shape(*args, **keywords)

    @property
    def _compiled(self) -> Any:
        quick = jax.default_backend() == "cpu" and _OPTION not in os.environ.get("XLA_FLAGS", "")
        return self._quick if quick else self._plain


def quick_jit(*, level: int, static_argnames: Sequence[str] = ()) -> Callable[[Callable[..., Any]], QuickJit]:
    """Compile a function with few optimizations on a CPU: ``@quick_jit(level=0)``.

    Args:
        level: 0 for a program that runs once, 1 for one that runs for every batch. Two thirds of the time to compile
            are saved by 0, a half by 1; the program takes about four times as long with 0, a fifth longer with 1.
        static_argnames: As of `jax.jit`.
    """
    return functools.partial(QuickJit, level=level, static_argnames=static_argnames)
