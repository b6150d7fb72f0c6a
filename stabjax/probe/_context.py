"""What a measurement is told of the images beside their activations, and how it hands out numbers of each image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from stabjax import features, receptive
from stabjax._types import AnyArray, Perturbation


class Rows(NamedTuple):
    """Numbers of each image, which `stabjax.probe.run` puts in the order of the images.

    Both are pytrees of arrays, or nothing.
    """

    per_image: Any = ()
    """``(size, ...)`` each; of several steps over the draws of one batch the first one counts."""
    per_draw: Any = ()
    """``(draws, size, ...)`` each."""

    @classmethod
    def map(cls, of_image: Callable[..., Any], of_draw: Callable[..., Any], *trees: Any) -> Any:
        """Apply one function to what is per image, one to what is per draw, in every `Rows` of some pytrees."""

        def of_rows(*rows: Rows) -> Rows:
            return cls(
                jax.tree.map(of_image, *(each.per_image for each in rows)),
                jax.tree.map(of_draw, *(each.per_draw for each in rows)),
            )

        return jax.tree.map(of_rows, *trees, is_leaf=lambda x: isinstance(x, Rows))


class Batch(NamedTuple):
    """A batch of images with all that was made of it."""

    versions: Float[Array, "versions size *image"]
    """Clean; deformed by each draw; noisy by each draw."""
    positions: Int[Array, " size"]
    finite: Bool[Array, " size"]
    counted: Bool[Array, " size"]
    weights: Float[Array, " size"]
    keys: Key[Array, " size"]
    first_draw: Int[Array, ""]
    changed: Mapping[str, Bool[Array, "draws size"]]
    """Of each kind, whether a perturbed image differs from the clean one at all."""
    sizes: Mapping[str, Float[Array, "draws size"]]
    """Of each kind, how far each perturbed image is from the clean one."""


@dataclass(frozen=True, eq=False)
class Context:
    """What is known of the images of a batch.

    Attributes:
        positions: Position of each image among all, ``(size,)``.
        weights: 1 for images that count, 0 for those that fill up the batch, are not finite, or have been seen in an
            earlier draw, ``(size,)``. For what is found of the clean images.
        counted: Whether an image is one of all, and finite, ``(size,)``, in later draws too. For what is summed over
            draws: those of an image may come in several steps.
        keys: Key of each image, ``fold_in(key, position)``, ``(size,)``.
        draws: Number of each draw, ``(draws,)``. Draw ``d`` of an image takes ``split(fold_in(its key, d))``: one key
            for the deformation, one for the noise.
        changed: Whether a perturbed image differs from the clean one at all, ``(draws, size)`` for each of
            ``"deformed"`` and ``"noisy"`` that there is. Where it does not, what a layer shows as a change is rounding.
        sizes: How far it is from the clean one, ``|tau x - x|`` and ``|eta|``, likewise.
        deformation: The perturbation.
        traced: The network's program.
        spatial: Sides of an image.
    """

    positions: Int[Array, " size"]
    weights: Float[Array, " size"]
    counted: Bool[Array, " size"]
    keys: Key[Array, " size"]
    draws: Int[Array, " draws"]
    changed: Mapping[str, Bool[Array, "draws size"]]
    sizes: Mapping[str, Float[Array, "draws size"]]
    deformation: Perturbation | None
    traced: features.Traced
    spatial: tuple[int, ...]

    @property
    def fields(self) -> Float[Array, "draws size ndim *spatial"]:
        """The displacement field of each deformation, in pixels.

        Raises:
            ValueError: If the deformation has no method ``field(key, shape)``.
        """
        field = getattr(self.deformation, "field", None)
        if field is None:
            raise ValueError(
                f"expected a deformation that knows its field, got {type(self.deformation).__name__}: give it a method "
                "field(key, shape), or take perturb.Diffeomorphism"
            )

        def of_draw(key: Key[Array, ""], draw: Int[Array, ""]) -> Array:
            return field(jax.random.split(jax.random.fold_in(key, draw))[0], self.spatial)

        of_images = jax.vmap(of_draw, (0, None))
        return jax.vmap(of_images, (None, 0))(self.keys, self.draws)

    @property
    def extents(self) -> dict[str, receptive.Extent]:
        """The receptive field of every operation, by name."""
        return self._extents

    @cached_property
    def _extents(self) -> dict[str, receptive.Extent]:
        return receptive.extent(self.traced, self.traced.batch)


@dataclass(frozen=True, eq=False)
class Summary:
    """What is known after all images have passed.

    Attributes:
        taps: The operations that were measured, in the order of execution, the images themselves first.
        key: The key of the run.
        measured: False for images left out because a pixel is not finite, ``(n,)``.
        sizes: How far each perturbed image is from the clean one, ``(draws, n)`` for each of ``"deformed"``,
            ``|tau x - x|``, and ``"noisy"``, ``|eta|``, that there is.
    """

    taps: tuple[features.Tap, ...]
    key: Key[Array, ""]
    measured: Bool[AnyArray, " n"]
    sizes: Mapping[str, Float[AnyArray, "draws n"]]


def make_context(batch: Batch, draws: int, deformation: Perturbation | None, traced: features.Traced) -> Context:
    """Make the context of a batch with so many draws of each image."""
    return Context(
        positions=batch.positions,
        weights=batch.weights,
        counted=batch.counted,
        keys=batch.keys,
        draws=batch.first_draw + jnp.arange(draws),
        changed=batch.changed,
        sizes=batch.sizes,
        deformation=deformation,
        traced=traced,
        spatial=tuple(batch.versions.shape[2:-1]),
    )
