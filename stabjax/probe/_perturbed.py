"""The images behind a measurement, as whole arrays."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._arguments import as_key
from stabjax._images import Spatial, check_batch
from stabjax._numerics import permit_nan
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Perturbation, PRNGKey
from stabjax.probe._pass import perturb_image
from stabjax.probe._request import as_perturbation
from stabjax.probe._run import check_perturbations

_TOGETHER = 64  # images perturbed side by side


@permit_nan()
def perturbed(
    images: Float[AnyArray, " n *spatial channels"],
    *,
    key: PRNGKey,
    deformation: Any,
    noise: Any = None,
    draws: int = 1,
    spatial: Spatial = None,
) -> tuple[Float[Array, " draws n *spatial channels"], Float[Array, " draws n *spatial channels"]]:
    """Return the deformed and the noisy images that `stability` measures with this key, as whole arrays.

    The published medians per unit, say, of the output of one network::

        deformed, noisy = probe.perturbed(images, key=key, deformation=deformation)
        clean, *others = [{"output": network(x)} for x in (images, deformed[0], noisy[0])]
        stability.from_features(key, clean, *others, average="median_per_unit")

    Args:
        images: Clean images as the network takes them (normalized), ``(n, *spatial, channels)``.
        key: Key of all deformations and noise. Image ``i``, draw ``d`` takes the keys
            ``jax.random.split(fold_in(fold_in(key, i), d))``, as in `stability`: the same for any number of images.
        deformation: ``(key, image) -> image``.
        noise: ``(key, image) -> image``; by default uniform on the sphere of radius ``|tau x - x|`` of each image.
        draws: Number of deformations, and of noises, per image.
        spatial: Number of spatial axes, or their sides, as in `stability`.

    Returns:
        Deformed and noisy images, ``(draws, n, *spatial, channels)`` each.

    Raises:
        TypeError: if the images are not floating-point, or something is not callable.
        ValueError: for a wrong shape, or no draw.
    """
    check_perturbations(deformation, noise, draws)
    made_for = {"deformation": getattr(deformation, "spatial", None), "noise": getattr(noise, "spatial", None)}
    check_batch(images, spatial=spatial, made_for=made_for)
    deformation, noise = (as_perturbation(each, images.shape[1:-1]) for each in (deformation, noise))
    return _perturbed(without_explicit_axes(jnp.asarray(images)), as_key(key), deformation, noise, draws=draws)


@partial(jax.jit, static_argnames="draws")
def _perturbed(
    images: Array, key: PRNGKey, deformation: Perturbation, noise: Perturbation | None, *, draws: int
) -> tuple[Array, Array]:
    pairs = partial(perturb_image, deformation, noise, 0, draws, ("deformed", "noisy"))

    def of_image(position: tuple[Array, Array]) -> tuple[Any, ...]:
        index, image = position
        return pairs(jax.random.fold_in(key, index), image)

    found = jax.lax.map(of_image, (jnp.arange(len(images)), images), batch_size=_TOGETHER)
    deformed, noisy = (jnp.moveaxis(jnp.asarray(many), 1, 0) for many in found)
    return deformed, noisy
