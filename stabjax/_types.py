"""The arrays and functions that flow through stabjax, typed once.

An image is one example, ``(*spatial, channels)``; a batch puts one axis in front. A field is ``(ndim, *spatial)`` in
pixels, and component ``i`` moves along array axis ``i``. The way of the data::

    Perturbation: (key, image) -> image          one image, random
    network:      batch -> outputs               batched, each row depending on that row alone: `stabjax.networks`
    features:     {name: activation}             what a network computes on the way, one entry per operation
    Measurement:  activations -> result          what is asked of every operation, batch by batch: `stabjax.probe`
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

AnyArray: TypeAlias = jax.Array | np.ndarray
PRNGKey: TypeAlias = Key[Array, ""] | UInt32[Array, " words"]  # typed, or raw: see `_arguments.as_key`
Scalar: TypeAlias = float | int | Float[AnyArray, ""] | Int[AnyArray, ""] | np.number
Image: TypeAlias = Float[AnyArray, " *spatial channels"]
Images: TypeAlias = Float[AnyArray, " batch *spatial channels"]
Field: TypeAlias = Float[AnyArray, " ndim *spatial"]
Coefficients: TypeAlias = Float[AnyArray, " ndim *modes"]


@runtime_checkable
class Perturbation(Protocol):
    """A random map of one image to one image of the same shape and dtype.

    A registered pytree whose strengths are leaves, so that a sweep over strengths compiles once. Zero strength is the
    identity; the same key gives the same output.
    """

    def __call__(self, key: PRNGKey, image: Image) -> Image:
        """Return the perturbed image, ``(*spatial, channels)``."""
        ...


@runtime_checkable
class Measurement(Protocol):
    """What is asked of every operation of a network while the images pass, see `stabjax.probe.run`.

    Images pass in batches, on one device or several, and no activation outlives its batch. What is kept is a state of
    fixed size, and a few numbers of each image, its rows::

        reduce    at every operation: the activations of a batch -> a few arrays
        init      the state before the first batch
        update    state, reduced batch -> state, rows of the batch
        merge     two states -> the state of both sets of images
        finish    state, all rows in the order of the images -> the result

    States are a monoid: ``merge`` is associative, and a state from ``init`` changes nothing. So batches, devices and
    processes may be grouped in any way. All but ``finish`` are compiled: arrays in, arrays out, whose shapes do not
    depend on values.

    A measurement may have an attribute ``versions``, those of ``("deformed", "noisy")`` that it looks at, so that no
    others are computed for it; by default both. Another, ``least_images``, is the number of images that it
    needs. A measurement that holds arrays should be a registered pytree; others are compared by what they hold.
    """

    def reduce(self, tap: Any, clean: Any, deformed: Any, noisy: Any, context: Any) -> Any:
        """Reduce the activations of one batch to a pytree of arrays.

        Args:
            tap: The operation, a `stabjax.features.Tap`; the images themselves come first, as ``"input"``.
            clean: Activations of the clean images, ``(size, *activation)``. An operation that puts several parts of an
                image into the batch (windows) gives ``(size, parts, *activation)``.
            deformed: Those of the deformed images, ``(draws, size, *activation)``, or None.
            noisy: Those of the noisy images, likewise.
            context: What is known of the images of the batch, a `stabjax.probe.Context`.
        """
        ...

    def init(self, reduced: Mapping[str, Any]) -> Any:
        """Return the state before the first batch, a pytree of arrays.

        Args:
            reduced: Shapes and dtypes of what ``reduce`` gives for each operation, in the order of execution.
        """
        ...

    def update(self, state: Any, reduced: Mapping[str, Any], context: Any) -> tuple[Any, Any]:
        """Return the state with one batch more, and the `stabjax.probe.Rows` of its images.

        Images whose ``context.weights`` are zero must not count: they fill up a batch, are not finite, or have been
        seen in an earlier draw. What is summed over draws goes by ``context.counted``, which is the same in all draws.
        """
        ...

    def merge(self, one: Any, other: Any) -> Any:
        """Return the state of the images of both states."""
        ...

    def finish(self, state: Any, rows: Any, summary: Any) -> Any:
        """Return the result.

        Args:
            state: Of all images.
            rows: `stabjax.probe.Rows` of all images, in their order.
            summary: What was passed, a `stabjax.probe.Summary`.
        """
        ...
