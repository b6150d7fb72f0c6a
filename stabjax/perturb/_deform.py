"""Perturbations that move pixels."""

import math
from dataclasses import dataclass
from dataclasses import field as member

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax import fields, warp
from stabjax._arguments import as_key
from stabjax._images import Spatial, check_image
from stabjax._numerics import safe_norm
from stabjax._types import Field, Image, PRNGKey, Scalar
from stabjax.fields import Convention
from stabjax.perturb._pytree import STATIC, Strength, convert, perturbation, strength
from stabjax.warp import Interpolation


@perturbation
@dataclass(frozen=True, eq=False)
class Diffeomorphism:
    """A random smooth deformation: the image pulled back along `stabjax.fields.sample`.

    Without ``max_cutoff`` the number of modes follows from the cutoff: give the largest cutoff of a sweep, and the
    sweep compiles once. The same key then gives the same low modes at every strength, so curves are paired.
    """

    temperature: Strength
    """``T >= 0``."""
    cutoff: Strength
    """``c >= 1``."""
    max_cutoff: int | None = member(default=None, kw_only=True, metadata=STATIC)
    """Number of modes along each axis; needed beside a traced cutoff."""
    interpolation: Interpolation = member(default="linear", kw_only=True, metadata=STATIC)
    """As in `stabjax.warp.pull_back`."""
    spatial: Spatial = member(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        cutoff = self.cutoff
        convert(self, temperature=0.0, cutoff=1.0)
        # The number of modes is a shape, which a traced cutoff cannot give.
        if isinstance(cutoff, Tracer):
            if self.max_cutoff is None:
                raise ValueError("expected max_cutoff beside a traced cutoff, got none; it sets the number of modes")
            return
        largest = np.max(np.asarray(cutoff))
        if self.max_cutoff is None and np.isfinite(largest):
            object.__setattr__(self, "max_cutoff", math.ceil(largest))
        elif self.max_cutoff is None or largest > self.max_cutoff:
            raise ValueError(f"expected cutoff <= max_cutoff, got {cutoff} > {self.max_cutoff}; raise max_cutoff")

    @classmethod
    def of_displacement(
        cls,
        displacement: Scalar,
        cutoff: Scalar,
        shape: tuple[int, ...],
        *,
        convention: Convention = "rms",
        max_cutoff: int | None = None,
        interpolation: Interpolation = "linear",
    ) -> "Diffeomorphism":
        """Build the deformation that moves pixels by ``displacement`` typically.

        Args:
            displacement: ``delta >= 0`` in pixels; may be traced.
            cutoff: ``c >= 1``; may be traced, beside ``max_cutoff``.
            shape: the spatial sides of the image, without channels. Images of other sides are refused.
            convention: ``"rms"`` or ``"paper"``, as in `stabjax.fields.temperature`.
            max_cutoff: the largest cutoff of a sweep.
            interpolation: as in `stabjax.warp.pull_back`.
        """
        temperature = fields.temperature(displacement, cutoff, shape, convention=convention, max_cutoff=max_cutoff)
        return cls(temperature, cutoff, max_cutoff=max_cutoff, interpolation=interpolation, spatial=tuple(shape))

    def field(self, key: PRNGKey, shape: tuple[int, ...]) -> Field:
        """Return the displacement field of this key for images of these sides, ``(ndim, *shape)``, in pixels."""
        return fields.sample(key, shape, temperature=self.temperature, cutoff=self.cutoff, max_cutoff=self.max_cutoff)

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the deformed image, ``(*spatial, channels)``."""
        check_image(image, spatial=self.spatial, made_for="deformation")
        return warp.pull_back(image, self.field(key, np.shape(image)[:-1]), interpolation=self.interpolation)


@perturbation
@dataclass(frozen=True, eq=False)
class RandomDiffeomorphism:
    """Diffeomorphisms of random temperature and cutoff, for data augmentation (Petrini et al. 2021, appendix).

    ``cutoff = floor(B (c_max + 1 - c_min) + c_min)`` and ``temperature = T_min + B' (T_max - T_min)`` with the range of
    `stabjax.fields.temperature_range` at that cutoff, and Beta variables ``B, B'`` of parameters ``s r/(r+1)`` and
    ``s/(r+1)``. The defaults are the published ones; there both are uniform. Where the published range is undefined
    (cutoff 1, or not two dimensions) or empty (``c > 2n/pi``), the exact mode sums take its place, an empty range
    being its lower end.
    """

    temperature_concentration: Strength = member(default=2.0, kw_only=True)
    """``s`` of the temperature."""
    temperature_ratio: Strength = member(default=1.0, kw_only=True)
    """``r`` of the temperature: the odds of its mean within the range."""
    cutoff_concentration: Strength = member(default=2.0, kw_only=True)
    """``s`` of the cutoff."""
    cutoff_ratio: Strength = member(default=1.0, kw_only=True)
    """``r`` of the cutoff."""
    cutoffs: tuple[int, int] = member(default=(1, 15), kw_only=True, metadata=STATIC)
    """Smallest and largest cutoff."""
    interpolation: Interpolation = member(default="linear", kw_only=True, metadata=STATIC)
    """As in `stabjax.warp.pull_back`."""
    spatial: Spatial = member(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        low, high = self.cutoffs
        if not 1 <= low <= high:
            raise ValueError(f"expected cutoffs (smallest, largest) with 1 <= smallest <= largest, got {self.cutoffs}")
        tiny = float(jnp.finfo(jnp.float32).tiny)
        convert(
            self, temperature_concentration=tiny, temperature_ratio=tiny, cutoff_concentration=tiny, cutoff_ratio=tiny
        )

    def draw(self, key: PRNGKey, shape: tuple[int, ...]) -> Diffeomorphism:
        """Draw the random temperature and cutoff for images of these spatial sides."""
        key = as_key(key)
        low, high = self.cutoffs
        if len(shape) == 3 and low < 2:
            raise ValueError(f"expected cutoffs from 2 on for the three axes {shape}, got {self.cutoffs}")
        # Both Beta variables in one call: index 0 is the cutoff, index 1 the temperature.
        concentration, ratio = (
            jnp.stack([strength(value, jnp.result_type(value)) for value in group])
            for group in (
                (self.cutoff_concentration, self.temperature_concentration),
                (self.cutoff_ratio, self.temperature_ratio),
            )
        )
        # Beta(s r / (r + 1), s / (r + 1)) has mean r / (r + 1); s = 2, r = 1 is the uniform one.
        for_cutoff, for_temperature = jax.random.beta(
            key, concentration * ratio / (ratio + 1), concentration / (ratio + 1)
        )
        # floor makes each whole number from low to high equally likely under a uniform B; B = 1 would give high + 1.
        cutoff = jnp.clip(jnp.floor(for_cutoff * (high + 1 - low) + low), low, high)
        coldest, hottest = fields.temperature_range(cutoff, shape, convention="rms", max_cutoff=high)
        hottest = jnp.maximum(coldest, hottest)
        if len(shape) == 2:
            published = fields.temperature_range(cutoff, shape)
            # False where the published range is empty, and where it is NaN, at cutoff 1.
            usable = published[0] < published[1]
            coldest, hottest = jnp.where(usable, published[0], coldest), jnp.where(usable, published[1], hottest)
        temperature = coldest + for_temperature * (hottest - coldest)
        return Diffeomorphism(temperature, cutoff, max_cutoff=high, interpolation=self.interpolation, spatial=shape)

    def field(self, key: PRNGKey, shape: tuple[int, ...]) -> Field:
        """Return the displacement field of this key for images of these sides, ``(ndim, *shape)``, in pixels."""
        for_strength, for_field = jax.random.split(as_key(key))
        return self.draw(for_strength, tuple(shape)).field(for_field, tuple(shape))

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the deformed image, ``(*spatial, channels)``."""
        check_image(image, spatial=self.spatial, made_for="deformation")
        return warp.pull_back(image, self.field(key, np.shape(image)[:-1]), interpolation=self.interpolation)


@perturbation
@dataclass(frozen=True, eq=False)
class Translation:
    """A shift by a given distance in a random direction, clamped at the border."""

    distance: Strength
    """Pixels."""
    interpolation: Interpolation = member(default="linear", kw_only=True, metadata=STATIC)
    """As in `stabjax.warp.pull_back`."""
    spatial: Spatial = member(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        convert(self, distance=0.0)

    def field(self, key: PRNGKey, shape: tuple[int, ...]) -> Field:
        """Return the displacement field of this key for images of these sides, ``(ndim, *shape)``, in pixels."""
        distance = strength(self.distance, jnp.result_type(self.distance))
        direction = jax.random.normal(as_key(key), (len(shape),), distance.dtype)
        # A normal vector over its length: a uniform direction.
        step = direction * (distance / safe_norm(direction))
        return fields.affine(shape, translation=step)

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the shifted image, ``(*spatial, channels)``."""
        check_image(image, spatial=self.spatial, made_for="translation")
        return warp.pull_back(image, self.field(key, np.shape(image)[:-1]), interpolation=self.interpolation)


@perturbation
@dataclass(frozen=True, eq=False)
class Affine:
    """A random affine map of a two-dimensional image about its middle, clamped at the border.

    Each part of `stabjax.fields.affine` is Gaussian with mean zero and the root mean square given here.
    """

    translation: Strength = member(default=0.0, kw_only=True)
    """Root mean square length of the shift, pixels."""
    rotation: Strength = member(default=0.0, kw_only=True)
    """Root mean square angle, radians."""
    compression: Strength = member(default=0.0, kw_only=True)
    """Root mean square compression."""
    shear: Strength = member(default=0.0, kw_only=True)
    """Root mean square of ``sqrt(a^2 + b^2)``."""
    interpolation: Interpolation = member(default="linear", kw_only=True, metadata=STATIC)
    """As in `stabjax.warp.pull_back`."""
    spatial: Spatial = member(default=None, kw_only=True, metadata=STATIC)
    """Number of spatial axes of the images it is for, or their sides; needed where a shape leaves them open."""

    def __post_init__(self) -> None:
        convert(self, translation=0.0, rotation=0.0, compression=0.0, shear=0.0)
        if self.spatial is None:
            object.__setattr__(self, "spatial", 2)
        elif self.spatial != 2 and np.shape(self.spatial) != (2,):
            raise ValueError(f"expected an affine map of two spatial axes, got spatial={self.spatial}; use Translation")

    def field(self, key: PRNGKey, shape: tuple[int, ...]) -> Field:
        """Return the displacement field that this key draws for images of these sides, ``(2, h, w)``, in pixels."""
        translation, rotation, compression, shear = (
            strength(each, jnp.result_type(each))
            for each in (self.translation, self.rotation, self.compression, self.shear)
        )
        # Two components of mean square t^2 / 2 each make a vector of root mean square t.
        z = jax.random.normal(as_key(key), (6,), rotation.dtype)
        return fields.affine(
            shape,
            translation=z[:2] * (translation / math.sqrt(2)),
            rotation=z[2] * rotation,
            compression=z[3] * compression,
            shear=z[4:] * (shear / math.sqrt(2)),
        )

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the transformed image, ``(h, w, channels)``."""
        check_image(image, spatial=self.spatial, made_for="affine map")
        return warp.pull_back(image, self.field(key, np.shape(image)[:-1]), interpolation=self.interpolation)
