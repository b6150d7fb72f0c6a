"""The scale-detection task (Tomasini et al. 2022): two lit pixels on a dark image, to be told near from far.

A point is a row of pixel indices in the order of the axes, a pair of points is ``(2, ndim)``. All unordered pairs of
distinct pixels are numbered, and the numbers are visited in a random order that is computed, not stored: drawing
without replacement, disjoint sets and classes of equal size cost no memory, whatever the size of the image.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Integer, UInt64

from stabjax._arguments import as_key
from stabjax._images import check_image
from stabjax._types import AnyArray, PRNGKey, Scalar
from stabjax.data._pairs import ROUNDS, pair, shuffled

__all__ = [
    "LocalTranslation",
    "ScaleDetection",
    "ScaleTask",
    "label_changes",
    "lit_points",
    "scale_detection",
    "scale_images",
    "scale_labels",
    "translate_points",
    "translation_steps",
]

_FIRST, _LARGEST = 1 << 12, 1 << 20  # pairs looked at in the first step, and in one step at most
_LIMIT = 1 << 27  # pairs looked at in all, before a label counts as too rare


@jax.tree_util.register_static
@dataclass(frozen=True)
class ScaleTask:
    """What decides the label of a pair of points. Use one of the constructors.

    Attributes:
        shape: sides of the image in pixels, ``(n,)`` or ``(d, d)``.
        rule: "distance", or "cell": whether both points lie in the same cell.
        near: for "distance", pairs closer than this are one class, in pixels.
        far: for "distance", pairs at least this far apart are the other; those in between have label 0.
        norm: "L2" or "Linf".
        periodic: whether the distance goes round the border.
        cell: for "cell", side of a cell in pixels.
        positive: the class with label +1, "near" or "far"; "near" also means the same cell.
    """

    shape: tuple[int, ...]
    rule: str = "distance"
    near: float | int = 0.0
    far: float | int = 0.0
    norm: str = "L2"
    periodic: bool = False
    cell: int = 1
    positive: str = "far"

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1 or self.pixels < 2:
            raise ValueError(f"expected an image of two pixels or more, got shape {self.shape}")
        if self.pixels > 1 << 32:
            raise ValueError(f"expected at most 2^32 pixels, got shape {self.shape}")
        if self.rule not in ("distance", "cell") or self.norm not in ("L2", "Linf"):
            raise ValueError(f"expected rule 'distance' or 'cell' and norm 'L2' or 'Linf', got {self}")
        if self.positive not in ("near", "far"):
            raise ValueError(f"expected positive 'near' or 'far', got {self.positive!r}")
        if self.cell < 1 or self.near > self.far:
            raise ValueError(f"expected cell >= 1 and near <= far, got {self}")

    @classmethod
    def line(cls, *, size: int = 128, xi: float | int = 32, gap: float | int = 0) -> "ScaleTask":
        """Return task 1, on a line: +1 if the periodic distance is below ``xi - gap``, -1 if at least ``xi + gap``."""
        return cls((size,), near=xi - gap, far=xi + gap, periodic=True, positive="near")

    @classmethod
    def segments(cls, *, size: int = 128, xi: int = 32) -> "ScaleTask":
        """Return task 2 on a line: +1 if both points lie in the same segment ``r // xi``, else -1."""
        return cls((size,), rule="cell", cell=xi, positive="near")

    @classmethod
    def plane(
        cls,
        *,
        size: int = 28,
        xi: float | int | None = None,
        gap: float | int = 2,
        norm: str = "L2",
        periodic: bool = False,
    ) -> "ScaleTask":
        """Return the task on a square: -1 if the distance is below ``xi - gap/2``, +1 if at least ``xi + gap/2``.

        ``xi`` is half a side unless it is given.
        """
        middle = size / 2 if xi is None else xi
        return cls((size, size), near=middle - gap / 2, far=middle + gap / 2, norm=norm, periodic=periodic)

    @classmethod
    def quadrants(cls, *, size: int = 28) -> "ScaleTask":
        """Return the task on a square: +1 if both points lie in the same quadrant, else -1.

        Of an odd side the first half is larger.
        """
        return cls((size, size), rule="cell", cell=(size + 1) // 2, positive="near")

    @property
    def pixels(self) -> int:
        """Return the number of pixels of the image."""
        return math.prod(self.shape)

    @property
    def pairs(self) -> int:
        """Return the number of unordered pairs of distinct pixels."""
        return self.pixels * (self.pixels - 1) // 2

    @property
    def value(self) -> float:
        """Return the value of a lit pixel as published: ``sqrt(n/2)`` on a line, half the pixels in a plane."""
        return math.sqrt(self.pixels / 2) if len(self.shape) == 1 else self.pixels / 2


PLANE = ScaleTask.plane()


@partial(jax.tree_util.register_dataclass, data_fields=["images", "labels", "points"], meta_fields=["task"])
@dataclass(frozen=True, eq=False)
class ScaleDetection:
    """A set of images of the task.

    Attributes:
        images: ``(n, *shape, 1)`` float32.
        labels: ``(n,)`` int32, +1 or -1; ``(labels + 1) // 2`` are classes 0 and 1.
        points: ``(n, 2, ndim)`` int32, the lit pixels.
        task: what decided the labels.
    """

    images: Float[Array, "n *shape 1"]
    labels: Int[Array, " n"]
    points: Int[Array, "n 2 ndim"]
    task: ScaleTask


def scale_detection(
    key: PRNGKey,
    count: int,
    *,
    task: ScaleTask = PLANE,
    skip: int = 0,
    balanced: bool = True,
    noise: float | int = 0.0,
) -> ScaleDetection:
    """Draw images of the scale-detection task, no pair of pixels twice.

    The key puts all pairs that have a label in an order, and the set is its part ``skip, ..., skip + count - 1``. So
    sets of the same key and task are disjoint where these parts are: training and test set are
    ``scale_detection(key, 1024)`` and ``scale_detection(key, 4096, skip=1024)``.

    The draw runs on the host, in exact integers: it cannot be traced.

    Args:
        key: of the order, and of the noise.
        count: number of images.
        task: image and rule of the labels.
        skip: number of images of the same key that are left out in front.
        balanced: labels alternate, +1 first in the order of the key; otherwise they come as often as they are.
        noise: standard deviation of Gaussian noise on every pixel.

    Raises:
        ValueError: fewer pairs of a label exist than are asked for.
        TypeError: a traced key.
    """
    if isinstance(key, Tracer):
        raise TypeError("scale_detection draws on the host and cannot be traced; call it outside jit and vmap")
    if count < 1 or skip < 0:
        raise ValueError(f"expected count >= 1 and skip >= 0, got {count} and {skip}")
    order_key, noise_key = jax.random.split(as_key(key))
    # Two words of 32 bits for each round, the high one and the low one: the keys of 64 bits that JAX has only with x64.
    words = np.asarray(jax.random.bits(order_key, (2, ROUNDS), np.uint32)).astype(np.uint64)
    chosen = _first(task, words[0] << np.uint64(32) | words[1], skip + count, balanced)[skip:]
    points = _points(pair(chosen), task)
    labels = jnp.asarray(scale_labels(points, task))
    images = jnp.asarray(scale_images(points, task))
    if noise:
        # One key per place in the order: a set is part of any longer one, noise included.
        keys = jax.vmap(partial(jax.random.fold_in, noise_key))(jnp.arange(skip, skip + count, dtype=jnp.uint32))
        images += noise * jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], images.dtype))(keys)
    return ScaleDetection(images, labels, jnp.asarray(points, jnp.int32), task)


