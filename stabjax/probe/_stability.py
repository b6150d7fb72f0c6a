"""`stability`: the relative stability of every operation, in one pass."""

from os import PathLike
from typing import Any, Literal

from jax.sharding import Mesh

from stabjax import features
from stabjax._images import Spatial
from stabjax._pixels import Statistics
from stabjax._types import Perturbation, PRNGKey
from stabjax.probe._relative_stability import RelativeStability
from stabjax.probe._request import Radius
from stabjax.probe._run import run
from stabjax.probe._source import ImagesLayout
from stabjax.stability import Stability


def stability(
    f: Any,
    images: Any,
    *,
    key: PRNGKey,
    deformation: Perturbation,
    noise: Perturbation | None = None,
    radius: Radius = "each",
    draws: int = 1,
    average: Literal["mean", "median"] = "mean",
    batch_size: int = 64,
    select: features.Select = None,
    confidence: float = 0.95,
    normalize: Statistics | tuple[Any, Any] | None = None,
    images_layout: ImagesLayout = "channels_last",
    spatial: Spatial = None,
    mesh: Mesh | None = None,
    path: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Stability:
    """Measure how stable every layer of a network is to smooth deformations, and to noise of the same size.

    Every image ``x`` passes the network clean, deformed (``tau x``) and with noise (``x + eta``). For the features
    ``f`` after each operation (Petrini et al. 2021, arXiv 2105.02468)::

        D = <|f(tau x) - f(x)|^2> / <|f(x) - f(z)|^2>        x, z: two of the images
        G = <|f(x + eta) - f(x)|^2> / <|f(x) - f(z)|^2>      |eta| = |tau x - x|
        R = D / G

    ``D`` is 0 if the layer does not see deformations at all, and 1 if a deformed image is as far from the original as
    another image is. ``G`` is the same for noise. ``R`` compares the two: at the input ``D = G`` and ``R = 1`` by
    construction; ``R`` is of order one at initialization, and far below one after training for networks that have
    learned to ignore smooth deformations in particular, not perturbations in general. It is ``R`` of the output that
    goes with the test error.

    A row of the result is one operation, in the order of execution: the images themselves first (``"input"``), then
    each convolution (with its bias), normalization, activation, pooling, ..., and the output last::

        import jax, stabjax as sj

        images, labels = sj.data.load("cifar10", "test")
        images = sj.data.normalize(jax.random.permutation(jax.random.key(1), images)[:500], "cifar10")
        deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (32, 32), convention="paper")
        result = sj.probe.stability(model, images, key=jax.random.key(0), deformation=deformation)
        print(result)               # a table; result.relative, result.relative_interval, ... are arrays

    Activations are reduced where they arise, batch by batch inside one compiled loop, so memory does not grow with the
    number of images. The network is an argument of the compiled program: networks of one architecture, and strengths
    of one kind of perturbation, share one compilation. The same ``key`` uses the same fields and noise whatever the
    network, the strength and the batch size: curves are paired. Image ``i``, draw ``d`` takes the keys
    ``jax.random.split(fold_in(fold_in(key, i), d))``, one for the deformation, one for the noise.

    Under `jit` and `vmap` (over stacked networks, keys or strengths) it works as outside; on the CPU a loop,
    `jax.lax.map`, over stacked networks is faster than `vmap`, which makes grouped convolutions of theirs.

    Args:
        f: The network: what `stabjax.networks.wrap` returns, or anything it takes. Each row of its output must depend
            on the same row of its input alone. A network that normalizes by the statistics of its batch is measured
            only if all images pass as one batch; then the clean, the deformed and the noisy images pass separately.
        images: Clean images as the network takes them (normalized), ``(n, *spatial, channels)``, at least two: an
            array, an array on disk, an iterable of batches (a loader), or a function that returns one; see `run`. An
            image with a pixel that is not finite is left out, and ``measured`` says so (in a network with batch
            statistics a blank image stands in its place).
        key: Key of all deformations, noise and resamplings.
        deformation: ``(key, image) -> image``, such as `stabjax.perturb.Diffeomorphism`.
        noise: ``(key, image) -> image``; by default uniform on a sphere around the image whose radius is given by the
            deformation, see ``radius``.
        radius: ``"each"``: ``|eta| = |tau x - x|`` for each image and draw (the published code); ``"mean"``: one
            radius, the average of that over images and draws (the published text).
        draws: Number of deformations, and of noises, per image; they are averaged within an image.
        average: ``"mean"`` over images; or ``"median"`` over images in the numerators (the lower of two middle values;
            the denominator stays the mean over pairs, and cancels from ``R``). The published medians per unit need
            whole arrays: see `perturbed` and `stabjax.stability.from_features`.
        batch_size: Largest number of images whose clean, deformed and noisy versions pass together; with several draws
            fewer images pass, so that the memory stays the same, but at least two, or three where one would be left
            over. Images are dealt out evenly, and every image counts once, so results differ by rounding only;
            intervals of ``D`` and ``G`` also by the batch means they use. From ``n`` on the three versions pass
            separately, each as one batch, once for every draw.
        select: Which operations: kinds, names, patterns of names or a predicate, as in `stabjax.features.capture`.
        confidence: Probability that an interval covers, by bootstrap over images.
        spatial: Number of spatial axes of an image, or their sides, where neither its shape nor the deformation tells:
            ``(n, 28, 28)`` may be gray images without channels, or signals of 28 channels.
        normalize: Mean and deviation of each channel, of pixels in [0, 1], if images still have to be normalized, bytes
            among them; see `run`.
        images_layout: Where the channels of a batch are; ``"channels_first"`` as PyTorch has them.
        mesh: Devices over which the images are split; see `run`.
        path: A folder in which a long measurement is kept, so that one that is killed goes on; see `run`.
        progress: Whether to show a bar with the time left; by default on a terminal.

    Returns:
        The result, with one row per operation. Where a number is undefined (all images have the same features; the
        network returns NaN; no noise) it is NaN and ``valid`` is False, for that layer alone. ``jax_debug_nans`` is off
        meanwhile; within a `jit` of the caller, whose outputs these are, it raises.

    Raises:
        TypeError: if the images are not floating-point, or something is not callable.
        ValueError: for a shape that is wrong or leaves open which axis is which; for a wrong option; if rows of the
            network depend on each other and ``batch_size < n``; if an activation does not have its batch in front.
    """
    if deformation is None:
        raise TypeError("expected deformation to be a function (key, image) -> image, got None: see stabjax.perturb")
    measurement = RelativeStability(average=average, confidence=float(confidence))
    return run(
        f,
        images,
        {"stability": measurement},
        key=key,
        deformation=deformation,
        noise=noise,
        radius=radius,
        draws=draws,
        select=select,
        batch_size=batch_size,
        normalize=normalize,
        images_layout=images_layout,
        spatial=spatial,
        mesh=mesh,
        path=path,
        progress=progress,
    )["stability"]
