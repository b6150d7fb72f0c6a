"""How layers are compared: sums over all images, or over all pairs of them, whoever reads the images.

`Passes` reads them: inside a program (`_traced_comparison`), or batch by batch from any source (`_source_comparison`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax import features, networks
from stabjax._compilation import quick_jit
from stabjax._numerics import column_sum
from stabjax._types import AnyArray
from stabjax.probe._layers import Layers, MeansOfLayers, Units, UnitsOfLayers
from stabjax.probe._pass import Normalization
from stabjax.similarity import Measure
from stabjax.similarity.streaming import (
    Canonical,
    GramTerms,
    HsicTerms,
    ProductTerms,
    QRFactor,
    UnitProducts,
    WhitenedProducts,
)

T = TypeVar("T")
Strategy = Literal["products", "grams"]


@dataclass(frozen=True)
class Comparison:
    """Hold the arguments of `stabjax.probe.similarity` that say what is to be done with the images."""

    measure: Measure
    units: Units
    select: features.Select
    batch_size: int
    memory: float
    confidence: float
    normalization: Normalization

    @property
    def debiased(self) -> bool:
        """Tell whether HSIC is debiased."""
        return self.measure == "cka_debiased"


class UnitBatch(NamedTuple):
    """The units of a batch of images, in both networks."""

    start: Int[AnyArray, ""]
    """Number of the first image; those that only fill a batch are numbered too."""
    sides: tuple[UnitsOfLayers, ...]
    """Of each network; one that is compared with itself runs once."""
    counted: Bool[Array, " size"]
    """False for images that are not finite, or fill up the batch."""

    @property
    def x(self) -> UnitsOfLayers:
        """Return the units of the first network."""
        return self.sides[0]

    @property
    def y(self) -> UnitsOfLayers:
        """Return the units of the second one."""
        return self.sides[-1]


class Means(NamedTuple):
    """Accumulate sums of the units of each network; a frozen pytree."""

    n: Array
    total: tuple[MeansOfLayers, ...]

    @classmethod
    def init(cls, layers: tuple[Layers, ...]) -> "Means":
        """Return the sums of no units."""
        return cls(jnp.zeros((), int), tuple(tuple(map(jnp.zeros, each.sizes, each.dtypes)) for each in layers))

    def update(self, batch: UnitBatch) -> "Means":
        """Add a batch."""
        total = jax.tree.map(lambda total, x: total + column_sum(x), self.total, batch.sides)
        return Means(self.n + jnp.sum(batch.counted), total)

    def merge(self, other: "Means") -> "Means":
        """Join two streams."""
        return jax.tree.map(jnp.add, self, other)

    def finish(self) -> tuple[MeansOfLayers, ...]:
        """Return the means of every layer."""
        return jax.tree.map(lambda total: total / jnp.maximum(self.n, 1).astype(total.dtype), self.total)


UpdatePairs: TypeAlias = Callable[[GramTerms, UnitBatch, UnitBatch, Any], GramTerms]
"""``update(terms, rows, columns, mirror)``; ``mirror``: whether the block stands for its transpose too."""


class Passes(ABC):
    """Pass all images through both networks, as often as it is asked for."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layers, ...]:
        """Return what is compared of each network."""

    @property
    @abstractmethod
    def images(self) -> int | None:
        """Return how many images there are; of a stream None before the first pass."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Return how many images there are, with those that only fill batches; known after the first pass."""

    @abstractmethod
    def accumulate(self, state: T, update: Callable[[T, UnitBatch], T]) -> T:
        """Pass all images once, and update a pytree of accumulators of `stabjax.similarity.streaming` with each batch.

        Args:
            state: Before the first batch.
            update: A function of a module, so that it compiles once.
        """

    @abstractmethod
    def accumulate_pairs(self, update: UpdatePairs) -> GramTerms:
        """Update terms with every pair of batches, a batch with itself among them, of units less their mean."""


