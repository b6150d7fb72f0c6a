"""`similarity`: what is asked for, checked and handed to the passes over the images."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Float

from stabjax import features
from stabjax._arguments import as_integer
from stabjax._images import Spatial, check_batch
from stabjax._numerics import permit_nan
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Images
from stabjax.probe._batching import divide_into_tiles
from stabjax.probe._compare import choose_strategy, compare
from stabjax.probe._layers import Layers, Units, layers_of
from stabjax.similarity import Measure, Similarity
from stabjax.similarity.streaming import Canonical


@permit_nan()
def similarity(
    f: Any,
    g: Any,
    images: Images,
    *,
    others: Float[AnyArray, " batch *other_spatial other_channels"] | None = None,
    measure: Measure = "cka",
    units: Units = "all",
    batch_size: int = 128,
    memory: float | int = 1.0,
    select: features.Select = None,
    confidence: float = 0.95,
    spatial: Spatial = None,
) -> Similarity:
    """Measure how similar every layer of one network is to every layer of another, or of itself on other images.

    Row ``k``, column ``m`` compares what operation ``k`` of ``f`` and operation ``m`` of ``g`` give for the same
    images. Two seeds of an architecture::

        result = sj.probe.similarity(one, two, images, measure="cka_debiased", select=("conv", "dense"))
        print(result)                   # a table; result.matrix, result.interval are arrays

    One network on clean and on deformed images::

        (deformed,), _ = sj.probe.perturbed(images, key=key, deformation=deformation)
        result = sj.probe.similarity(network, network, images, others=deformed)

    Activations are not kept: the images pass in batches, and only sums over them remain. CKA is that of all images,
    never an average over batches. It comes from products of all units with each other, in two passes, if that is fewer
    numbers than a Gram matrix of the images; otherwise from a Gram matrix of each layer, ``(n, n)``, for which the
    activations of as many images as fit into ``memory`` are held at a time, and those of later ones computed again:
    each image passes ``(tiles + 1) / 2`` times, where there are ``tiles`` such parts.

    Intervals are over images, by the infinitesimal jackknife: for another set of so many images from the same source.
    They do not show the bias of plain CKA, which is large for wide layers and few images: two untrained networks have
    a plain CKA near 1, and a debiased one that shows what they share. Canonical correlations have no interval: with so
    few images per unit their error is mostly bias.

    Under `jit` and `vmap` (over stacked networks) it works as outside; on the CPU a loop, `jax.lax.map`, over stacked
    networks is faster.

    Args:
        f: The first network: what `stabjax.networks.wrap` returns, or anything it takes. Each row of its output must
            depend on the same row of its input alone; a network that normalizes by the statistics of its batch is
            compared only if all images pass as one batch.
        g: The second; ``f`` itself runs once.
        images: Images as ``f`` takes them (normalized), ``(n, *spatial, channels)``, at least two (four if debiased).
            An image with a pixel that is not finite is left out, and ``measured`` says so.
        others: What ``g`` sees instead, image by image: deformed, noisy, or normalized otherwise.
        measure: ``"cka"``, linear (Kornblith et al. 2019, arXiv 1905.00414); ``"cka_debiased"``, by unbiased HSIC (Song
            et al. 2012); ``"cca"``, mean canonical correlation; ``"svcca"`` of the directions that explain 99 % of the
            variance (Raghu et al. 2017, arXiv 1706.05806); ``"pwcca"``, weighted by the layers of ``f`` (Morcos et al.
            2018, arXiv 1806.05759). They are those of `stabjax.similarity`.
        units: ``"all"``: every channel at every position is a unit; ``"average"``: channels averaged over positions.
        batch_size: Largest number of images that pass together. Results differ by rounding only.
        memory: GiB of activations, of both networks, that may be held at a time. More memory, fewer passes.
        select: Which operations of both: kinds, names, patterns of names or a predicate, as in
            `stabjax.features.capture`. A predicate can name operations that only one of them has.
        confidence: Probability that an interval covers.
        spatial: Number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        The result. Where a similarity is undefined (a layer does not vary, or returns NaN) it is NaN and ``valid`` is
        False, for that layer alone.

    Raises:
        TypeError: if the images are not floating-point.
        ValueError: for a wrong shape or option; if rows of a network depend on each other and ``batch_size < n``; if
            an activation does not have its batch in front; for canonical correlations of as many units as images.
    """
    same = g is f and others is None
    both = (images,) if same else (images, images if others is None else others)
    for x in both:
        check_batch(x, spatial=spatial, vectors=True)
    _check(both, measure, units, batch_size, memory, confidence)
    select = features.as_select(select)
    n = len(images)

    def trace(size: int) -> tuple[features.Traced, ...]:
        batches = (jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for x in both)
        return tuple(features.trace(h, batch) for h, batch in zip((f, g), batches))

    # The batch that passes is known if the activations of all images can be held, and seldom is it another one.
    tiles = divide_into_tiles(n, batch_size)
    traced = trace(tiles.size)
    # Names and numbers of units depend on no batch size: they tell what one image takes.
    layers = tuple(layers_of(h, select, units) for h in traced)
    if not tiles.is_one_batch:
        for h in traced if tiles.size > 1 else trace(2):  # a row alone does not show what it depends on
            h.check_rows(otherwise=f", or pass all images as one batch, batch_size={n}")
    _check_canonical(layers, n, measure)
    # Of both networks: nothing keeps the compiler from running them side by side.
    bytes_of_image = sum(sum(each.sizes) for each in layers) * jnp.zeros(()).dtype.itemsize
    # So many images as the memory holds; only Gram matrices need it, the other ways hold one batch.
    tiles = divide_into_tiles(n, batch_size, int(memory * 2**30 / bytes_of_image))
    if tiles.size != traced[0].batch.shape[0]:
        traced = trace(tiles.size)
    return compare(
        traced,
        without_explicit_axes(tuple(map(jnp.asarray, both))),
        layers=layers,
        measure=measure,
        strategy=choose_strategy(layers, n),
        tiles=tiles,
        units=units,
        select=select,
        confidence=float(confidence),
    )


def _check(both: tuple[Any, ...], measure: str, units: str, batch_size: int, memory: float, confidence: float) -> None:
    sizes = {len(x) for x in both}
    if len(sizes) > 1:
        raise ValueError(f"expected as many others as images, image by image, got {len(both[1])} and {len(both[0])}")
    if measure not in get_args(Measure):
        raise ValueError(f"expected measure to be one of {get_args(Measure)}, got {measure!r}")
    if units not in get_args(Units):
        raise ValueError(f"expected units to be one of {get_args(Units)}, got {units!r}")
    least = 4 if measure == "cka_debiased" else 2
    if len(both[0]) < least:
        raise ValueError(f"expected at least {least} images for {measure!r}, got {len(both[0])}")
    if as_integer("batch_size", batch_size) < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    if not memory > 0:
        raise ValueError(f"expected memory > 0 GiB, got {memory}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, got {confidence}")


def _check_canonical(layers: tuple[Layers, ...], n: int, measure: str) -> None:
    if measure not in get_args(Canonical):
        return
    for each in layers:
        size, name = max(zip(each.sizes, each.names, strict=True), key=lambda pair: pair[0])
        if size >= n:
            raise ValueError(
                f"expected fewer units than images for {measure!r}, got {size} units at {name!r} and {n} images: any "
                "two such layers have correlations of 1. Take units='average', leave it out with select, take more "
                "images, or measure='cka_debiased'"
            )
