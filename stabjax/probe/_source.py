"""Images in any form as a stream of batches of one size: arrays, arrays on disk, and whatever yields batches."""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Int

from stabjax._images import Integers, Spatial, check_batch
from stabjax._types import AnyArray
from stabjax.probe._batching import Batches

ImagesLayout: TypeAlias = Literal["channels_last", "channels_first"]
_ONCE = (
    "an iterator can be read only once, give a function that makes a new one, an iterable such as a loader, or an array"
)
_NAMES = ("image", "images")
"""Entries of a dictionary that hold the images, as loaders call them."""


_READ = 64
"""Images read from an array at a time where they are cut anew afterwards."""


class Share(NamedTuple):
    """The images of one step: as many as the step has room for."""

    images: AnyArray
    """``(slots, *image)``."""
    positions: Int[np.ndarray, " slots"]
    """Of each image among all."""
    counted: Bool[np.ndarray, " slots"]
    """False for images that only fill up the step."""


class Window(NamedTuple):
    """The images of several steps, which one program passes one after the other."""

    images: AnyArray
    """``(batches, slots, *image)``."""
    positions: Int[np.ndarray, "batches slots"]
    counted: Bool[np.ndarray, "batches slots"]
    number: int
    """Batches that are there; the others fill up the window."""


def as_window(shares: list[Share], batches: int) -> Window:
    """Put shares together; where there are fewer than ``batches``, the last one fills up, and does not count again."""
    if batches == 1:
        # Nothing is copied, and what lies on a device stays there.
        images, positions, counted = shares[0]
        return Window(images[None], positions[None], counted[None], 1)
    blank = shares[-1]._replace(counted=np.zeros_like(shares[-1].counted))
    filled = shares + [blank] * (batches - len(shares))
    images, positions, counted = (np.stack(arrays) for arrays in zip(*filled, strict=True))
    return Window(images, positions, counted, len(shares))


@dataclass(frozen=True)
class Format:
    """How images come, and what they have to be.

    Attributes:
        layout: Where the channels of a batch are.
        spatial: What the caller says of the spatial axes.
        made_for: What perturbations say of them.
        integers: Which integers will do.
        least: Fewest images that will do.
        vectors: Whether vectors, without any position, will do.
    """

    layout: ImagesLayout
    spatial: Spatial
    made_for: Mapping[str, Spatial]
    integers: Integers
    least: int = 1
    vectors: bool = False

    def read(self, item: Any, *, least: int = 1) -> AnyArray:
        """Return the images of what a loader yields, channels last; raise if it is no batch of images."""
        images = as_array(_images_of(item))
        if self.layout == "channels_first" and hasattr(images, "ndim") and images.ndim > 2:
            images = np.moveaxis(images, 1, -1) if isinstance(images, np.ndarray) else jax.numpy.moveaxis(images, 1, -1)
        self.check(images, least=least)
        return images

    def check(self, images: Any, *, least: int | None = None) -> None:
        """Raise unless this is a batch of images, channels last, and enough of them."""
        least = self.least if least is None else least
        options: dict[str, Any] = {"integers": self.integers, "least": least, "vectors": self.vectors}
        check_batch(images, spatial=self.spatial, made_for=self.made_for, **options)


class ArraySource:
    """All images as one array, in memory or on disk; of one on disk no more than a batch is ever read."""

    def __init__(self, images: Any, form: Format) -> None:
        self.images, self._form = images, form
        if isinstance(images, jax.Array | np.ndarray) and form.layout == "channels_last":
            form.check(images)
        self.number = len(images)
        first = form.read(images[:1])
        self.shape, self.dtype = tuple(first.shape[1:]), first.dtype

    def batches(self) -> Iterator[AnyArray]:
        """Yield the images part by part."""
        for start in range(0, self.number, _READ):
            yield self._form.read(self.images[start : start + _READ])

    def shares(self, batches: Batches, slots: int, first: int = 0) -> Iterator[Share]:
        """Yield the images of each batch from one on."""
        for start, length in list(zip(batches.starts(), batches.lengths(), strict=True))[first:]:
            images = self._form.read(_slice(self.images, int(start), min(slots, self.number - int(start))))
            positions = np.minimum(start + np.arange(slots), self.number - 1)
            yield Share(_fill(images, slots), positions.astype(np.int32), np.arange(slots) < length)


