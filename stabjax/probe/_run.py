"""`run`: what is asked for, checked and handed to a pass over the images."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from stabjax import features, networks
from stabjax._arguments import as_integer, as_key, as_tree
from stabjax._images import Spatial
from stabjax._numerics import permit_nan
from stabjax._pixels import Statistics
from stabjax._sharding import is_traced, without_explicit_axes
from stabjax._types import Measurement, Perturbation, PRNGKey
from stabjax.probe._batching import ALL_KINDS, Kinds
from stabjax.probe._devices import find_devices
from stabjax.probe._effort import count_pixels, routes_for
from stabjax.probe._pass import Normalization, kinds_of
from stabjax.probe._request import Radius, Request
from stabjax.probe._source import ArraySource, Format, ImagesLayout, open_source
from stabjax.probe._source_pass import pass_source
from stabjax.probe._traced_pass import pass_traced


@permit_nan()
def run(
    f: Any,
    images: Any,
    measurements: Mapping[str, Measurement],
    *,
    key: PRNGKey,
    deformation: Perturbation | None = None,
    noise: Perturbation | None = None,
    radius: Radius = "each",
    draws: int = 1,
    select: features.Select = None,
    batch_size: int = 64,
    normalize: Statistics | tuple[Any, Any] | None = None,
    images_layout: ImagesLayout = "channels_last",
    spatial: Spatial = None,
    mesh: Mesh | None = None,
    path: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Take several measurements of a network in one pass over any number of images.

    Every image passes the network once clean, once for each deformation and once for each noise, whatever is asked. At
    every operation the activations of a batch are reduced to a few numbers and forgotten, so that the memory for
    images and activations does not grow with their number; numbers of each image are kept on the host::

        found = sj.probe.run(
            network, loader, {"stability": sj.probe.RelativeStability(), "mean": MeanActivation()},
            key=jax.random.key(0), deformation=deformation, normalize=(mean, deviation),
        )
        found["stability"].relative

    A measurement of one's own is a class with five methods, see `stabjax.probe.Measurement`.

    Image ``i`` has its place among all images, not in its batch, and draw ``d`` of it takes the keys
    ``jax.random.split(fold_in(fold_in(key, i), d))``, one for the deformation, one for the noise. So the same images as
    an array, as a stream of batches of any lengths, on one device or many, give the same numbers up to rounding.

    Args:
        f: The network: what `stabjax.networks.wrap` returns, or anything it takes. Each row of its output must depend
            on the same row of its input alone. A network that normalizes by the statistics of its batch is measured
            only if all images pass as one batch; then the clean, the deformed and the noisy images pass separately.
        images: Clean images, ``(n, *spatial, channels)``: an array; an array on disk (`numpy.memmap`, HDF5), which is
            read batch by batch; any iterable of batches of any lengths (a loader of torch or Grain, a generator); or a
            function without arguments that returns one. Batches are arrays, tensors, pairs (images, labels), or
            dictionaries with an entry ``"image"`` or ``"images"``. An image with a pixel that is not finite is left
            out, and the summary says so. In several processes (`jax.distributed`) each gives images of its own: image
            ``i`` of process ``p`` of ``P`` has the position ``i P + p``.
        measurements: By name.
        key: Key of all deformations and noise.
        deformation: ``(key, image) -> image``, such as `stabjax.perturb.Diffeomorphism`; None for no deformed images.
        noise: ``(key, image) -> image``; by default, with a deformation, uniform on a sphere around the image whose
            radius is given by the deformation.
        radius: ``"each"``: that of each deformed image; ``"mean"``: one for all, their average, for which all images
            are deformed once before the pass.
        draws: Number of deformations, and of noises, per image.
        select: Which operations: kinds, names, patterns of names or a predicate, as in `stabjax.features.capture`.
        batch_size: Largest number of images whose versions pass together on a device, if there is one draw; with more
            draws fewer pass. From ``n`` on the versions pass separately, each as one batch, once for every draw.
        normalize: Mean and deviation of each channel, of pixels in [0, 1]: images are normalized on the device, bytes
            divided by 255 first. By default images come as the network takes them.
        images_layout: Where the channels of a batch are; ``"channels_first"`` as PyTorch has them.
        spatial: Number of spatial axes of an image, or their sides, where its shape leaves that open.
        mesh: Devices over which the images are split, along all of its axes but those along which the network is
            sharded. By default those over which an array of images is sharded; else one device.
        path: A folder in which the state is kept every ten seconds, so that a pass that is killed goes on where it was
            and gives the same numbers. Images that were measured are read again to compare them, but not measured; a
            loader of Grain goes on by its own state, and is trusted to be the same. A folder of another run, or images
            in another order, are refused.
        progress: Whether to show a bar with the time left; by default on a terminal, once it takes some seconds.

    Returns:
        What each measurement returns, by name.

    Raises:
        TypeError: if the images are no floating-point numbers (or bytes, with ``normalize``), or something is not
            callable.
        ValueError: for a shape that is wrong, changes from batch to batch, or leaves open which axis is which; for an
            iterable that yields nothing; for a wrong option; if rows of the network depend on each other and not all
            images pass together.
    """
    _check(measurements, deformation, noise, radius, draws, batch_size, images_layout)
    kinds = _kinds(measurements, deformation, noise)
    normalization = as_normalization(normalize)
    form = Format(
        layout=images_layout,
        spatial=spatial,
        made_for={"deformation": getattr(deformation, "spatial", None), "noise": getattr(noise, "spatial", None)},
        integers=False if normalization is None else "bytes",
        least=max(getattr(each, "least_images", 1) for each in measurements.values()),
    )
    network = networks.as_network(f)
    request = Request(
        measurements={name: as_tree(measurement) for name, measurement in measurements.items()},
        kinds=kinds,
        key=as_key(key),
        deformation=deformation,
        noise=noise,
        radius=radius,
        draws=draws,
        select=features.as_select(select),
        batch_size=batch_size,
        normalization=normalization,
    )
    array = images if isinstance(images, jax.Array) else None
    if is_traced((array, request.key, deformation, noise, network, request.measurements)):
        check_within_program(images, path, mesh)
        if images_layout == "channels_first" and images.ndim > 2:
            images = jnp.moveaxis(images, 1, -1)
        form.check(images)
        # How often the program around it runs is not known here, and left to the caller.
        return pass_traced(network, without_explicit_axes(jnp.asarray(images)), request)
    devices = find_devices(mesh, images, network)
    source = open_source(on_host(images), form)
    pixels = None
    if isinstance(source, ArraySource):
        pixels = count_pixels(request.rows(source.number * devices.processes), source.shape)
    path = None if path is None else Path(path)
    with routes_for(pixels), devices.as_context():
        return pass_source(network, source, request, devices, pixels=pixels, path=path, progress=progress)


