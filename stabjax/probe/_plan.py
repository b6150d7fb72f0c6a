"""How images and draws are dealt out to the steps of the loop."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped


@dataclass(frozen=True)
class Plan:
    """Batches of consecutive images that differ in length by at most one.

    None is ever left with a single image: the spread needs two. All are sliced to one size; a shorter batch borrows the
    first image of the next, with weight zero.

    Attributes:
        images: Number of images.
        draws: Number of draws per image.
        batches: Number of batches.
        separate: Whether the versions of all images, in one batch, pass separately, one draw at a time. Otherwise the
            clean images of a batch and all their versions pass together.
    """

    images: int
    draws: int
    batches: int
    separate: bool

    @property
    def size(self) -> int:
        """Images per step."""
        return -(-self.images // self.batches)

    @property
    def draws_together(self) -> int:
        """Draws per step."""
        return 1 if self.separate else self.draws

    @property
    def versions(self) -> int:
        """Versions of an image per step: clean, deformed, noisy."""
        return 1 + 2 * self.draws_together

    @property
    def rows(self) -> int:
        """Rows that pass the network together."""
        return self.size if self.separate else self.size * self.versions

    def lengths(self) -> Int[np.ndarray, " batches"]:
        """Images of each batch; the shorter batches come first, so that no slice runs over the end."""
        shorter = self.batches * self.size - self.images
        return self.size - (np.arange(self.batches) < shorter).astype(int)

    def steps(self) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """First image, number of images and first draw of each step."""
        lengths = self.lengths()
        starts = np.cumsum(lengths) - lengths
        chunks = self.draws // self.draws_together
        return np.repeat(starts, chunks), np.repeat(lengths, chunks), np.tile(np.arange(chunks), self.batches)

    def by_image(self, values: Shaped[Array, "steps k size"]) -> Shaped[Array, "chunks k images"]:
        """What the steps found, image by image, the borrowed ones dropped; one chunk per step on the same images."""
        filled = np.arange(self.size)[None] < self.lengths()[:, None]
        chunks = jnp.reshape(values, (self.batches, -1, *values.shape[1:]))
        ordered = jnp.reshape(jnp.transpose(chunks, (1, 2, 0, 3)), (*chunks.shape[1:3], -1))
        return ordered[:, :, np.flatnonzero(filled)]


def deal(images: int, draws: int, batch_size: int) -> Plan:
    """The plan for so many images; with more draws fewer images pass together, so that the memory stays the same."""
    if batch_size >= images:
        return Plan(images, draws, 1, separate=True)
    together = max(2, 3 * batch_size // (1 + 2 * draws))
    return Plan(images, draws, max(1, min(-(-images // together), images // 2)), separate=False)
