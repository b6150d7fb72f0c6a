"""What a unit looks at: the size of its gradient, pixel by pixel."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax import features
from stabjax._types import Images
from stabjax.receptive._unit import locate, network_of


def effective(
    f: Any,
    images: Images,
    *,
    tap: str,
    unit: Sequence[int] | None = None,
    channel: int | Sequence[int] | None = None,
    batch_size: int = 8,
) -> Float[Array, "*spatial"]:
    """Expected size of the gradient of a unit with respect to the image: its effective receptive field.

    ``map[s] = < sum_c |d a_u / d x_{s,c}| >``, summed over the channels ``c`` of the image and averaged over the images
    and the channels of the unit (Luo, Li, Urtasun, Zemel 2016, arXiv 1701.04128, section 2, where it is the plain
    gradient that is averaged). Nothing outside of the box of `extent` is seen, and most of the map lies well inside.
    Every image passes by itself.

    Args:
        f: a network from `features.of`, or a plain function of a batch.
        images: ``(n, *spatial, channels)``.
        tap: name of an operation, as in `features.taps`.
        unit: position of the unit on the axes of the tap without batch and channels; by default the centre,
            ``side // 2`` on each axis. ``()`` for a dense layer.
        channel: channels of the tap to average over; all by default. One backward pass is made for each of them and
            each image.
        batch_size: images whose backward passes run at once; it bounds the memory.

    Returns:
        the map, of the shape of an image without channels.

    Raises:
        TypeError: for images that are not floating, or a shape in place of images.
        ValueError: for a name that is no operation of the network, a unit or channel that it does not have, or a batch
            without images.

    Example:
        >>> box = receptive.extent(network, images)["features/5/conv"]
        >>> seen = receptive.effective(network, images, tap="features/5/conv")
        >>> receptive.width(seen), box.size
    """
    images = _checked(images)
    reading, found = locate(f, jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype), tap, unit)
    rows = reading.program.jaxpr.invars[-1].aval.shape[0]
    count = found.channels
    wanted: Any = range(count) if channel is None else channel
    try:
        chosen = tuple(operator.index(c) for c in (wanted if np.ndim(wanted) else [wanted]))
    except TypeError:
        chosen = ()
    if not chosen or any(not -count <= c < count for c in chosen):
        raise ValueError(f"expected channels of {tap!r} within 0..{count - 1}, got {channel!r}")
    return _mean_gradient(network_of(f), images, tap, found.index, chosen, rows, batch_size)


def _checked(images: Any) -> Array:
    """A batch that has gradients."""
    if isinstance(images, jax.ShapeDtypeStruct):
        raise TypeError("expected images, got a shape; gradients take numbers, the map of a shape is constant_weight")
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"expected floating images, got {images.dtype}; convert them: images.astype(float) / 255")
    if images.ndim < 2 or not len(images):
        raise ValueError(
            f"expected a batch, (batch, *spatial, channels), got {images.shape}; an average takes an image"
        )
    return images


@partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _mean_gradient(
    network: features.Guest,
    images: Array,
    tap: str,
    index: tuple[int | None, ...],
    channels: tuple[int, ...],
    rows: int,
    batch_size: int,
) -> Array:
    def of_image(image: Array) -> Array:
        def unit(x: Array) -> Array:
            _, found = features.capture(network, select=lambda site: site.name == tap)(jnp.stack([x] * rows))
            values = found[tap][tuple(slice(None) if place is None else place for place in index)]
            return jnp.ravel(values)[jnp.asarray(channels)]

        values, backward = jax.vjp(unit, image)
        (gradients,) = jax.vmap(backward)(jnp.eye(len(channels), dtype=values.dtype))
        return jnp.mean(jnp.sum(jnp.abs(gradients), axis=-1), axis=0)

    return jnp.mean(jax.lax.map(of_image, images, batch_size=batch_size), axis=0)
