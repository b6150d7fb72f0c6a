"""How images and draws are divided into the steps of a loop: `Batches` of `stability`, `Tiles` of `similarity`."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

Kinds: TypeAlias = tuple[str, ...]
"""Versions of an image beside the clean one, of ``("deformed", "noisy")``, in this order."""
ALL_KINDS: Kinds = ("deformed", "noisy")


@dataclass(frozen=True)
class Step:
    """What passes together on one device: so many images, and so many draws of each.

    Attributes:
        size: Images.
        draws: Draws.
        kinds: Which versions there are beside the clean one: ``"deformed"``, ``"noisy"``.
        separate: Whether each version passes the network as a batch of its own, for networks that normalize by the
            statistics of their batch. Otherwise all versions of all images are rows of one batch.
    """

    size: int
    draws: int
    kinds: Kinds
    separate: bool

    @property
    def versions(self) -> int:
        """Versions of an image."""
        return 1 + len(self.kinds) * self.draws

    @property
    def rows(self) -> int:
        """Rows that pass the network together."""
        return self.size if self.separate else self.size * self.versions


@dataclass(frozen=True)
class Batches:
    """Batches of consecutive images that differ in length by at most one.

    No batch has a single image: the spread needs two. All are read with one size; a shorter batch is filled up with the
    first image of the next, at weight zero. Seven images in three batches of size 3::

        image    0 1 2 3 4 5 6
        batch 0  0 1(2)             length 2, image 2 at weight zero
        batch 1      2 3(4)         length 2, image 4 at weight zero
        batch 2          4 5 6      length 3

    Attributes:
        images: Number of images.
        draws: Number of draws per image.
        number: Number of batches.
        step: What passes together: a batch with all draws, or, where versions pass separately, with one draw.
    """

    images: int
    draws: int
    number: int
    step: Step

    @property
    def size(self) -> int:
        """Images of the longest batch."""
        return -(-self.images // self.number)

    def lengths(self) -> Int[np.ndarray, " number"]:
        """Return the number of images of each batch; shorter ones come first, so that none reads over the end."""
        # Fewer than there are batches, so the last one has full length. A shorter one reads one image of the next.
        shorter = self.number * self.size - self.images
        return self.size - (np.arange(self.number) < shorter).astype(int)

    def starts(self) -> Int[np.ndarray, " number"]:
        """Return the first image of each batch."""
        lengths = self.lengths()
        return np.cumsum(lengths) - lengths

    def first_draws(self) -> range:
        """Return the first draw of each step over one batch; a single step unless versions pass separately."""
        return range(0, self.draws, self.step.draws)


def divide(images: int, draws: int, batch_size: int, *, kinds: Kinds = ALL_KINDS, devices: int = 1) -> Batches:
    """Divide so many images into batches; with more draws fewer images pass together, at the same memory.

    Two images pass at least, and three where one would be left over. Over several devices all versions pass together.
    """
    if batch_size >= images and devices == 1:
        return Batches(images, draws, 1, Step(images, 1, kinds, separate=True))
    size = step_size(draws, batch_size, kinds) * devices
    # At most images // 2 batches: even the shortest one has two images.
    number = max(1, min(-(-images // size), images // 2))
    return Batches(images, draws, number, Step(-(-images // (number * devices)), draws, kinds, separate=False))


def step_size(draws: int, batch_size: int, kinds: Kinds) -> int:
    """Return how many images pass together, as many rows as ``batch_size`` images with one draw; two at least."""
    return max(2, (1 + len(kinds)) * batch_size // (1 + len(kinds) * draws))


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
