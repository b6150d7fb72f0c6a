"""Gram iteration: an upper bound on the largest singular value of one matrix, certified at every step.

``G_0 = W``, ``G_t+1 = G_t* G_t``, ``|W|_2 = |G_t|_2^(1/2^t) <= |G_t|_F^(1/2^t)``, which is too large by at most the
factor ``rank^(1/2^(t+1))`` (Delattre, Barthelemy, Araujo, Allauzen 2023, arXiv 2305.16173, theorem 1). Each ``G`` is
divided by a power of two near its norm: nothing overflows, and nothing is rounded.

The rounding of the products is measured on the way instead of hoped for. If ``Y = G* G + E`` is what was computed, then

    |G|_2^2 = |G* G|_2 <= |Y|_2 + |E|_2,        |E|_2 <= |E|_F <= c u | |G|* |G| |_F <= c u |G|_F^2,

so that from ``a_T = |G_T|_F`` backwards ``a_t = sqrt(a_t+1 + c u |G_t|_F^2)`` bounds ``|G_t|_2``. Here ``c`` is the
length of the longest chain of additions behind an entry: any order of ``k`` terms is off by at most ``k u`` of the sum
of their absolute values, ``u = eps / 2`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and a
complex entry, which has two parts, by sqrt(2) times that. Long sums are cut into blocks so that ``c`` is about
``_BLOCK + k / _BLOCK`` and not ``k``. A reserve of a fifth covers terms of second order, the rounding of the norms, and
what underflows. Arithmetic is assumed to be IEEE, with numbers below the smallest normal one counted as zero.
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST

_BLOCK = 128


def above(x: Float[Array, "rows entries"], steps: int, *, pair: bool = False) -> Float[Array, ""]:
    """At least the largest singular value, after so many steps; differentiable, with gradient zero at zero.

    Args:
        x: a real matrix; or, if it is a ``pair``, a complex one as ``[A, B]``, its imaginary part beside the real one.
        steps: products.
        pair: see above.
    """
    parts = jnp.split(x, 2, axis=1) if pair else [x]
    rows, columns = parts[0].shape
    if rows < columns:
        x = jnp.concatenate([part.T for part in parts], axis=1)
    eps = float(jnp.finfo(x.dtype).eps)
    x, whole = scaled(x)
    scales, losses = [whole], []
    if steps:
        x, (scale, lost) = _step(x, None, pair=pair)
        x, rest = lax.scan(partial(_step, pair=pair), x, length=steps - 1)
        scales += [scale, *rest[0]]
        losses += [lost, *rest[1]]
    value = frobenius(x) * (1 + (len(x) + x.shape[1] + 8) * eps)
    for scale, lost in zip(scales[:0:-1], losses[::-1], strict=True):
        value = scale * root(value + lost)
    return whole * value * (1 + 8 * eps)


def _step(x: Array, _: None, *, pair: bool) -> tuple[Array, tuple[Array, Array]]:
    """``G* G`` of the scaled matrix, the scale, and the most that rounding can have taken away.

    Of ``[A, B]`` that is ``[A'A + B'B, A'B - B'A]``, exactly Hermitian.
    """
    norm = lax.stop_gradient(frobenius(x))
    scale = power_of_two(norm)
    share = rounding(len(x), float(jnp.finfo(x.dtype).eps), further=2) * (math.sqrt(2) if pair else 1)
    x = x / scale
    gram = product(x, x)
    if pair:
        (aa, ab), (ba, bb) = (jnp.split(half, 2, axis=1) for half in jnp.split(gram, 2))
        gram = jnp.concatenate([aa + bb, ab - ba], axis=1)
    return gram, (scale, share * jnp.square(norm / scale))


def product(a: Float[Array, "k m"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """``a'b``, with no chain of additions longer than `rounding` counts."""
    whole = len(a) // _BLOCK * _BLOCK
    if len(a) <= _BLOCK:
        return _dot(a, b)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _dot(*block), None

    one, two = (jnp.reshape(z[:whole], (-1, _BLOCK, z.shape[1])) for z in (a, b))
    return lax.scan(add, _dot(a[whole:], b[whole:]), (one, two))[0]


def _dot(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=HIGHEST)


def rounding(length: int, eps: float, *, further: int) -> float:
    """``c u`` of sums of so many products, and of so many roundings more, with the reserve."""
    return 1.2 * (min(length, _BLOCK) + -(-length // _BLOCK) + further) * eps / 2


def frobenius(x: Float[Array, "rows entries"]) -> Float[Array, ""]:
    """``|G|_F``, by the norms of the rows: one sum of all squares would lose the small ones in a long chain."""
    return root(jnp.sum(jnp.square(root(jnp.sum(jnp.square(x), axis=1)))))


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with gradient zero at zero; NaN stays NaN."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    """The largest power of two that is at most ``x``; 1 at zero, NaN where not finite. A constant to gradients."""
    x = lax.stop_gradient(x)
    bits, exponent = (jnp.uint32, 0x7F80_0000) if x.dtype == jnp.float32 else (jnp.uint64, 0x7FF0_0000_0000_0000)
    power = lax.bitcast_convert_type(lax.bitcast_convert_type(x, bits) & bits(exponent), x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.where(x > 0, power, 1), jnp.nan)


def scaled(x: Array) -> tuple[Array, Array]:
    """The array over a power of two near its largest entry, and that power."""
    scale = power_of_two(jnp.max(jnp.abs(x)))
    return x / scale, scale
