"""How hard the compiler works on a program: less where a program runs for a shorter time than it takes to compile."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from stabjax._sharding import is_traced

_LEVEL = "xla_backend_optimization_level"
_EMITTERS = "xla_cpu_use_fusion_emitters"


class QuickJit:
    """A function compiled with few optimizations on a CPU, in a third of the time, and as usual anywhere else.

    For programs that run seldom or shortly: drawing deformations, resampling. Numbers may differ by rounding from those
    of the same function inside a program of the caller's, where it is compiled with the rest. What ``XLA_FLAGS`` says
    of these optimizations holds.
    """

    def __init__(self, f: Callable[..., Any], level: int, static_argnames: Sequence[str]) -> None:
        functools.update_wrapper(self, f)
        self._function, self._level, self._static = f, level, static_argnames
        self._plain = jax.jit(f, static_argnames=self._static)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Call the function."""
        # Options belong to a whole program: JAX refuses them for a part of another one.
        return (self._plain if is_traced((args, keywords)) else self._compiled)(*args, **keywords)

    def eval_shape(self, *args: Any, **keywords: Any) -> Any:
        """Return the shapes of what the function returns; what is traced for that is not traced again."""
        return self._compiled.eval_shape(*args, **keywords)

    def _cache_size(self) -> int:
        """Return the number of programs compiled so far, as functions of `jax.jit` do."""
        return self._compiled._cache_size()

    @property
    def _compiled(self) -> Any:
        flags = os.environ.get("XLA_FLAGS", "")
        quick = jax.default_backend() == "cpu" and _LEVEL not in flags and _EMITTERS not in flags
        return self._quick if quick else self._plain

    @functools.cached_property
    def _quick(self) -> Any:
        # LLVM's optimizations, and the lowering of each fused loop through MLIR, which takes most of the rest.
        options = {_LEVEL: self._level} | ({_EMITTERS: False} if _is_option(_EMITTERS) else {})
        return jax.jit(self._function, static_argnames=self._static, compiler_options=options)


@functools.cache
def _is_option(name: str) -> bool:
    """Tell whether this release of XLA knows an option, a switch; unknown ones are errors."""
    try:
        jax.jit(lambda: 0, compiler_options={name: False}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def quick_jit(*, level: int, static_argnames: Sequence[str] = ()) -> Callable[[Callable[..., Any]], QuickJit]:
    """Compile a function with few optimizations on a CPU: ``@quick_jit(level=0)``.

    Args:
        level: 0 for a program that runs once, 1 for one that runs for every batch. Two thirds of the time to compile
            are saved by 0, a half by 1; loops take about four times as long with 0, a fifth longer with 1.
        static_argnames: As of `jax.jit`.
    """
    return functools.partial(QuickJit, level=level, static_argnames=static_argnames)
