"""What a unit looks at: the size of its gradient, pixel by pixel."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stabjax import features
from stabjax._images import Spatial, check_batch
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Images
from stabjax.receptive._unit import Position, axes_of, from_start, integers, is_inside, locate, numbers_of, unit_mask


def effective(
    f: Any,
    images: Images,
    *,
    tap: str,
    unit: Position | None = None,
    channel: int | np.integer | Int[AnyArray, ""] | Position | None = None,
    batch_size: int = 8,
    spatial: Spatial = None,
) -> Float[Array, "*spatial"]:
    """Return the expected size of the gradient of a unit with respect to the image: its effective receptive field.

    ``map[s] = < sum_c |d a_u / d x_{s,c}| >``, summed over the channels ``c`` of the image and averaged over the images
    and the channels of the unit (Luo, Li, Urtasun, Zemel 2016, arXiv 1701.04128, section 2, where it is the plain
    gradient that is averaged). Nothing outside of the box of `extent` is seen, and most of the map lies well inside.
    Every image passes by itself.

    Args:
        f: a network from `networks.wrap`, or a plain function of a batch.
        images: ``(n, *spatial, channels)``.
        tap: name of an operation, as in `features.taps`.
        unit: position of the unit on the axes of the tap without batch and channels; by default the center,
            ``side // 2`` on each axis. ``()`` for a dense layer. All units of a tap share one compiled program. It may
            be traced: the maps of many units are those of a `jax.vmap` over it.
        channel: channels of the tap to average over; all by default. One backward pass is made for each of them and
            each image. They may be traced, too.
        batch_size: images whose backward passes run at once, each for all channels and, under a `jax.vmap`, for all
            units; it bounds the memory.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        the map, of the shape of an image without channels; in single precision for images in half. NaN for a traced
        unit or channel that the tap does not have.

    Raises:
        TypeError: for images that are not floating, or a shape in place of images.
        ValueError: for a name that is no operation of the network, a unit or channel that it does not have, a batch
            without images, or a ``batch_size`` below one.

    Example:
        >>> box = receptive.extent(network, images)["features/5/conv"]
        >>> seen = receptive.effective(network, images, tap="features/5/conv")
        >>> receptive.width(seen), box.size
        >>> units = jnp.indices((8, 8)).reshape(2, -1).T
        >>> of = lambda unit: receptive.effective(network, images, tap="features/5/conv", unit=unit)
        >>> fields = jax.vmap(of)(units)  # (64, h, w)
    """
    if isinstance(images, jax.ShapeDtypeStruct):
        raise TypeError(
            "expected images, got a shape: gradients take numbers; the map of a shape is that of constant_weight"
        )
    check_batch(images, spatial=spatial, vectors=True)
    images = without_explicit_axes(jnp.asarray(images))
    if integers([batch_size]) is None or batch_size < 1:
        raise ValueError(f"expected batch_size as a number of images, at least one, got {batch_size!r}")
    traced, found = locate(f, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype), tap, unit)
    wanted: Any = range(found.channels) if channel is None else channel
    chosen = numbers_of(wanted if np.ndim(wanted) else [wanted], found.channels)
    if chosen is None or not len(chosen):
        raise ValueError(f"expected channels of {tap!r} within 0..{found.channels - 1}, got {channel!r}")
    # The program is for one image (or two, see `locate`), and is mapped over all images.
    return _mean_gradient(traced, images, found.place, chosen, tap, found.site.channel_axis, batch_size)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _mean_gradient(
    traced: features.Traced,
    images: Array,
    place: AnyArray,
    channels: AnyArray,
    tap: str,
    channel_axis: int | None,
    batch_size: int,
) -> Array:
    """Average gradients; the unit and its channels are traced: they choose what is handed back, not what compiles."""

    def activation(image: Array) -> Array:
        # The program was traced for a batch of this length. `unit_mask` asks for row 0 alone: the copies add nothing.
        batch = jnp.stack([image] * traced.batch.shape[0])
        _, found = traced.capture(batch, select=lambda site: site.name == tap)
        return found[tap]

    shape = jax.eval_shape(activation, images[0]).shape
    unit = unit_mask(place, shape, channel_axis)
    sides = [shape[axis] for axis in axes_of(shape, channel_axis)]
    if channel_axis is None:
        # Without a channel axis there is one channel, 0, everywhere.
        channel, count = jnp.zeros(shape, np.int32), 1
    else:
        channel, count = jax.lax.broadcasted_iota(np.int32, shape, channel_axis), shape[channel_axis]
    precision = jnp.promote_types(images.dtype, np.float32)

    def of_image(image: Array) -> Array:
        # One forward pass for all channels; each is a backward pass of a cotangent that is one at the unit.
        value, backward = jax.vjp(activation, image)

        def of_channel(number: Array) -> Array:
            here = unit & (channel == from_start(number, count))
            # sum_c |d a_u / d x_{s,c}|: the absolute value of each channel of the image, before the sum.
            return jnp.sum(jnp.abs(backward(here.astype(value.dtype))[0]).astype(precision), axis=-1)

        return jnp.mean(jax.vmap(of_channel)(jnp.asarray(channels)), axis=0)

    # Image by image: no row can see another, and the memory is that of batch_size images.
    field = jnp.mean(jax.lax.map(of_image, images, batch_size=batch_size), axis=0)
    return jnp.where(is_inside(place, sides) & is_inside(channels, count), field, jnp.nan)
