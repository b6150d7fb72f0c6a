"""`similarity`: what is asked for, checked and handed to the passes over the images."""

import math
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stabjax import features, networks
from stabjax._arguments import as_integer
from stabjax._images import Spatial
from stabjax._numerics import permit_nan
from stabjax._pixels import Statistics, normalize_channels
from stabjax._sharding import is_traced, without_explicit_axes
from stabjax.probe._comparison import Comparison, least_images
from stabjax.probe._devices import find_devices
from stabjax.probe._effort import count_pixels, routes_for
from stabjax.probe._layers import Units
from stabjax.probe._pass import Normalization
from stabjax.probe._run import as_normalization, check_layout, check_within_program, on_host
from stabjax.probe._source import ArraySource, Format, ImagesLayout, StreamSource, open_source
from stabjax.probe._source_comparison import compare_sources
from stabjax.probe._traced_comparison import compare_arrays
from stabjax.similarity import Measure, Similarity


@permit_nan()
def similarity(
    f: Any,
    g: Any,
    images: Any,
    *,
    others: Any = None,
    measure: Measure = "cka",
    units: Units = "all",
    batch_size: int = 128,
    memory: float | int = 1.0,
    select: features.Select = None,
    confidence: float = 0.95,
    normalize: Statistics | tuple[Any, Any] | None = None,
    images_layout: ImagesLayout = "channels_last",
    spatial: Spatial = None,
    mesh: Mesh | None = None,
    path: str | PathLike[str] | None = None,
    progress: bool | None = None,
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
    numbers than a Gram matrix of the images; otherwise from Gram matrices of each layer, block by block, for which the
    activations of as many images as fit into ``memory`` are held at a time, and those of later ones computed again:
    each image passes ``(tiles + 1) / 2`` times, where there are ``tiles`` such parts, and once more for the mean if
    ``tiles > 1``. No Gram matrix is ever whole: what is kept of an image are a few numbers for each pair of layers.

    Intervals are over images, by the infinitesimal jackknife: for another set of so many images from the same source.
    They do not show the bias of plain CKA, which is large for wide layers and few images: two untrained networks have
    a plain CKA near 1, and a debiased one that shows what they share. Canonical correlations have no interval: with so
    few images per unit their error is mostly bias.

    Under `jit` and `vmap` (over stacked networks) it works as outside, for arrays; on the CPU a loop, `jax.lax.map`,
    over stacked networks is faster. Gradients need ``memory`` for the activations of all images.

    Args:
        f: The first network: what `stabjax.networks.wrap` returns, or anything it takes. Each row of its output must
            depend on the same row of its input alone; a network that normalizes by the statistics of its batch is
            compared only if all images pass as one batch.
        g: The second; ``f`` itself runs once.
        images: Images as ``f`` takes them (normalized), ``(n, *spatial, channels)``, at least two (four if debiased):
            an array, an array on disk, an iterable of batches that can be had again (a loader), or a function that
            returns one; see `run`. An iterator is refused: it can be read only once. An image with a pixel that is not
            finite is left out, and ``measured`` says so (in a network with batch statistics a blank image stands in its
            place). In several processes each gives images of its own.
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
        normalize: Mean and deviation of each channel, of pixels in [0, 1], if images still have to be normalized; see
            `run`.
        images_layout: Where the channels of a batch are; ``"channels_first"`` as PyTorch has them.
        spatial: Number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.
        mesh: Devices over which the images are split; see `run`.
        path: A folder in which a long comparison is kept, so that one that is killed goes on; see `run`.
        progress: Whether to show a bar of the images that have passed; by default on a terminal, once it takes some
            seconds.

    Returns:
        The result. Where a similarity is undefined (a layer does not vary, or returns NaN) it is NaN and ``valid`` is
        False, for that layer alone.

    Raises:
        TypeError: if the images are not floating-point.
        ValueError: for a wrong shape or option; if rows of a network depend on each other and ``batch_size < n``; if
            an activation does not have its batch in front; for canonical correlations of as many units as images;
            for an iterator.
    """
    _check(measure, units, batch_size, confidence)
    check_layout(images_layout)
    normalization = as_normalization(normalize)
    form = Format(
        layout=images_layout,
        spatial=spatial,
        made_for={},
        integers=False if normalization is None else "bytes",
        least=least_images(measure),
        vectors=True,
    )
    # One network with itself runs once.
    pair = tuple(map(networks.as_network, (f,) if g is f and others is None else (f, g)))
    both = (images,) if others is None else (images, others)
    asked = Comparison(
        measure,
        units,
        features.as_select(select),
        as_integer("batch_size", batch_size),
        _as_gibibytes(memory),
        float(confidence),
        normalization,
    )
    if is_traced((pair, [x for x in both if isinstance(x, jax.Array)])):
        for x in both:
            check_within_program(x, path, mesh)
        arrays = tuple(_as_array(x, form, normalization) for x in both)
        layers, (matrix, interval), measured = compare_arrays(pair, without_explicit_axes(arrays), asked)
    else:
        devices = find_devices(mesh, images, pair)
        sources = tuple(_as_rereadable(open_source(on_host(x), form)) for x in both)
        where = {"path": None if path is None else Path(path), "progress": progress}
        known = [count_pixels(each.number, each.shape) for each in sources if isinstance(each, ArraySource)]
        with routes_for(max(known) * devices.processes if len(known) == len(sources) else None), devices.as_context():
            layers, (matrix, interval), measured = compare_sources(pair, sources, asked, devices, **where)
        # Off the mesh, which need not be the one that the caller has set.
        matrix, interval = jax.device_put(jax.device_get((matrix, interval)))
    return Similarity(
        layers=layers[0].names,
        kinds=layers[0].kinds,
        # One network with itself has one entry: the first is the last, too.
        other_layers=layers[-1].names,
        other_kinds=layers[-1].kinds,
        matrix=matrix,
        interval=interval,
        valid=jnp.isfinite(matrix),
        measured=jnp.asarray(measured),
        measure=measure,
        units=units,
        confidence=float(confidence),
    )


def _as_array(images: Any, form: Format, normalization: Normalization) -> jax.Array:
    """Return images within a program of the caller's, as the networks take them."""
    images = form.read(images, least=form.least)
    return jnp.asarray(images if normalization is None else normalize_channels(images, *normalization))


def _as_rereadable(source: ArraySource | StreamSource) -> ArraySource | StreamSource:
    if isinstance(source, StreamSource) and not source.rereadable:
        raise ValueError(
            "expected images that can be read twice, got an iterator: give a function that makes a new one, an "
            "iterable such as a loader, or an array"
        )
    return source


def _check(measure: str, units: str, batch_size: int, confidence: float) -> None:
    if measure not in get_args(Measure):
        raise ValueError(f"expected measure to be one of {get_args(Measure)}, got {measure!r}")
    if units not in get_args(Units):
        raise ValueError(f"expected units to be one of {get_args(Units)}, got {units!r}")
    if as_integer("batch_size", batch_size) < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence between 0 and 1, got {confidence}")


def _as_gibibytes(memory: Any) -> float:
    try:
        number = math.nan if isinstance(memory, str) else float(memory)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise ValueError(f"expected memory as a number of GiB above 0, got {memory!r}: give e.g. 1.0")
    return number
