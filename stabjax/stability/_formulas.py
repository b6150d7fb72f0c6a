"""The formulas of deformation stability D, noise stability G and relative stability R, on whole arrays."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import centered, permit_nan, row_sum, safe_ratio
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray

Average: TypeAlias = Literal["mean", "median", "median_per_unit"]
_HELD = 2**22
"""Numbers held at a time while pairs of images are compared."""


@permit_nan()
def squared_change(clean: Float[AnyArray, " n *units"], perturbed: Float[AnyArray, " n *units"]) -> Float[Array, " n"]:
    """Return the squared change of every image's features, ``|f(x') - f(x)|^2``, ``(n,)``.

    Args:
        clean: features of the clean images, ``(n, *units)``.
        perturbed: features of the same images, perturbed.
    """
    clean, perturbed = _same_shape(clean, perturbed)
    return row_sum(jnp.square(perturbed - clean))


@permit_nan()
def pair_distance(clean: Float[AnyArray, " n *units"], *, distinct: bool = False) -> Float[Array, ""]:
    """Average the squared distance between the features of two images, ``<|f(x) - f(z)|^2>_{x,z}``.

    Computed from moments about the mean, ``2 <|f - <f>|^2>``, which equals the average over all pairs and costs one
    pass instead of ``n`` of them; no digits are lost where the mean is much larger than the spread.

    Args:
        clean: features of the clean images, ``(n, *units)``.
        distinct: False takes all ``n^2`` ordered pairs, the ``n`` zeros included, as published (Petrini et al. 2021);
            True takes the ``n (n - 1)`` pairs of distinct images, an unbiased estimate whatever ``n``.
    """
    # With the mean m over n points, sum |f_i - f_j|^2 over all ordered pairs is 2 n sum |f_i - m|^2: over n^2 pairs
    # that averages to 2 / n, over the n (n - 1) distinct ones to 2 / (n - 1) times the sum.
    _, distances = centered(without_explicit_axes(jnp.asarray(clean)))
    partners = len(distances) - 1 if distinct else len(distances)
    # One image has no distinct partner: NaN, not a division by zero.
    return 2 * jnp.sum(distances) / (partners or jnp.nan)


@permit_nan()
def median(values: Float[AnyArray, " n *units"]) -> Float[Array, "*units"]:
    """Take the median over the first axis; of an even count the lower of the two middle values, as published.

    `jnp.median` takes the mean of the two, which differs by several percent at 50 images. NaN if any value is NaN.
    """
    ordered = jnp.sort(without_explicit_axes(jnp.asarray(values)), axis=0)
    # NaNs sort last, so the last value tells whether there is one.
    return jnp.where(jnp.isnan(ordered[-1]), jnp.nan, ordered[(values.shape[0] - 1) // 2])


@permit_nan()
def median_change(clean: Float[AnyArray, " n *units"], perturbed: Float[AnyArray, " n *units"]) -> Float[Array, ""]:
    """Sum medians per unit for the numerator, ``sum_u median_x (f_u(x') - f_u(x))^2`` (code of Petrini et al. 2021)."""
    clean, perturbed = _same_shape(clean, perturbed)
    return jnp.sum(median(jnp.square(perturbed - clean)))


@permit_nan()
def median_pair_distance(clean: Float[AnyArray, " n *units"]) -> Float[Array, ""]:
    """Take the median over all ordered pairs, zeros included, of ``|f(x) - f(z)|^2`` (code of Petrini et al. 2021).

    The differences are formed directly, a few images against all others at a time: a median may fall on two images
    that are far closer to each other than to the mean. Holds ``n^2`` numbers.
    """
    # One row against all others holds n * units differences; as many rows run side by side as keep to the limit.
    rows = jnp.reshape(without_explicit_axes(jnp.asarray(clean)), (clean.shape[0], -1))

    def distances(row: Float[Array, " units"]) -> Float[Array, " n"]:
        return row_sum(jnp.square(rows - row[None]))

    return median(jnp.ravel(jax.lax.map(distances, rows, batch_size=max(1, _HELD // max(1, rows.size)))))


@permit_nan()
def deformation(
    clean: Float[AnyArray, " n *units"], deformed: Float[AnyArray, " n *units"], *, average: Average = "mean"
) -> Float[Array, ""]:
    """Compute deformation stability, ``D_f = <|f(tau x) - f(x)|^2> / <|f(x) - f(z)|^2>`` (Petrini et al. 2021).

    Small: the features hardly see smooth deformations. NaN where all images have the same features.

    Args:
        clean: features of the clean images, ``(n, *units)``.
        deformed: features of the same images, deformed.
        average: ``"mean"`` over images, above and below; ``"median"`` over images above, the mean over pairs below;
            ``"median_per_unit"``: `median_change` over `median_pair_distance`, as in the headline figure of Petrini et
            al. 2021 (without the ``1e-10`` added there to the denominator).
    """
    return safe_ratio(_numerator(clean, deformed, average), _denominator(clean, average))


@permit_nan()
def noise(
    clean: Float[AnyArray, " n *units"], noisy: Float[AnyArray, " n *units"], *, average: Average = "mean"
) -> Float[Array, ""]:
    """Compute noise stability, ``G_f = <|f(x + eta) - f(x)|^2> / <|f(x) - f(z)|^2>``, ``|eta| = |tau x - x|``.

    The same formula as `deformation`, applied to images with noise of the same size; see there for ``average``.
    """
    return deformation(clean, noisy, average=average)


@permit_nan()
def relative(
    clean: Float[AnyArray, " n *units"],
    deformed: Float[AnyArray, " n *units"],
    noisy: Float[AnyArray, " n *units"],
    *,
    average: Average = "mean",
) -> Float[Array, ""]:
    """Compute relative stability, ``R_f = D_f / G_f`` (Petrini et al. 2021); the pair distance cancels.

    Below one: the features are more stable to smooth deformations than to noise of the same size. NaN where the noise
    changes nothing.
    """
    return safe_ratio(_numerator(clean, deformed, average), _numerator(clean, noisy, average))


def _numerator(clean: AnyArray, perturbed: AnyArray, average: Average) -> Float[Array, ""]:
    match average:
        case "mean":
            return jnp.mean(squared_change(clean, perturbed))
        case "median":
            return median(squared_change(clean, perturbed))
        case "median_per_unit":
            return median_change(clean, perturbed)
    raise ValueError(f"expected average 'mean', 'median' or 'median_per_unit', got {average!r}")


def _denominator(clean: AnyArray, average: Average) -> Float[Array, ""]:
    # The medians over images of "median" are those of the numerators; below stands the mean over pairs.
    return median_pair_distance(clean) if average == "median_per_unit" else pair_distance(clean)


def _same_shape(clean: AnyArray, perturbed: AnyArray) -> tuple[Array, Array]:
    if clean.shape != perturbed.shape:
        raise ValueError(
            f"expected features of the same images, of one shape, got {clean.shape} and {perturbed.shape}: "
            "run the network on the clean and the perturbed images in the same order"
        )
    return without_explicit_axes((jnp.asarray(clean), jnp.asarray(perturbed)))
