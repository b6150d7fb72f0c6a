"""Loss and accuracy of a model on labeled images."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int, Num

from stabjax._images import Spatial, check_batch, check_plain, explain_batch
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.train._augment import check_values, normalize
from stabjax.train._recipe import Loss, Real, as_count
from stabjax.train._recipe import loss as loss_of
from stabjax.train._state_dict import Layout, Weights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Means over the images."""

    loss: float
    """Mean loss, without label smoothing."""
    accuracy: float
    """Share of images whose label is predicted, in [0, 1]."""


def evaluate(
    model: nnx.Module,
    images: Num[AnyArray, "n *spatial channels"],
    labels: Int[AnyArray, " n"],
    *,
    batch_size: int = 100,
    loss: Loss = "cross-entropy",
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
    flip: bool = False,
    spatial: Spatial = None,
) -> Evaluation:
    """Return the mean loss and accuracy of ``model`` in evaluation mode; the model itself is left as it is.

    Every image counts once: a last partial batch is filled up with images of weight zero, so one program serves all.

    Args:
        model: a Flax NNX module, called on batches.
        images: as in `fit`; integers are divided by 255.
        labels: class numbers, or -1 and +1 for the hinge loss.
        batch_size: images at a time.
        loss: see `Recipe`.
        mean: see `Recipe`.
        deviation: see `Recipe`.
        flip: score the mean of the outputs for each image and its mirror image along the last spatial axis.
        spatial: number of spatial axes of the images, or their sides, as in `fit`.

    Raises:
        TypeError: images or labels are no arrays.
        ValueError: model, images, labels and loss do not fit together, an image is not finite, or images do not go
            with ``mean`` and ``deviation``.
    """
    batch_size = as_count("batch_size", batch_size)
    layout, weights = Layout.of(model)
    images, labels = check_data(images, labels, loss, spatial=spatial)
    check_outputs(layout, weights, images, labels, loss, mean, deviation)
    if images.ndim < 3 and flip:
        raise ValueError(f"expected images with spatial axes for flip, got shape {images.shape}")
    total = total_score(compile_score(layout, loss, mean, deviation, flip), weights, images, labels, size=batch_size)
    return Evaluation(*(float(x) for x in total / len(images)))


def check_data(
    images: AnyArray,
    labels: AnyArray,
    loss: Loss,
    *,
    spatial: Spatial = None,
    made_for: Mapping[str, Spatial] = MappingProxyType({}),
) -> tuple[jax.Array, jax.Array]:
    """Check images and labels and put them on the device: byte images stay bytes, labels become int32."""
    check_batch(images, spatial=spatial, made_for=made_for, vectors=True, integers="any")
    if not isinstance(labels, (np.ndarray, jax.Array)):
        raise TypeError(f"expected labels as an array, got {type(labels).__name__}: give np.asarray(...) of it")
    check_plain(labels, "labels")
    if len(images) != len(labels):
        raise ValueError(
            f"expected as many labels as images, got {len(labels)} and {len(images)}: give one label for each image"
        )
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"expected labels as whole numbers (n,), got {labels.dtype} of shape {labels.shape}: "
            "of one-hot labels, take np.argmax(labels, axis=1)"
        )
    if jnp.issubdtype(images.dtype, jnp.floating):
        bad = np.flatnonzero(~np.all(np.isfinite(np.asarray(images)), axis=tuple(range(1, images.ndim))))
        if len(bad):
            raise ValueError(
                f"expected finite images, got NaN or infinity in {len(bad)} of {len(images)}, image {bad[0]} the "
                "first: leave them out"
            )
    # Sorted, so the first and the last are the smallest and the largest label. Compared before they are converted:
    # larger ones would wrap around.
    found = np.unique(np.asarray(labels))
    if found[0] < -(2**31) or found[-1] >= 2**31:
        raise ValueError(f"expected labels of 32 bits, got {found[0]} to {found[-1]}: number the classes from 0")
    if loss == "hinge" and not set(found.tolist()) <= {-1, 1}:
        raise ValueError(f"expected labels -1 and +1 for the hinge loss, got {found[:8]}: use 2 * labels - 1")
    if loss == "cross-entropy" and found[0] < 0:
        raise ValueError(f"expected labels from 0 for the cross-entropy, got {found[0]}: use (labels + 1) // 2")
    return without_explicit_axes(jnp.asarray(images)), jnp.asarray(np.asarray(labels, np.int32))