def scale_labels(points: Integer[AnyArray, "*batch 2 ndim"], task: ScaleTask) -> Int[AnyArray, "*batch"]:
    """Return the labels +1, -1, and 0 in the gap, of pairs of points; NumPy in, NumPy out.

    Exact in integers: a squared distance is compared with the next integer above the squared threshold.
    """
    xp = jnp if isinstance(points, jax.Array) else np
    if points.shape[-1] != len(task.shape):
        raise ValueError(f"expected points with {len(task.shape)} coordinates, got shape {points.shape}")
    if task.rule == "cell":
        cells = points // task.cell  # (*batch, 2, ndim)
        near = xp.all(cells[..., 0, :] == cells[..., 1, :], axis=-1)
        far = ~near
    else:
        step = xp.abs(points[..., 0, :] - points[..., 1, :])  # (*batch, ndim), in whole pixels
        if task.periodic:
            step = xp.stack([xp.minimum(step[..., i], n - step[..., i]) for i, n in enumerate(task.shape)], axis=-1)
        size = xp.max(step, axis=-1) if task.norm == "Linf" else xp.sum(step * step, axis=-1)
        near, far = size < _threshold(task.near, task.norm), size >= _threshold(task.far, task.norm)
    sign = 1 if task.positive == "near" else -1
    return sign * (near.astype(np.int32) - far.astype(np.int32))


