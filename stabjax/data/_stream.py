"""Image folders of any size as batches in a drawn order, decoded in threads ahead of whoever consumes them.

    names in the drawn order | 0 1 2 3 | 4 5 6 7 | 8 9 10 11 | 12 13 14 15 | ...
                             |   due   |   decoded ahead     | not yet opened

Every batch is an array of its own, filled image by image from a queue that all threads share: they are busy whatever
the size of a batch, and the order of the images does not depend on which of them is done first.
"""

import os
import sys
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Int32, UInt8

from stabjax.data import _images, _subset

__all__ = ["Stream", "stream"]

Batch: TypeAlias = tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """Batches of an image folder, ``for images, labels in stream``; made by `stream`.

    Images are bytes ``(b, h, w, channels)`` uint8, labels ``(b,)`` int32; both are new arrays, which the consumer may
    keep or change. Every loop begins anew, in the same order, and several may run at once. ``len`` is the number of
    batches. A loop that is left early stops its threads, as ``close`` does for an iterator outside of a loop.

    Attributes:
        folder: the folder of the split.
        names: paths below ``folder`` of all images, in the order in which they come.
        labels: ``(count,)`` int32, read-only: the class of each.
        classes: names of all classes, in the order of the labels.
        shape: height, width and channels of an image.
        batch_size: number of images of a batch; the last one may have fewer.
        threads: number of threads that decode.
        size: height and width that images are brought to, None where they keep their own.
        channels: number of channels that images are brought to, None where they keep their own.
        fit: "crop" or "stretch".
    """

    folder: Path
    names: Sequence[str]
    labels: Int32[np.ndarray, " count"]
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    batch_size: int
    threads: int
    size: tuple[int, int] | None
    channels: int | None
    fit: str

    @property
    def count(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @property
    def ahead(self) -> int:
        """Return the number of batches that are decoded ahead of the one that is due."""
        # One that waits, and as many as give every thread an image to decode.
        return 1 + -(-self.threads // self.batch_size)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Begin anew at the first batch; what is wrong with an image raises where its batch is due."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="stabjax-stream")
        queue: deque[tuple[np.ndarray, np.ndarray, list[Future[None]]]] = deque()
        try:
            for start in range(0, self.count, self.batch_size):
                queue.append(self._begin(pool, start))
                if len(queue) > self.ahead:
                    yield _wait(*queue.popleft())
            while queue:
                yield _wait(*queue.popleft())
        finally:
            # Also where the consumer leaves its loop. What no thread has begun is dropped: this takes one image's time.
            # At the end of the interpreter an iterator may be open still; the threads have ended by then.
            if not sys.is_finalizing():
                pool.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        """Say what comes in how many batches."""
        shape = "x".join(map(str, self.shape))
        return f"Stream({self.count} images {shape} of {len(self.classes)} classes in {len(self)} batches)"

    def _begin(self, pool: ThreadPoolExecutor, start: int) -> tuple[np.ndarray, np.ndarray, list[Future[None]]]:
        """Hand the batch from the place ``start`` on to the threads; return images to be filled, and labels."""
        part = slice(start, start + self.batch_size)
        # A new array for each batch: JAX may hold on to the memory of the last one instead of copying it.
        images = np.empty((len(self.names[part]), *self.shape), np.uint8)
        futures = [pool.submit(self._fill, image, name) for image, name in zip(images, self.names[part])]
        return images, self.labels[part].copy(), futures

    def _fill(self, image: UInt8[np.ndarray, "h w c"], name: str) -> None:
        """Decode one file into the place of its image."""
        pixels = _decode_file(self.folder, name, self.size, self.channels, self.fit)
        _images.check_shape(self.folder, self.names[0], self.shape, name, pixels.shape)
        image[...] = pixels


def stream(
    path: str | os.PathLike[str],
    *,
    seed: int | None,
    batch_size: int = 64,
    count: int | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    threads: int | None = None,
) -> Stream:
    """Return an image folder of any size as batches of bytes in a drawn order, decoded while they are consumed.

    The images and labels of `folder_bytes` without its decoded copy on disk: nothing is kept, every pass decodes anew,
    and the first batch comes at once. In memory are a few batches, whatever the size of the folder, and the names of
    its files, which are listed once, here.

    The order is drawn by NumPy, from the seed and the number of images in the folder: the same on every machine. With
    ``count``, the images are those of `subset` with the same seed.

    Args:
        path: folder with one sub-folder per class; see `folder_bytes`. An archive has to be unpacked.
        seed: of the order; None takes the images as they are sorted, by class folder and file name.
        batch_size: number of images of a batch; the last one has what remains.
        count: number of images to take; None, or more than there are: all of them.
        split: see `folder_bytes`, likewise ``classes``, ``size``, ``channels`` and ``fit``.
        classes: likewise.
        size: likewise. None keeps the size, which then must be that of the first image in the drawn order.
        channels: likewise. None keeps what the first image in the drawn order has. Where this or ``size`` is None,
            that image is decoded here, to know the shape.
        fit: likewise.
        threads: number of threads that decode; None: one for each core that the process may use.

    Raises:
        FileNotFoundError: nothing at ``path``, or no image in it.
        ValueError: an archive, a number below one, or what `folder_bytes` refuses in the folders and options. In the
            loop, where its batch is due: an image that is damaged or refused, or of another shape than the first one.
        OSError: in the loop likewise, a file that cannot be opened any more.
    """
    place = Path(path)
    height_width = _images.check_options(place, size, channels, fit)
    if not place.is_dir():
        raise ValueError(f"{place}: expected a folder, got a file; unpack the archive, or read it with folder_bytes")
    threads = _cores() if threads is None else threads
    for option, value in (("batch_size", batch_size), ("count", count), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"expected {option} >= 1, got {value}")
    base, names, labels, all_classes = _images.on_disk(place, split, classes=classes)
    number = min(len(names), count or len(names))
    order = np.arange(number) if seed is None else _subset.draw(len(names), number, seed=seed)
    names, labels = tuple(names[i] for i in order.tolist()), labels[order]
    labels.flags.writeable = False
    if height_width and channels:
        shape = (*height_width, channels)
    else:
        shape = _decode_file(base, names[0], height_width, channels, fit).shape
    return Stream(base, names, labels, all_classes, shape, batch_size, threads, height_width, channels, fit)


def _cores() -> int:
    """Return the number of cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode_file(
    folder: Path, name: str, size: tuple[int, int] | None, channels: int | None, fit: str
) -> UInt8[np.ndarray, "h w c"]:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise OSError(
            f"{folder}: cannot open the image {name!r}, which was there when the folder was listed: {error}. Put it "
            "back, or make the stream anew"
        ) from error
    return _images.decode_image(data, folder, name, size=size, channels=channels, fit=fit)


def _wait(images: np.ndarray, labels: np.ndarray, futures: list[Future[None]]) -> Batch:
    """Return a batch once all of its images are decoded; raise what went wrong with the first that could not be."""
    for each in futures:
        each.result()
    return images, labels