def check_outputs(
    layout: Layout,
    weights: Weights,
    images: AnyArray,
    labels: AnyArray,
    loss: Loss,
    mean: tuple[Real, ...],
    deviation: tuple[Real, ...],
) -> int:
    """Return the number of outputs, from a trace of two images: misfits are named before anything is computed.

    So are values that do not go with the statistics.
    """
    check_values(images, mean=mean, deviation=deviation)
    # Two, not one: a network that squeezes axes of length one would drop that of the batch.
    two = jax.ShapeDtypeStruct((2, *images.shape[1:]), images.dtype)
    with explain_batch(two):
        shape = _compile_outputs(layout, loss, mean, deviation).eval_shape(weights, two).shape
    if loss == "cross-entropy" and np.max(labels) >= shape[1]:
        raise ValueError(f"expected labels below {shape[1]}, the number of outputs, got {np.max(labels)}")
    return math.prod(shape[1:])


@functools.lru_cache(maxsize=16)
def _compile_outputs(layout: Layout, loss: Loss, mean: tuple[Real, ...], deviation: tuple[Real, ...]) -> Any:
    """Jit the outputs, taken by the loss; cached so that images of one shape are traced once."""

    @jax.jit
    def outputs(weights: Weights, images: jax.Array) -> jax.Array:
        found = layout.model(weights, training=False)(normalize(images, mean=mean, deviation=deviation))
        # For what it raises if the outputs are of the wrong shape; its value is not used.
        loss_of(found, jnp.zeros(len(images), jnp.int32), kind=loss)
        return found

    return outputs


@functools.lru_cache(maxsize=16)
def compile_score(
    layout: Layout, loss: Loss, mean: tuple[Real, ...], deviation: tuple[Real, ...], flip: bool
) -> Callable[..., jax.Array]:
    """Jit the sum of (loss, hits) over one batch, cached so that models of one architecture share it."""

    @functools.partial(jax.jit, static_argnames="size")
    def batch(weights: Weights, images: jax.Array, labels: jax.Array, start: jax.Array, *, size: int) -> jax.Array:
        index = start + jnp.arange(size, dtype=jnp.int32)
        counted = index < len(images)
        # Beyond the end the last image is repeated, at weight zero: each batch has one shape, and one program.
        index = jnp.minimum(index, len(images) - 1)
        inputs = normalize(images[index], mean=mean, deviation=deviation)
        if flip:
            # Image k and its mirror image are rows k and size + k; the axis before the channels is the horizontal one.
            inputs = jnp.concatenate([inputs, jnp.flip(inputs, axis=-2)])
        outputs = layout.model(weights, training=False)(inputs)
        if flip:
            outputs = (outputs[:size] + outputs[size:]) / 2
        each = jnp.stack(loss_of(outputs, labels[index], kind=loss)).astype(jnp.float32)
        return jnp.sum(jnp.where(counted[None], each, 0), axis=1)

    return batch


def total_score(
    batch: Callable[..., jax.Array], weights: Weights, images: jax.Array, labels: jax.Array, *, size: int
) -> np.ndarray:
    """Sum (loss, hits) over all images.

    The loop over batches is in Python: on the CPU, XLA runs convolutions of most layouts many times slower inside a
    compiled loop, and a batch takes far longer than its dispatch.
    """
    size = min(size, len(images))
    parts = [
        batch(weights, images, labels, np.array(start, np.int32), size=size) for start in range(0, len(images), size)
    ]
    # (batches, 2) -> (2,), in double precision.
    return np.sum(np.asarray(parts, np.float64), axis=0)