def scale_images(
    points: Integer[AnyArray, "*batch 2 ndim"], task: ScaleTask, *, value: Scalar | None = None
) -> Float[AnyArray, "..."]:
    """Return images ``(*batch, *shape, 1)`` float32 with two lit pixels each; NumPy in, NumPy out.

    Where both points fall on one pixel they add up.

    Args:
        points: pairs of pixel indices.
        task: gives the shape of the image.
        value: of a lit pixel; None is ``task.value``.
    """
    xp = jnp if isinstance(points, jax.Array) else np
    lit = xp.asarray(task.value if value is None else value, np.float32)
    # Pixel (i, j) is number i * width + j: the stride of an axis is the product of the sides behind it.
    strides = xp.asarray([math.prod(task.shape[i + 1 :]) for i in range(len(task.shape))], points.dtype)
    flat = xp.sum(points * strides.reshape((1,) * (points.ndim - 1) + (-1,)), axis=-1).reshape(-1, 2)
    rows = xp.arange(flat.shape[0]).reshape(-1, 1)
    dark = xp.zeros((flat.shape[0], task.pixels), np.float32)
    if isinstance(dark, np.ndarray):
        np.add.at(dark, (rows, flat), lit)  # += would light a pixel once where both points fall on it
        images = dark
    else:
        images = dark.at[rows, flat].add(lit)
    return images.reshape(*points.shape[:-2], *task.shape, 1)


def translation_steps(key: PRNGKey, shape: tuple[int, ...], *, ndim: int = 2) -> Int[Array, "*shape ndim"]:
    """Draw random steps of one pixel, ``(*shape, ndim)``: a unit vector in a random direction, rounded, never zero.

    On a line a step is -1 or +1.
    """
    key = as_key(key)
    if ndim == 1:
        return jax.random.rademacher(key, (*shape, 1), jnp.int32)
    if ndim != 2:
        raise ValueError(f"expected one or two dimensions, got {ndim}")
    # Of sine and cosine one is at least 0.707 in size, and rounds to 1: no step is zero.
    angle = jax.random.uniform(key, shape, maxval=2 * math.pi)
    return jnp.round(jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)).astype(jnp.int32)