def on_host(images: Any) -> Any:
    """Bring an array that lies on several devices, or on a CPU, to the host, from which its batches are read."""
    if isinstance(images, jax.Array) and (len(images.devices()) > 1 or next(iter(images.devices())).platform == "cpu"):
        if not images.is_fully_addressable:
            raise ValueError(
                "expected images of this process, got an array over the devices of several: give each process its own "
                "images as an array or a loader, and a mesh over all devices"
            )
        return np.asarray(images)
    return images


def check_perturbations(deformation: Any, noise: Any, draws: int) -> None:
    """Raise unless these are perturbations, or None."""
    for name, perturbation in (("deformation", deformation), ("noise", noise)):
        if perturbation is not None and (not callable(perturbation) or isinstance(perturbation, type)):
            got = (
                f"the class {perturbation.__name__}" if isinstance(perturbation, type) else type(perturbation).__name__
            )
            raise TypeError(f"expected {name} to be a function (key, image) -> image, got {got}: see stabjax.perturb")
    if as_integer("draws", draws) < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")


def check_within_program(images: Any, path: Any, mesh: Any) -> None:
    """Raise unless a probe can be a part of a program: of an array, without files and devices of its own."""
    if not isinstance(images, jax.Array | np.ndarray):
        raise TypeError(
            f"expected images as an array within jit, vmap and grad, got {type(images).__name__}: call the probe "
            "outside, where it reads batch by batch"
        )
    if path is not None or mesh is not None:
        raise ValueError("expected path=None and mesh=None within jit, vmap and grad: call the probe outside")


def check_layout(images_layout: str) -> None:
    """Raise unless this says where channels are."""
    if images_layout not in get_args(ImagesLayout):
        raise ValueError(f"expected images_layout to be one of {get_args(ImagesLayout)}, got {images_layout!r}")


def _check(
    measurements: Mapping[str, Any],
    deformation: Any,
    noise: Any,
    radius: str,
    draws: int,
    batch_size: int,
    images_layout: str,
) -> None:
    if not measurements:
        raise ValueError("expected measurements by name, {'stability': probe.RelativeStability()}, got none")
    for name, measurement in measurements.items():
        if isinstance(measurement, type) or not isinstance(measurement, Measurement):
            raise TypeError(
                f"expected {name!r} to be a Measurement, an object with reduce, init, update, merge and finish, got "
                f"{measurement!r}: see stabjax.probe.Measurement"
            )
        versions = getattr(measurement, "versions", ALL_KINDS)
        if isinstance(versions, str) or not set(versions) <= set(ALL_KINDS):
            raise ValueError(
                f"expected the versions of {name!r} as some of {ALL_KINDS}, got {versions!r}: versions = ('deformed',)"
            )
    check_perturbations(deformation, noise, draws)
    check_layout(images_layout)
    if radius not in get_args(Radius):
        raise ValueError(f"expected radius 'each' or 'mean', got {radius!r}")
    if radius == "mean" and (noise is not None or deformation is None):
        raise ValueError(
            "expected noise=None and a deformation with radius='mean', whose size the noise takes; a noise has a size "
            "of its own"
        )
    if as_integer("batch_size", batch_size) < 2:
        raise ValueError(f"expected batch_size >= 2, got {batch_size}: the spread of a batch needs two images")


def _kinds(measurements: Mapping[str, Measurement], deformation: Any, noise: Any) -> Kinds:
    """Return which versions of an image somebody looks at."""
    wanted = {kind for each in measurements.values() for kind in kinds_of(each)}
    given = (["deformed"] if deformation is not None else []) + (
        ["noisy"] if deformation is not None or noise is not None else []
    )
    return tuple(kind for kind in given if kind in wanted)


def as_normalization(normalize: Any) -> Normalization:
    """Return mean and deviation of each channel as numbers, which are static."""
    if normalize is None:
        return None
    mean, deviation = (normalize.mean, normalize.deviation) if isinstance(normalize, Statistics) else normalize
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((mean, deviation))):
        raise TypeError(
            "expected mean and deviation of normalize= as numbers, got traced ones: they are static in a program"
        )
    mean, deviation = (tuple(float(x) for x in np.atleast_1d(np.asarray(each))) for each in (mean, deviation))
    Statistics(mean, deviation)
    return mean, deviation