def trace_pair(
    pair: Sequence[networks.Network], images: Sequence[jax.ShapeDtypeStruct], size: int, *, remedy: str | None
) -> tuple[features.Traced, ...]:
    """Trace each network on a batch of so many of its images.

    Args:
        pair: The networks.
        images: Shape and dtype of an image of each.
        size: Images of a batch.
        remedy: What to do otherwise, for the error if rows depend on each other; None where all images are one batch.
    """

    def trace(size: int) -> tuple[features.Traced, ...]:
        batches = (jax.ShapeDtypeStruct((size, *image.shape), image.dtype) for image in images)
        return tuple(features.trace(h, batch) for h, batch in zip(pair, batches, strict=True))

    traced = trace(size)
    if remedy is not None:
        for h in traced if size > 1 else trace(2):  # a row alone does not show what it depends on
            h.check_rows(otherwise=remedy)
    return traced


def hsic_terms(passes: Passes, strategy: Strategy, debiased: bool) -> HsicTerms:
    """Return what each image adds to HSIC. Both strategies give the same, up to a factor per layer."""
    if strategy == "grams":
        return _finish(passes.accumulate_pairs(_update_grams), debiased=debiased)
    x, y = passes.layers[0], passes.layers[-1]
    products = UnitProducts.init(x.sizes, y.sizes, dtype=dtype_of(passes.layers))
    # The whole first pass, before the second one begins: the terms of an image need the sums over all.
    products = passes.accumulate(products, _update_products)
    return _finish(passes.accumulate(_init_terms(products, room=passes.room), _update_terms), debiased=debiased)


def correlations(passes: Passes, measure: Canonical) -> Float[Array, "x y"]:
    """Return the canonical similarity of every pair of layers."""
    empty = tuple(
        tuple(QRFactor.init(size, dtype=dtype) for size, dtype in zip(each.sizes, each.dtypes, strict=True))
        for each in passes.layers
    )
    factors = passes.accumulate(empty, _update_factors)
    check_images(passes, measure)
    bases = _bases(factors, measure=measure)
    # One network with itself has one list of bases: first and last are the same.
    return _correlations(
        passes.accumulate(WhitenedProducts.init(bases[0], bases[-1]), _update_products), measure=measure
    )


MOST_UNITS = 4096
"""Of both networks, that are multiplied with each other where the number of images is not known."""


def choose_strategy(layers: tuple[Layers, ...], images: int | None, memory: float = math.inf) -> Strategy:
    """Choose products of all units with each other or Gram matrices of the images, whichever are fewer numbers.

    Args:
        layers: Of each network.
        images: How many; None if that is not known.
        memory: GiB that the products may take. Gram matrices are never whole.
    """
    first, second = layers[0], layers[-1]
    numbers = sum(first.sizes) * sum(second.sizes) + sum(size**2 for each in layers for size in each.sizes)
    few = sum(first.sizes) + sum(second.sizes) < (MOST_UNITS if images is None else images)
    return "products" if few and numbers * dtype_of(layers).itemsize <= memory * 2**30 else "grams"


def least_images(measure: Measure) -> int:
    """Return how many images a measure takes at least."""
    return 4 if measure == "cka_debiased" else 2


def check_images(passes: Passes, measure: Measure) -> None:
    """Raise if there are too few images for a measure, as soon as their number is known."""
    n, least = passes.images, least_images(measure)
    if n is None:
        return
    if n < least:
        raise ValueError(f"expected at least {least} images for {measure!r}, got {n}")
    if measure not in get_args(Canonical):
        return
    for each in passes.layers:
        size, name = max(zip(each.sizes, each.names, strict=True), key=lambda pair: pair[0])
        if size >= n:
            raise ValueError(
                f"expected fewer units than images for {measure!r}, got {size} units at {name!r} and {n} images: any "
                "two such layers have correlations of 1. Take units='average', leave it out with select, take more "
                "images, or measure='cka_debiased'"
            )


