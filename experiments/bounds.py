"""How steep the layers of a network are, from below and from above: observed, found, local, certified.

For every convolution and dense layer ``f_k`` of a small network, at initialization, trained, and trained inside a bound
on the spectral norm of each kernel (`stabjax.lipschitz.keep`)::

    observed    |f_k(tau x) - f_k(x)| / |tau x - x|  under deformations, and the same under noise: root mean square
    found       the largest |f_k(x + d) - f_k(x)| / |d|, by gradient ascent over d for each image
    local       the largest singular value of the Jacobian of f_k at each image
    certified   an upper bound for all images

Draws one figure with its numbers beside it, ``bounds``::

    python -m experiments.bounds

Finished trainings are read, others go on where they were.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import stabjax as sj
from experiments import _images
from experiments._study import Drawing, ResumableStudy, run

LABELS = {
    "certified": "certified, all images",
    "found": "found by gradient ascent, largest of all images",
    "local": "norm of the Jacobian, largest of all images",
    "noise": "noise, root mean square",
    "deformation": "deformation, root mean square",
}


@dataclass(frozen=True)
class Config(ResumableStudy):
    """How steep the layers of a network are, from below and from above."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"training": 256, "epochs": 1, "images": 8, "ascents": 4, "steps": 5}

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


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Train the network in two ways, and measure it at three stages."""
    task = _images.load(
        "scale-detection" if config.smoke else "cifar10",
        seed=config.seed,
        training=config.training,
        images=config.images,
        cutoff=config.cutoff,
        displacement=config.displacement,
    )
    chosen, images = task.draw_test_images(config.images, seed=config.seed)
    network = partial(sj.models.SmallCNN, channels=(4,) if config.smoke else (32, 64, 128), norm=False)
    initial = network(in_channels=task.channels, rngs=nnx.Rngs(config.seed))
    statistics: dict[str, Any] = {"mean": task.recipe.mean, "deviation": task.recipe.deviation}
    stages: dict[str, dict[str, Any]] = {}
    for stage in ("at initialisation", "trained", f"trained, norms <= {config.bound:g}"):
        model, history = initial, []
        if stage != "at initialisation":
            model, history = train(config, initial, task, constrain=stage != "trained", progress=console.is_terminal)
        slopes = measure(config, model, images, task.deformation)
        slopes["test_error"] = float(1 - sj.train.evaluate(model, *task.test, **statistics).accuracy)
        slopes["largest_norm_of_a_kernel_after_each_epoch"] = history
        stages[stage] = slopes
        console.print(stage, f"test error {100 * slopes['test_error']:.1f} %, certified {slopes['certified'][-1]:.4g}")
    name = task.note if task.is_exact else task.label("CIFAR-10")
    numbers = {"data": name, "test_images": chosen.tolist(), "stages": stages}
    return {"bounds": (draw(stages, name, config), numbers)}


def train(
    config: Config, initial: nnx.Module, task: _images.Task, *, constrain: bool, progress: bool
) -> tuple[nnx.Module, list[float]]:
    """Train the network; return it and the largest norm of its kernels after each epoch, by `norms`."""
    descent = optax.sgd(0.02, momentum=0.9, nesterov=True)
    bound = f"{config.bound:g}" if constrain else "none"
    settings = f"p{config.training}_e{config.epochs}_s{config.seed}"
    recipe = sj.train.Recipe(
        epochs=config.epochs,
        batch_size=min(128, config.training),
        mean=task.recipe.mean,
        deviation=task.recipe.deviation,
    )
    trained = sj.train.fit(
        initial,
        task.training,
        key=jax.random.key(config.seed),
        recipe=recipe,
        optimizer=optax.chain(descent, sj.lipschitz.keep(config.bound)) if constrain else descent,
        path=config.runs / f"bounds_{'smoke' if config.smoke else 'cifar10'}_{bound}_{settings}",
        checkpoints=tuple(range(config.epochs + 1)),
        progress=progress,
    )
    history = [max(norms(trained.model(step))) for step in trained.history.step]
    return trained.model(), history


def norms(model: nnx.Module) -> list[float]:
    """Return the norm of each dense kernel, and a bound on that of each convolution for images of any size."""
    kernels = [leaf for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)) if leaf.ndim > 1]
    bounds = [sj.lipschitz.dense(k, method="exact") if k.ndim == 2 else sj.lipschitz.conv(k, None) for k in kernels]
    return [float(bound.value) for bound in bounds]


def measure(config: Config, model: nnx.Module, images: Any, deformation: Any) -> dict[str, Any]:
    """Measure the slopes of every convolution and dense layer."""
    network = sj.networks.wrap(model)
    layers = [tap.name for tap in sj.features.taps(network, images) if tap.kind in ("conv", "dense")]
    keys = jax.random.split(jax.random.key(config.seed), 3)
    result = sj.probe.stability(network, images, key=keys[0], deformation=deformation, draws=4, select=layers)
    rows = [result.layers.index(layer) for layer in layers]
    numbers: dict[str, Any] = {"layers": layers}
    for name in ("deformation", "noise"):
        squares = np.asarray(getattr(result, f"{name}_numerators"))
        changed = squares[0] > 0  # an image that a draw leaves as it is has no slope
        slopes = np.sqrt(squares[rows][:, changed] / squares[:1, changed])
        numbers[name] = np.sqrt(np.mean(slopes**2, axis=1)).tolist()
        numbers[f"{name}_interval"] = np.quantile(slopes, [0.025, 0.975], axis=1).T.tolist()
    certified = sj.lipschitz.network(network, images.shape)
    numbers["certified"] = [float(certified.bound[certified.layers.index(layer)]) for layer in layers]
    some = images[: config.ascents]
    radius = float(np.median(np.asarray(result.noise_radius)))
    for layer in layers:
        local = sj.lipschitz.local(network, some, key=keys[1], layer=layer)
        slopes = ascend(network, some, local.direction, layer=layer, radius=radius, steps=config.steps)
        for name, values in (("local", local.value), ("found", slopes)):
            numbers.setdefault(name, []).append(float(jnp.max(values)))
            numbers.setdefault(f"{name}_median", []).append(float(jnp.median(values)))
    return numbers


@partial(jax.jit, static_argnames=("layer", "steps"))
def ascend(network: Any, images: Any, direction: Any, *, layer: str, radius: float, steps: int) -> Any:
    """Return the largest slope ``|f(x + d) - f(x)| / |d|`` of each image on Adam's way from the local direction."""
    g = sj.features.capture(network, select=layer)
    clean = g(images)[1][layer]

    def slopes(d: Any) -> Any:
        change = (g(images + d)[1][layer] - clean).reshape(len(images), -1)
        return jnp.linalg.norm(change, axis=1) / jnp.linalg.norm(d.reshape(len(images), -1), axis=1)

    optimizer = optax.adam(0.2 * radius / np.sqrt(images[0].size))

    def step(carry: Any, _: None) -> tuple[Any, None]:
        d, state, best = carry
        value, pull = jax.vjp(slopes, d)
        updates, state = optimizer.update(-pull(jnp.ones_like(value))[0], state, d)
        return (d + updates, state, jnp.maximum(best, value)), None

    d = radius * direction
    start = (d, optimizer.init(d), jnp.zeros(len(images)))
    (d, _, best), _ = jax.lax.scan(step, start, length=steps)
    return jnp.maximum(best, slopes(d))