class StreamSource:
    """Images that come batch by batch, of any length each.

    Attributes:
        rereadable: Whether they can be had again, for a second pass.
        shape: Of one image.
        dtype: Of the images.
    """

    def __init__(self, start: Callable[[], Iterator[Any]], form: Format, *, rereadable: bool) -> None:
        self.rereadable = rereadable
        self._start, self._form = start, form
        self._marks: list[tuple[int, Any]] = []
        """Where the iterator stood, as it says itself, before the image of this number."""
        self._head: list[AnyArray] = []
        self._rest: Iterator[AnyArray] | None = self._read()
        first = next(self._rest, None)
        if first is None:
            raise ValueError(f"expected batches of images, got an iterable that yields none: {_ONCE}")
        self._head.append(first)
        self.shape, self.dtype = tuple(first.shape[1:]), first.dtype

    def as_array_up_to(self, images: int) -> ArraySource | None:
        """Return all images as an array if there are no more than so many; None, and nothing lost, if there are."""
        assert self._rest is not None
        while sum(map(len, self._head)) <= images:
            batch = next(self._rest, None)
            if batch is None:
                whole = np.concatenate([np.asarray(batch) for batch in self._head])
                # Their channels are last by now.
                return ArraySource(whole, replace(self._form, layout="channels_last"))
            self._head.append(batch)
        return None

    def batches(self) -> Iterator[AnyArray]:
        """Yield the images as they come, from the first on."""
        if self._rest is None:
            if not self.rereadable:
                raise ValueError(f"expected images that can be read twice, got an iterator that is spent: {_ONCE}")
            self._marks = []
            return self._read()
        head, rest, self._head, self._rest = self._head, self._rest, [], None
        return chain(head, rest)

    def forget(self, images: int) -> None:
        """Forget where the iterator stood before images that are finished, so many."""
        while len(self._marks) > 1 and self._marks[1][0] <= images:
            self._marks.pop(0)

    def position(self, images: int) -> dict[str, Any] | None:
        """Return where the iterator stands before the image of this number; None if it cannot say."""
        self.forget(images)
        if not self._marks:
            return None
        first, state = self._marks[0]
        packed = {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"json": state}
        return {**packed, "skip": images - first, "first": first}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go on from a position."""
        state = base64.b64decode(position["base64"]) if "base64" in position else position["json"]
        self._marks, self._head = [], []
        self._rest = self._read(state, position["first"], position["skip"])

    def _read(self, state: Any = None, first: int = 0, skip: int = 0) -> Iterator[AnyArray]:
        iterator: Any = self._start()
        # Loaders of Grain know where they are, so that nothing has to be read twice.
        knows_itself = hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
        if state is not None:
            iterator.set_state(state)
        expected: Any = None
        for number in count():
            if knows_itself:
                self._marks.append((first, iterator.get_state()))
            try:
                item = next(iterator)
            except StopIteration:
                return
            batch = self._form.read(item, least=0)
            if not len(batch):
                continue
            found = (tuple(batch.shape[1:]), batch.dtype)
            expected = expected or found
            if found != expected:
                raise ValueError(
                    f"expected batches of {expected[1]} images of shape {expected[0]}, as the first one, got "
                    f"{found[1]} images of shape {found[0]} in batch {number}: bring all to one size and type"
                )
            first += len(batch)
            if number == 0 and skip:
                batch = batch[skip:]
            # Batches are held until others have come, and a loader may fill one buffer again and again.
            yield batch.copy() if isinstance(batch, np.ndarray) else batch


def open_source(images: Any, form: Format) -> ArraySource | StreamSource:
    """Return images as a source of batches.

    Args:
        images: An array; anything sliced like one, on disk (`numpy.memmap`, HDF5, Zarr); an iterable of batches; or a
            function without arguments that returns one.
        form: How they come.

    Raises:
        TypeError: If this is none of them, or the images are not of numbers that will do.
        ValueError: If a shape is not that of a batch of images, or nothing comes.
    """
    images = as_array(images)
    if _is_array(images):
        return ArraySource(images, form)
    # A list of arrays may be several inputs, or single images: the check says what to do with it.
    if isinstance(images, tuple | list | dict | str) or not (isinstance(images, Iterable) or callable(images)):
        form.check(images)
    if callable(images) and not isinstance(images, Iterable):
        make: Any = images
        return StreamSource(lambda: iter(make()), form, rereadable=True)
    # An iterator is its own iterable, and is spent by one pass.
    once = isinstance(images, Iterator)
    stream: Any = images
    return StreamSource(lambda: iter(stream), form, rereadable=not once)


def recut(batches: Iterable[AnyArray], size: int) -> Iterator[np.ndarray]:
    """Cut a stream of batches anew, ``size`` images each; the last two are of like length.

    One batch is held back until the next is there, so that what is left over does not stay a batch of a single image.
    """
    held: np.ndarray | None = None
    for batch in _cut(batches, size):
        if held is None:
            held = batch
        elif len(batch) == size:
            yield held
            held = batch
        else:
            both = np.concatenate([held, batch])
            half = -(-len(both) // 2)
            yield both[:half]
            held = both[half:]
    if held is not None:
        yield held


def fill_share(images: np.ndarray, first: int, stride: int, slots: int) -> Share:
    """Return images as those of a step; image ``i`` has the position ``first + stride i``."""
    length = len(images)
    positions = first + stride * np.arange(slots)
    return Share(_fill(images, slots), positions.astype(np.int32), np.arange(slots) < length)


def as_array(x: Any) -> Any:
    """Return arrays of other libraries (torch, TensorFlow) as those of NumPy or JAX; anything else as it is."""
    if isinstance(x, jax.Array | np.ndarray) or not hasattr(x, "__dlpack__"):
        return x
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    try:
        return np.asarray(x)
    except TypeError:
        # A type that NumPy does not have, such as torch.bfloat16.
        return jax.dlpack.from_dlpack(x)


def _images_of(item: Any) -> Any:
    """Return the images of a batch: itself, the first of a pair, or the entry of that name."""
    if isinstance(item, Mapping):
        for name in _NAMES:
            if name in item:
                return item[name]
        raise ValueError(
            f"expected batches as dictionaries with an entry 'image' or 'images', got {sorted(map(str, item))}: give "
            "an iterable of arrays, (batch['pixels'] for batch in loader)"
        )
    return item[0] if isinstance(item, tuple | list) and item else item


def _is_array(x: Any) -> bool:
    return all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__", "__len__"))


def _cut(batches: Iterable[AnyArray], size: int) -> Iterator[np.ndarray]:
    parts: list[np.ndarray] = []
    missing = size
    for batch in batches:
        rest = np.asarray(batch)
        while len(rest):
            parts.append(rest[:missing])
            rest = rest[missing:]
            missing -= len(parts[-1])
            if missing == 0:
                yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                parts, missing = [], size
    if parts:
        yield np.concatenate(parts)


def _slice(images: Any, start: int, length: int) -> Any:
    if isinstance(images, jax.Array):
        # One program for all places; `images[a:b]` would be one for each.
        return jax.lax.dynamic_slice_in_dim(images, start, length)
    return images[start : start + length]


def _fill(images: AnyArray, slots: int) -> AnyArray:
    missing = slots - len(images)
    if not missing:
        return images
    # With an image that is there: what a network makes of it is no surprise, and it has no weight.
    repeated = np.broadcast_to(np.asarray(images[:1]), (missing, *images.shape[1:]))
    return np.concatenate([np.asarray(images), repeated])
