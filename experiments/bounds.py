"""How steep the layers of a network are, from below and from above: observed, found, local, certified.

For every convolution and dense layer ``f_k`` of a small network, at initialisation, trained, and trained inside a bound
on the spectral norm of each kernel (`stabjax.lipschitz.keep`)::

    observed    |f_k(tau x) - f_k(x)| / |tau x - x|  under deformations, and the same under noise: root mean square
    found       the largest |f_k(x + d) - f_k(x)| / |d|, by gradient ascent over d for each image
    local       the largest singular value of the Jacobian of f_k at each image
    certified   an upper bound for all images

Draws one figure with its numbers beside it, ``bounds``::

    python -m experiments.bounds
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import stabjax as sj
from experiments import layerwise

LABELS = {
    "certified": "certified, all images",
    "found": "found by gradient ascent, largest of all images",
    "local": "norm of the Jacobian, largest of all images",
    "noise": "noise, root mean square",
    "deformation": "deformation, root mean square",
}


@dataclass(frozen=True)
class Config:
    """How steep the layers of a network are, from below and from above."""

    training: int = 10_000
    """Training images."""
    epochs: int = 6
    """Passes through them."""
    bound: float = 2.0
    """On the spectral norm of every kernel, in the constrained training."""
    images: int = 100
    """Test images that are deformed."""
    ascents: int = 32
    """Of these, images around which the steepest direction is sought."""
    steps: int = 60
    """Steps of gradient ascent."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    displacement: float = 1.0
    """Their typical size in pixels, in the convention of the paper."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figure."""
    smoke: bool = False
    """A few seconds, on the embedded task, to see that everything runs."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, measure, draw; returns what is written beside the figure, by its name.

    Args:
        argv: command line; that of the process if None.
    """
    config = tyro.cli(Config, args=None if argv is None else list(argv), description=__doc__)
    if config.smoke:
        config = replace(config, training=256, epochs=1, images=8, ascents=4, steps=5)
    console = Console()
    training, test, deformation, name = material(config)
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test[0]))[: config.images])
    network = partial(sj.models.SmallCNN, channels=(4,) if config.smoke else (32, 64, 128), norm=False)
    initial = network(in_channels=training[0].shape[-1], rngs=nnx.Rngs(config.seed))
    stages: dict[str, dict[str, Any]] = {}
    for stage in ("at initialisation", "trained", f"trained, norms <= {config.bound:g}"):
        model, history = initial, []
        if stage != "at initialisation":
            model, history = train(config, initial, training, inside=stage != "trained")
        found = measure(config, model, test[0][chosen], deformation)
        found["test_error"] = float(1 - sj.train.evaluate(model, *test).accuracy)
        found["largest_norm_of_a_kernel_after_each_epoch"] = history
        stages[stage] = found
        console.print(stage, f"test error {100 * found['test_error']:.1f} %, certified {found['certified'][-1]:.4g}")
    record = {
        "command": sj.cli.command("experiments.bounds", config),
        "config": asdict(config),
        "versions": sj.cli.versions(),
        "data": name,
        "test_images": chosen.tolist(),
        "stages": stages,
    }
    console.print(sj.plot.save(draw(stages, name, config), config.out / "bounds", record))
    return {"bounds": record}


def material(config: Config) -> tuple[tuple[Any, Any], tuple[Any, Any], Any, str]:
    """Normalised images and labels for training and test, the deformation, and what the images are."""
    given = layerwise.Config(
        data="scale-detection" if config.smoke else "cifar10",
        training=config.training,
        images=config.images,
        cutoff=config.cutoff,
        displacement=config.displacement,
        seed=config.seed,
        smoke=config.smoke,
    )
    *sets, deformation, recipe, note = layerwise.material(given)
    statistics: dict[str, Any] = {"mean": recipe.mean, "deviation": recipe.deviation}
    training, test = ((sj.train.normalise(images, **statistics), labels) for images, labels in sets)
    return training, test, deformation, "CIFAR-10 (JPEG copies)" if "JPEG" in note else note