def draw(stages: Mapping[str, Mapping[str, Any]], name: str, config: Config) -> Any:
    """Draw one panel for each stage: slope against layer."""
    figure, (row,) = sj.plot.panels(1, len(stages), size=(12.5 / 3, 5.0), sharey=True)
    colors = dict(zip(LABELS, ("black", "tab:red", "tab:orange", "tab:blue", "tab:green"), strict=True))
    for axes, (stage, numbers) in zip(row, stages.items(), strict=True):
        places = np.arange(len(numbers["layers"]))
        for what, label in LABELS.items():
            axes.plot(places, numbers[what], "o-" if what != "found" else "x--", color=colors[what], label=label)
            if f"{what}_interval" in numbers:
                axes.fill_between(
                    places, *np.transpose(numbers[f"{what}_interval"]), color=colors[what], alpha=0.2, lw=0
                )
        axes.set(yscale="log", xlabel="layer", title=f"{stage}\ntest error {100 * numbers['test_error']:.0f} %")
        axes.set_xticks(places, [layer.removeprefix("blocks/") for layer in numbers["layers"]], rotation=30, ha="right")
        axes.grid(alpha=0.3)
    row[0].set_ylabel("slope: change of the layer / change of the image")
    figure.suptitle(
        f"{name}: SmallCNN without normalization, {config.training:,} images, {config.epochs} epochs; "
        f"slopes on {config.images} test images (found, local: {config.ascents})",
        fontsize=10,
    )
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
