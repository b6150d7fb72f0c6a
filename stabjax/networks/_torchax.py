"""torchax, which runs PyTorch in JAX: the environment that modules run in, and operators that it lacks or writes oddly.

The environment is one of our own: the user's, `torchax.default_env()`, stays as it is.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

REMEDY = "pip install 'stabjax[pytorch]'"


@lru_cache(maxsize=1)
def environment() -> Any:
    """Return the environment, made once; an environment of torchax holds a random key, and must not be made in a trace.

    Raises:
        ImportError: if torchax is missing.
    """
    try:
        tensor = importlib.import_module("torchax.tensor")
    except ImportError as error:
        raise ImportError(f"expected torchax beside PyTorch, which runs its modules in JAX; {REMEDY}") from error
    torch = sys.modules["torch"]
    with jax.ensure_compile_time_eval():
        made = tensor.Environment()
    for operator, function in (
        (torch.ops.aten.native_group_norm, _group_norm),
        (torch.nn.functional.linear, _linear),
    ):
        made.override_op_definition(operator, _of_tensors(made, function))
    return made


@contextmanager
def running() -> Iterator[Any]:
    """Let PyTorch's functions run in JAX, without gradients of PyTorch's own."""
    made = environment()
    # A module that draws numbers starts from the same key at every call; the environment's own would become a value of
    # the trace around.
    with (
        sys.modules["torch"].no_grad(),
        made,
        made.override_property(prng=jax.random.key(0)),
        warnings.catch_warnings(),
    ):
        # PyTorch's default for integers, which JAX holds in 32 bits.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")
        yield made


def _of_tensors(made: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of PyTorch's tensors from one of arrays."""

    def of_tensors(*args: Any, **keywords: Any) -> Any:
        return made.j2t_iso(function(*made.t2j_iso(args), **made.t2j_iso(keywords)))

    return of_tensors


def _group_norm(
    x: Any, weight: Any, bias: Any, batch: int, channels: int, size: int, groups: int, eps: float
) -> Sequence[Any]:
    """Normalize groups of channels, ``(batch, channels, *spatial)``; torchax does it group by group, in a loop."""
    del size
    grouped = x.reshape(batch, groups, channels // groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
    inverse = jax.lax.rsqrt(variance + eps)
    y = ((grouped - mean) * inverse).reshape(x.shape)
    per_channel = (1, channels, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    y = y if bias is None else y + bias.reshape(per_channel)
    return y, mean.reshape(batch, groups), inverse.reshape(batch, groups)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """Apply a dense layer; torchax takes its weight by position alone."""
    y = jnp.einsum("...a,ba->...b", input, weight)
    return y if bias is None else y + bias