def translate_points(
    points: Integer[AnyArray, "*batch 2 ndim"], steps: Integer[AnyArray, "*batch 2 ndim"], task: ScaleTask
) -> Int[Array, "*batch 2 ndim"]:
    """Move points by ``steps``, as the study does.

    In a plane a point stops at the border. On a line a step off the end is canceled, and so is one into another
    segment where those decide the label.
    """
    points = jnp.asarray(points)
    inside = jnp.stack([jnp.clip(points[..., i] + steps[..., i], 0, n - 1) for i, n in enumerate(task.shape)], axis=-1)
    if len(task.shape) == 1 and task.rule == "cell":
        inside = jnp.where(inside // task.cell == points // task.cell, inside, points)
    return inside


def label_changes(
    points: Integer[AnyArray, "*batch 2 ndim"], moved: Integer[AnyArray, "*batch 2 ndim"], task: ScaleTask
) -> Bool[AnyArray, "*batch"]:
    """Return the pairs whose label the move has changed; falling into the gap, where there is no label, counts."""
    return scale_labels(points, task) != scale_labels(moved, task)


@partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["task"])
@dataclass(frozen=True, eq=False)
class LocalTranslation:
    """The deformation of the task, as a perturbation of one image: each lit pixel moves by a random step.

    The two brightest pixels are taken for the lit ones. Background noise stays where it is.

    Attributes:
        task: gives the shape of the image, and which moves are canceled.
        value: of a lit pixel; None is ``task.value``. To be set where images were scaled.
    """

    task: ScaleTask
    value: Scalar | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        """Return the sides of the images it is for."""
        return self.task.shape

    def __call__(self, key: PRNGKey, image: Float[AnyArray, "*shape 1"]) -> Float[Array, "*shape 1"]:
        """Return the image with its two points moved, same shape and dtype."""
        check_image(image, spatial=self.spatial, made_for="task")
        if image.shape[-1] != 1:
            raise ValueError(f"expected an image of one channel, got shape {image.shape}: give those of the task")
        points = lit_points(image)
        moved = translate_points(points, translation_steps(key, (2,), ndim=points.shape[-1]), self.task)
        lit = jnp.asarray(self.task.value if self.value is None else self.value, image.dtype)
        corner = jnp.zeros(2, points.dtype)  # the channel of both points
        return jnp.asarray(image).at[(*points.T, corner)].add(-lit).at[(*moved.T, corner)].add(lit)


def lit_points(image: Float[AnyArray, "*shape 1"]) -> Int[Array, "2 ndim"]:
    """Return the two brightest pixels of an image."""
    _, flat = jax.lax.top_k(jnp.ravel(jnp.asarray(image)), 2)
    return jnp.stack(jnp.unravel_index(flat, image.shape[:-1]), axis=-1).astype(jnp.int32)


def _threshold(distance: float | int, norm: str) -> int:
    """Return the smallest integer that the (squared) distance of two pixels must reach to be at least ``distance``."""
    # Exact: a float is a fraction, and so is its square. A whole number is below a fraction if it is below its ceiling.
    exact = max(Fraction(distance), Fraction(0))
    return math.ceil(exact if norm == "Linf" else exact * exact)


def _points(pairs: np.ndarray, task: ScaleTask) -> np.ndarray:
    return np.stack(np.unravel_index(pairs, task.shape), axis=-1)


def _first(task: ScaleTask, round_keys: UInt64[np.ndarray, " rounds"], count: int, balanced: bool) -> np.ndarray:
    """Number the first ``count`` pairs with a label, in the order of the key; alternating if ``balanced``."""
    wanted = {1: (count + 1) // 2, -1: count // 2} if balanced else {0: count}  # 0: any label
    found: dict[int, list[np.ndarray]] = {label: [] for label in wanted}
    have = dict.fromkeys(wanted, 0)
    start, chunk = 0, _FIRST
    while any(have[label] < wanted[label] for label in wanted):
        stop = min(start + chunk, task.pairs)
        if start == stop or start >= _LIMIT:
            names = {1: "label +1", -1: "label -1", 0: "any label"}
            short = "; ".join(f"{wanted[k]} of {names[k]} are asked for, {have[k]} found" for k in wanted)
            raise ValueError(
                f"too few pairs of points: {short} among {start:,} of {task.pairs:,}; "
                f"ask for fewer images or change the task {task}"
            )
        numbers = shuffled(np.arange(start, stop, dtype=np.uint64), task.pairs, round_keys).astype(np.int64)
        labels = scale_labels(_points(pair(numbers), task), task)
        for label in wanted:
            part = numbers[labels == label] if label else numbers[labels != 0]
            found[label].append(part)
            have[label] += len(part)
        start, chunk = stop, min(2 * chunk, _LARGEST)  # where the steps end changes nothing in the set
    if not balanced:
        return np.concatenate(found[0])[:count]
    order = np.empty(count, np.int64)
    # +1, -1, +1, ...: any part of the set is as balanced, and the first ones are those of any longer set.
    order[0::2] = np.concatenate(found[1])[: wanted[1]]
    order[1::2] = np.concatenate(found[-1])[: wanted[-1]]
    return order
