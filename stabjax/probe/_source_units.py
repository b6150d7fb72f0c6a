"""The units of batches of images: one program runs a network on a batch, over the devices of a mesh."""

from dataclasses import dataclass
from functools import partial, reduce
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from stabjax import features
from stabjax._pixels import normalize_channels
from stabjax.probe._checks import finite_rows
from stabjax.probe._devices import IMAGES, WHOLE, Devices
from stabjax.probe._layers import Layers, Scaling, Units, UnitsOfLayers, read_units
from stabjax.probe._pass import Normalization
from stabjax.probe._source import Share

Shares: TypeAlias = tuple[Share, ...]
"""The images of one batch as each network takes them; one for both where they take the same."""


@dataclass(frozen=True)
class Reading:
    """How units are read, the same for every batch.

    Attributes:
        traced: Each network.
        layers: What is compared of each.
        select: Which operations.
        units: What counts as a unit.
        normalization: Mean and deviation to normalize images by.
        devices: Over which images are split.
    """

    traced: tuple[features.Traced, ...]
    layers: tuple[Layers, ...]
    select: features.Select
    units: Units
    normalization: Normalization
    devices: Devices

    def place(self, shares: Shares) -> tuple[tuple[Array, ...], Bool[Array, " slots"]]:
        """Put images on the devices; return them, and which are there and finite for every network."""
        # Once, not for every program that reads them.
        images = tuple(jnp.asarray(self.devices.put(share.images)) for share in shares)
        return images, _count(images, self.devices.put(shares[0].counted), devices=self.devices)

    def read(
        self, images: tuple[Array, ...], counted: Array, scalings: tuple[Scaling, ...]
    ) -> tuple[UnitsOfLayers, ...]:
        """Run each network on its images, or on those of both."""
        sides = []
        for k, (traced, layers, scaling) in enumerate(zip(self.traced, self.layers, scalings, strict=True)):
            of_network = images[min(k, len(images) - 1)]
            options = {"select": self.select, "units": self.units, "normalization": self.normalization}
            sides.append(
                read_batch(traced, of_network, counted, scaling, layers=layers, devices=self.devices, **options)
            )
        return tuple(sides)


@partial(jax.jit, static_argnames=("devices",))
def _count(images: tuple[Array, ...], counted: Array, *, devices: Devices) -> Array:
    def local(images: tuple[Array, ...], counted: Array) -> Array:
        return reduce(jnp.logical_and, map(finite_rows, images), counted)

    return devices.split(local, (IMAGES, IMAGES), IMAGES)(images, counted)


@partial(jax.jit, static_argnames=("layers", "select", "units", "normalization", "devices"))
def read_batch(
    traced: features.Traced,
    images: Array,
    counted: Array,
    scaling: Scaling,
    *,
    layers: Layers,
    select: features.Select,
    units: Units,
    normalization: Normalization,
    devices: Devices,
) -> UnitsOfLayers:
    """Run a network on the images of a batch, and return the units of its layers, shifted and scaled."""

    def local(traced: features.Traced, images: Array, counted: Array, scaling: Scaling) -> UnitsOfLayers:
        if normalization is not None:
            images = normalize_channels(images, *normalization)
        # Blank where they do not count: a layer may be NaN for an image that is not.
        images = jnp.where(jnp.expand_dims(counted, tuple(range(1, images.ndim))), images, 0)
        return scaling.apply(read_units(traced, images, layers, select=select, units=units), counted)

    return devices.split(local, (WHOLE, IMAGES, IMAGES, WHOLE), IMAGES)(traced, images, counted, scaling)


find_scaling = jax.jit(Scaling.of)


@partial(jax.jit, donate_argnames=("units",))
def scale(units: UnitsOfLayers, scaling: Scaling, counted: Array) -> UnitsOfLayers:
    """Shift and scale units that were read as they are."""
    return scaling.apply(units, counted)