def train(config: Config, initial: nnx.Module, training: Any, *, inside: bool) -> tuple[nnx.Module, list[float]]:
    """The network after training, and the largest norm of its kernels after each epoch, by `norms`."""
    descent = optax.sgd(0.02, momentum=0.9, nesterov=True)
    optimiser = optax.chain(descent, sj.lipschitz.keep(config.bound)) if inside else descent
    graph, params, rest = nnx.split(initial, nnx.Param, ...)
    images, labels = map(jnp.asarray, training)
    batch = min(128, len(images))

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params, rest)(x), y))

    def step(carried: Any, chosen: Any) -> tuple[Any, None]:
        params, state = carried
        updates, state = optimiser.update(jax.grad(loss)(params, images[chosen], labels[chosen]), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def epoch(carried: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(images))[: len(images) // batch * batch]
        return jax.lax.scan(step, carried, jnp.reshape(order, (-1, batch)))[0]

    carried, history = (params, optimiser.init(params)), []
    for number in range(config.epochs):
        carried = epoch(carried, jax.random.fold_in(jax.random.key(config.seed), number))
        history.append(max(norms(carried[0])))
    return nnx.merge(graph, carried[0], rest), history


def norms(params: Any) -> list[float]:
    """The norm of each dense kernel, and a certified bound on that of each convolution for images of any size."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    bounds = [sj.lipschitz.dense(k, method="exact") if k.ndim == 2 else sj.lipschitz.conv(k, None) for k in kernels]
    return [float(bound.value) for bound in bounds]


def measure(config: Config, model: nnx.Module, images: Any, deformation: Any) -> dict[str, Any]:
    """The slopes of every convolution and dense layer."""
    network = sj.networks.wrap(model)
    layers = [tap.name for tap in sj.features.taps(network, images) if tap.kind in ("conv", "dense")]
    keys = jax.random.split(jax.random.key(config.seed), 3)
    result = sj.probe.stability(network, images, key=keys[0], deformation=deformation, draws=4, select=layers)
    rows = [result.layers.index(layer) for layer in layers]
    found: dict[str, Any] = {"layers": layers}
    for name in ("deformation", "noise"):
        squares = np.asarray(getattr(result, f"{name}_numerators"))
        moved = squares[0] > 0  # what a draw leaves as it is has no slope
        slopes = np.sqrt(squares[rows][:, moved] / squares[:1, moved])
        found[name] = np.sqrt(np.mean(slopes**2, axis=1)).tolist()
        found[f"{name}_interval"] = np.quantile(slopes, [0.025, 0.975], axis=1).T.tolist()
    certified = sj.lipschitz.network(network, images.shape)
    found["certified"] = [float(certified.bound[certified.layers.index(layer)]) for layer in layers]
    some = images[: config.ascents]
    radius = float(np.median(np.asarray(result.noise_radius)))
    for layer in layers:
        local = sj.lipschitz.local(network, some, key=keys[1], layer=layer)
        slopes = ascend(network, some, local.direction, layer=layer, radius=radius, steps=config.steps)
        for name, values in (("local", local.value), ("found", slopes)):
            found.setdefault(name, []).append(float(jnp.max(values)))
            found.setdefault(f"{name}_median", []).append(float(jnp.median(values)))
    return found


@partial(jax.jit, static_argnames=("layer", "steps"))
def ascend(network: Any, images: Any, direction: Any, *, layer: str, radius: float, steps: int) -> Any:
    """The largest slope ``|f(x + d) - f(x)| / |d|`` met on the way of Adam from the local direction, of each image."""
    g = sj.features.capture(network, select=layer)
    clean = g(images)[1][layer]

    def slopes(d: Any) -> Any:
        change = (g(images + d)[1][layer] - clean).reshape(len(images), -1)
        return jnp.linalg.norm(change, axis=1) / jnp.linalg.norm(d.reshape(len(images), -1), axis=1)

    optimiser = optax.adam(0.2 * radius / np.sqrt(images[0].size))

    def step(carried: Any, _: None) -> tuple[Any, None]:
        d, state, best = carried
        value, pull = jax.vjp(slopes, d)
        updates, state = optimiser.update(-pull(jnp.ones_like(value))[0], state, d)
        return (d + updates, state, jnp.maximum(best, value)), None

    d = radius * direction
    start = (d, optimiser.init(d), jnp.zeros(len(images)))
    (d, _, best), _ = jax.lax.scan(step, start, length=steps)
    return jnp.maximum(best, slopes(d))


def draw(stages: Mapping[str, Mapping[str, Any]], name: str, config: Config) -> Figure:
    """One panel for each stage: slope against layer."""
    figure = Figure(figsize=(12.5, 5.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(stages), sharey=True))
    colors = dict(zip(LABELS, ("black", "tab:red", "tab:orange", "tab:blue", "tab:green"), strict=True))
    for ax, (stage, found) in zip(axes, stages.items(), strict=True):
        places = np.arange(len(found["layers"]))
        for what, label in LABELS.items():
            ax.plot(places, found[what], "o-" if what != "found" else "x--", color=colors[what], label=label)
            if f"{what}_interval" in found:
                ax.fill_between(places, *np.transpose(found[f"{what}_interval"]), color=colors[what], alpha=0.2, lw=0)
        ax.set(yscale="log", xlabel="layer", title=f"{stage}\ntest error {100 * found['test_error']:.0f} %")
        ax.set_xticks(places, [layer.removeprefix("blocks/") for layer in found["layers"]], rotation=30, ha="right")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("slope: change of the layer / change of the image")
    figure.suptitle(
        f"{name}: SmallCNN without normalisation, {config.training:,} images, {config.epochs} epochs; "
        f"slopes on {config.images} test images (found, local: {config.ascents})",
        fontsize=10,
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
