"""How images and draws are divided into the steps of a loop: `Batches` of `stability`, `Tiles` of `similarity`."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped


@dataclass(frozen=True)
class Batches:
    """Batches of consecutive images that differ in length by at most one.

    No batch has a single image: the spread needs two. All are sliced to one size; a shorter batch is filled up with the
    first image of the next, at weight zero. Seven images in three batches of size 3::

        image    0 1 2 3 4 5 6
        batch 0  0 1(2)             length 2, image 2 at weight zero
        batch 1      2 3(4)         length 2, image 4 at weight zero
        batch 2          4 5 6      length 3

    Attributes:
        images: Number of images.
        draws: Number of draws per image.
        number: Number of batches.
        separate: Whether the versions of all images, in one batch, pass separately, one draw at a time. Otherwise the
            clean images of a batch and all their versions pass together.
    """

    images: int
    draws: int
    number: int
    separate: bool

    @property
    def size(self) -> int:
        """Images per step."""
        return -(-self.images // self.number)

    @property
    def draws_per_step(self) -> int:
        """Draws per step."""
        return 1 if self.separate else self.draws

    @property
    def versions(self) -> int:
        """Versions of an image per step: clean, deformed, noisy."""
        return 1 + 2 * self.draws_per_step

    @property
    def rows(self) -> int:
        """Rows that pass the network together."""
        return self.size if self.separate else self.size * self.versions

    def lengths(self) -> Int[np.ndarray, " number"]:
        """Return the number of images of each batch; shorter ones come first, so that no slice runs over the end."""
        # Fewer than there are batches, so the last one has full length. A shorter one reads one image of the next.
        shorter = self.number * self.size - self.images
        return self.size - (np.arange(self.number) < shorter).astype(int)

    def steps(self) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
        """Return the first image, the number of images and the first draw of each step."""
        lengths = self.lengths()
        starts = np.cumsum(lengths) - lengths
        # Batch by batch, and within a batch draw by draw; a single step unless the versions pass separately.
        per_batch = self.draws // self.draws_per_step
        return np.repeat(starts, per_batch), np.repeat(lengths, per_batch), np.tile(np.arange(per_batch), self.number)

    def by_image(self, values: Shaped[Array, "steps k size"]) -> Shaped[Array, "per_batch k images"]:
        """Put the results of the steps in the order of the images, those at weight zero left out."""
        counted = np.arange(self.size)[None] < self.lengths()[:, None]
        # (number, per_batch, k, size) -> (per_batch, k, number * size)
        of_batches = jnp.reshape(values, (self.number, -1, *values.shape[1:]))
        ordered = jnp.reshape(jnp.transpose(of_batches, (1, 2, 0, 3)), (*of_batches.shape[1:3], -1))
        return ordered[:, :, np.flatnonzero(counted)]


def divide(images: int, draws: int, batch_size: int) -> Batches:
    """Divide so many images into batches; with more draws fewer images pass together, at the same memory.

    Two images pass at least, and three where one would be left over.
    """
    if batch_size >= images:
        return Batches(images, draws, 1, separate=True)
    # As many rows as ``batch_size`` images with one draw: clean, deformed, noisy.
    size = max(2, 3 * batch_size // (1 + 2 * draws))
    # At most images // 2 batches: even the shortest one has two images.
    return Batches(images, draws, max(1, min(-(-images // size), images // 2)), separate=False)


@dataclass(frozen=True)
class Tiles:
    """Batches of one size, of which so many make a tile: the images whose activations are held at a time.

    Blank images fill the last batches. Ten images in two tiles of two batches of size 3::

        tile 0  | 0 1 2 | 3 4 5 |
        tile 1  | 6 7 8 | 9 . . |

    Attributes:
        images: Number of images.
        size: Images that pass the network together.
        batches: Batches per tile.
        number: Number of tiles.
    """

    images: int
    size: int
    batches: int
    number: int

    @property
    def tile(self) -> int:
        """Images per tile."""
        return self.size * self.batches

    @property
    def padded(self) -> int:
        """Images and blank ones."""
        return self.tile * self.number

    @property
    def is_one_batch(self) -> bool:
        """Whether all images pass as one batch."""
        return self.size == self.images


def divide_into_tiles(images: int, batch_size: int, held: int | None = None) -> Tiles:
    """Divide into tiles of like size and of at most ``held`` images, or of one batch where that is more.

    Images that only fill a batch are held like others. By default all may be held, however many fill the last batch.
    """
    if batch_size >= images:
        return Tiles(images, images, 1, 1)
    most = 2 * images if held is None else max(held, batch_size)
    number = -(-images // most)
    # Every division is rounded up, so there is room for all images; blank ones fill the rest, at the end. A tile may be
    # more than `most` by that: then there has to be another one. With one batch per tile it never is.
    while (tiles := _divide_evenly(images, batch_size, number)).tile > most:
        number += 1
    return tiles


def _divide_evenly(images: int, batch_size: int, number: int) -> Tiles:
    per_tile = -(-images // number)
    batches = -(-per_tile // batch_size)
    return Tiles(images, -(-per_tile // batches), batches, number)