def dtype_of(layers: tuple[Layers, ...]) -> Any:
    """Return the dtype in which sums over several layers are taken."""
    return jnp.result_type(*(dtype for each in layers for dtype in each.dtypes))


def update_means(means: Means, batch: UnitBatch) -> Means:
    """Add a batch to the sums of units."""
    return means.update(batch)


def _update_products(products: Any, batch: UnitBatch) -> Any:
    return products.update(batch.x, batch.y, batch.counted)


def _update_terms(terms: ProductTerms, batch: UnitBatch) -> ProductTerms:
    return terms.update(batch.start, batch.x, batch.y, batch.counted)


def _update_factors(factors: Any, batch: UnitBatch) -> Any:
    return tuple(
        tuple(factor.update(x, batch.counted) for factor, x in zip(of_network, units, strict=True))
        for of_network, units in zip(factors, batch.sides, strict=True)
    )


def _update_grams(terms: GramTerms, rows: UnitBatch, columns: UnitBatch, mirror: Any) -> GramTerms:
    of_rows, of_columns = ((each.start, each.x, each.y, each.counted) for each in (rows, columns))
    return terms.update(*of_rows, *of_columns, mirror=mirror)


def empty_terms(layers: tuple[Layers, ...], room: int) -> GramTerms:
    """Return the terms of no pair, with room for so many images."""
    return GramTerms.init(len(layers[0].names), len(layers[-1].names), room, dtype=dtype_of(layers))


def center(batch: UnitBatch, means: tuple[MeansOfLayers, ...]) -> UnitBatch:
    """Return units less their mean, zero still for images that do not count."""
    counted = batch.counted[:, None]
    return batch._replace(sides=jax.tree.map(lambda x, m: jnp.where(counted, x - m[None], 0), batch.sides, means))


def merge(one: T, other: T) -> T:
    """Merge two pytrees of accumulators."""
    return jax.tree.map(lambda x, y: x.merge(y), one, other, is_leaf=lambda x: hasattr(x, "merge"))


@quick_jit(level=0, static_argnames=("room",))
def _init_terms(products: UnitProducts, *, room: int) -> ProductTerms:
    return ProductTerms.init(products, room)


@quick_jit(level=0, static_argnames=("debiased",))
def _finish(terms: ProductTerms | GramTerms, *, debiased: bool) -> HsicTerms:
    return terms.finish(debiased=debiased)


@quick_jit(level=0, static_argnames=("measure",))
def _correlations(products: WhitenedProducts, *, measure: Canonical) -> Array:
    return products.finish(measure)


@quick_jit(level=0, static_argnames=("measure",))
def _bases(factors: Any, *, measure: Canonical) -> Any:
    # SVCCA leaves out directions of little variance, so units count by theirs.
    return tuple(tuple(factor.finish(standardize=measure != "svcca") for factor in each) for each in factors)


@partial(jax.jit, static_argnames=("debiased", "confidence"))
def alignment(terms: HsicTerms, *, debiased: bool, confidence: float) -> tuple[Array, Array]:
    """Return CKA of every pair of layers, and its interval."""
    return terms.alignment(debiased=debiased, confidence=confidence)


def compare(passes: Passes, strategy: Strategy, asked: Comparison) -> tuple[Array, Array]:
    """Return the similarity of every pair of layers, and its interval; NaN for measures that have none."""
    check_images(passes, asked.measure)
    if asked.measure in ("cka", "cka_debiased"):
        terms = hsic_terms(passes, strategy, debiased=asked.debiased)
        check_images(passes, asked.measure)
        return alignment(terms, debiased=asked.debiased, confidence=asked.confidence)
    matrix = correlations(passes, asked.measure)
    return matrix, jnp.full((*matrix.shape, 2), jnp.nan, matrix.dtype)
