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
"""Longest chain of additions within a block of `blocked_product`."""


def gram_bound(x: Float[Array, "rows entries"], steps: int, *, complex_pair: bool = False) -> Float[Array, ""]:
    """Bound the largest singular value from above by Gram iteration; differentiable, with gradient zero at zero.

    Args:
        x: a real matrix; or, if it is a ``complex_pair``, a complex one as ``[A, B]``, its imaginary part beside the
            real one.
        steps: number of products.
        complex_pair: see above.
    """
    parts = jnp.split(x, 2, axis=1) if complex_pair else [x]
    rows, columns = parts[0].shape
    if rows < columns:
        # The transpose has the same norm and the smaller Gram matrix; of a complex one, its conjugate has it too.
        x = jnp.concatenate([part.T for part in parts], axis=1)
    eps = float(jnp.finfo(x.dtype).eps)
    x, first_scale = split_scale(x)
    scales, losses = [first_scale], []
    if steps:
        # The first product changes the shape, to (columns, columns); all others keep it, and are one scan.
        x, (scale, loss) = _gram_step(x, None, complex_pair=complex_pair)
        x, rest = lax.scan(partial(_gram_step, complex_pair=complex_pair), x, length=steps - 1)
        scales += [scale, *rest[0]]
        losses += [loss, *rest[1]]
    # a_T = |G_T|_F, rounded upwards, then backwards a_t = s_t sqrt(a_t+1 + loss_t) with s_t the power of two that
    # G_t was divided by.
    value = frobenius_norm(x) * (1 + (len(x) + x.shape[1] + 8) * eps)
    for scale, loss in zip(scales[:0:-1], losses[::-1], strict=True):
        value = scale * safe_sqrt(value + loss)
    return first_scale * value * (1 + 8 * eps)


def _gram_step(x: Array, _: None, *, complex_pair: bool) -> tuple[Array, tuple[Array, Array]]:
    """Compute ``G* G`` of the scaled matrix, the scale, and the most that rounding can have taken away.

    Of ``[A, B]`` that is ``[A'A + B'B, A'B - B'A]``, exactly Hermitian.
    """
    norm = lax.stop_gradient(frobenius_norm(x))
    scale = floor_power_of_two(norm)
    error = summation_error(len(x), float(jnp.finfo(x.dtype).eps), extra=2) * (math.sqrt(2) if complex_pair else 1)
    x = x / scale
    gram = blocked_product(x, x)
    if complex_pair:
        # One real product gives all four blocks: [A, B]'[A, B] = [[A'A, A'B], [B'A, B'B]].
        (aa, ab), (ba, bb) = (jnp.split(half, 2, axis=1) for half in jnp.split(gram, 2))
        gram = jnp.concatenate([aa + bb, ab - ba], axis=1)
    return gram, (scale, error * jnp.square(norm / scale))


def blocked_product(a: Float[Array, "k m"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Compute ``a'b`` with no chain of additions longer than `summation_error` counts."""
    # (-------- k = _BLOCK + _BLOCK + ... + rest --------): each block by itself, then the sums of blocks in turn.
    full = len(a) // _BLOCK * _BLOCK
    if len(a) <= _BLOCK:
        return _dot(a, b)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _dot(*block), None

    a_blocks, b_blocks = (jnp.reshape(z[:full], (-1, _BLOCK, z.shape[1])) for z in (a, b))
    return lax.scan(add, _dot(a[full:], b[full:]), (a_blocks, b_blocks))[0]


def _dot(a: Array, b: Array) -> Array:
    """Compute ``a'b`` in the highest precision of the device."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=HIGHEST)


def summation_error(length: int, eps: float, *, extra: int) -> float:
    """Return ``c u``, the relative error of sums of ``length`` products and ``extra`` roundings, with the reserve."""
    return 1.2 * (min(length, _BLOCK) + -(-length // _BLOCK) + extra) * eps / 2


def frobenius_norm(x: Float[Array, "rows entries"]) -> Float[Array, ""]:
    """Compute ``|G|_F`` by the norms of the rows: one long sum of all squares would lose the small ones."""
    return safe_sqrt(jnp.sum(jnp.square(safe_sqrt(jnp.sum(jnp.square(x), axis=1)))))


def safe_sqrt(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Take the square root, with gradient zero at zero; NaN stays NaN."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def floor_power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    """Return the largest power of two that is at most ``x``; 1 at zero, NaN where not finite.

    A constant to gradients.
    """
    x = lax.stop_gradient(x)
    # An IEEE number without the bits of its mantissa is 2^exponent; `exponent` is the mask of what is left.
    bits, exponent = (jnp.uint32, 0x7F80_0000) if x.dtype == jnp.float32 else (jnp.uint64, 0x7FF0_0000_0000_0000)
    power = lax.bitcast_convert_type(lax.bitcast_convert_type(x, bits) & bits(exponent), x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.where(x > 0, power, 1), jnp.nan)


def split_scale(x: Array) -> tuple[Array, Array]:
    """Divide an array by a power of two near its largest entry; return both."""
    scale = floor_power_of_two(jnp.max(jnp.abs(x)))
    return x / scale, scale
