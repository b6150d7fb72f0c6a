"""Perturbations that add to the image."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._arguments import as_key
from stabjax._images import Spatial, check_image
from stabjax._numerics import safe_norm, safe_ratio
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Image, PRNGKey, Scalar
from stabjax.perturb._pytree import STATIC, Strength, convert, perturbation, strength


@perturbation
@dataclass(frozen=True, eq=False)
class SphericalNoise:
    """Isotropic noise of given Euclidean norm, ``x + eta``, ``|eta| = radius``."""

    radius: Strength
    """``|eta| >= 0`` over all pixels and channels."""
    spatial: Spatial = field(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        convert(self, radius=0.0)

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the noisy image, ``(*spatial, channels)``; a vector ``(units,)`` is an image without spatial axes."""
        check_image(image, spatial=self.spatial, made_for="noise", vector=True)
        return _add_spherical(key, image, strength(self.radius, _widen(image).dtype))


@perturbation
@dataclass(frozen=True, eq=False)
class GaussianNoise:
    """Independent Gaussian noise on every pixel and channel."""

    scale: Strength
    """Standard deviation of one entry."""
    spatial: Spatial = field(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        convert(self, scale=0.0)

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the noisy image, ``(*spatial, channels)``; a vector ``(units,)`` is an image without spatial axes."""
        check_image(image, spatial=self.spatial, made_for="noise", vector=True)
        x = _widen(image)
        return _add(image, jax.random.normal(as_key(key), x.shape, x.dtype), strength(self.scale, x.dtype))


@perturbation
@dataclass(frozen=True, eq=False)
class Toward:
    """A step of given length toward another data point, drawn at random.

    Where the drawn point equals the image, the next one takes its place.
    """

    points: Float[AnyArray, "points *spatial channels"]
    """The data points to choose from, ``(points, *spatial, channels)``."""
    distance: Strength
    """Euclidean length of the step, over all pixels and channels; it may lead beyond the point."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", jnp.asarray(self.points))
        convert(self, distance=0.0)

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the moved image, ``(*spatial, channels)``."""
        points = without_explicit_axes(jnp.asarray(self.points))
        check_image(image, spatial=points.shape[1:-1], made_for="set of points", vector=True)
        if points.shape[1:] != np.shape(image) or len(points) == 0:
            raise ValueError(
                f"expected points of shape (k, *{np.shape(image)}), k > 0, got {points.shape}: give points like the "
                "image"
            )
        index = jax.random.randint(as_key(key), (), 0, len(points))
        # A step toward the image itself has no direction. An image that is one of the points is the usual case.
        same = jnp.all(points[index] == jnp.asarray(image, points.dtype))
        other = jnp.where(same, (index + 1) % len(points), index)
        return toward(image, points[other], self.distance, spatial=points.shape[1:-1])


def toward(image: Image, target: Image, distance: Scalar, *, spatial: Spatial = None) -> Image:
    """Move an image toward another by a Euclidean length: ``x + distance (y - x) / |y - x|``.

    NaN where the two are equal, which leaves no direction, unless the distance is zero. ``spatial``, the number of
    spatial axes or their sides, is needed where the shape leaves them open.
    """
    check_image(image, spatial=spatial, vector=True)
    if np.shape(target) != np.shape(image):
        raise ValueError(f"expected a target of the image's shape {np.shape(image)}, got {np.shape(target)}")
    x = _widen(image)
    step = jnp.asarray(target, x.dtype) - x
    length = strength(distance, x.dtype)
    # 0 / 0 is NaN in `safe_ratio`; a step of length zero needs no direction, and leaves the image alone.
    return _add(image, step, jnp.where(length == 0, 0, safe_ratio(length, safe_norm(step))))


def noise_like(key: PRNGKey, image: Image, perturbed: Image, *, spatial: Spatial = None) -> Image:
    """Add isotropic noise as large as a perturbation of the image: ``x + eta``, ``|eta| = |perturbed - x|``.

    The matched noise of relative stability (Petrini et al. 2021, eq. 4). Arguments and result ``(*spatial, channels)``;
    ``spatial``, the number of spatial axes or their sides, is needed where that shape leaves them open.
    """
    check_image(image, spatial=spatial, vector=True)
    if np.shape(perturbed) != np.shape(image):
        raise ValueError(f"expected both images of one shape, got {np.shape(image)} and {np.shape(perturbed)}")
    x = _widen(image)
    return _add_spherical(key, image, safe_norm(jnp.asarray(perturbed, x.dtype) - x))


def _widen(image: Image) -> Float[Array, "*spatial channels"]:
    """Return the image in float32 or wider."""
    x = jnp.asarray(image)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"expected a floating image, got {x.dtype}; convert it, e.g. image / 255")
    # Norms are sums of squares: in float16 they overflow at 65504, in bfloat16 they keep two to three digits.
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def _add(image: Image, direction: Float[Array, "*spatial channels"], scale: Float[Array, ""]) -> Array:
    """Add ``scale * direction`` to the image, which keeps its dtype."""
    x = _widen(image)
    # One rounding at the end: a small step added in half precision may vanish.
    return (x + scale * direction).astype(jnp.asarray(image).dtype)


def _add_spherical(key: PRNGKey, image: Image, radius: Float[Array, ""]) -> Array:
    """Add noise of this norm in a random direction."""
    x = _widen(image)
    # A normal vector has no preferred direction: divided by its length it is uniform on the sphere.
    eta = jax.random.normal(as_key(key), x.shape, x.dtype)
    return _add(image, eta, radius / safe_norm(eta))
