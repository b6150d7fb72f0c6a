"""``D`` and ``G`` of trained networks as functions of the strength: the linear regime, and the bump.

For small strengths both grow as the square of ``r = <|tau x - x|>``; beyond, noise begins to change predictions. Draws
three figures, each with its numbers beside it::

    noise_curves_<size>         D, G, R, error rates and probabilities against r
    noise_curves_toward_<size>  G for steps toward another image, of the same class and of another
    noise_curves_images_<size>  images at the bump, deformed and with noise

Networks that ``experiments.relative_stability`` has trained are read, others are trained first::

    python -m experiments.noise_curves --size cpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from rich.console import Console

import stabjax as sj
from experiments import _networks
from experiments._images import Task
from experiments._networks import Size, ZooStudy
from experiments._probe import Probe, draw_probe
from experiments._study import Drawing, run

DEFAULT: Mapping[Size, tuple[str, ...]] = {
    "smoke": ("SmallCNN (4,)",),
    "cpu": ("FC L4", "LeNet", "VGG11bn, width 1/4"),
    "paper": ("FC L4", "LeNet", "VGG11bn", "ResNet18"),
}


@dataclass(frozen=True)
class Config(ZooStudy):
    """D and G of trained networks as functions of the strength."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"strengths": 8, "images": 64, "cutoffs": (3, 5)}

    networks: tuple[str, ...] = ()
    """Names of the zoo; a few of different kinds if not given."""
    cutoffs: tuple[int, ...] = (3, 5, 15)
    """Highest frequencies of the deformations; the first is drawn."""
    strengths: int = 30
    """Temperatures of each cutoff, from T_min/15 to 2 T_max, and as many lengths of a step toward another image."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure the curves of trained networks, and read the regimes off them."""
    task = _networks.load_task(config.size, seed=config.seed)
    probe = draw_probe(task, images=config.images, draws=1, seed=config.seed)
    path = None if config.smoke else config.zoo_folder()
    first = config.cutoffs[0]
    curves, steps, regimes = {}, {}, {}
    for name, architecture in _networks.select(config.size, config.networks or DEFAULT[config.size]).items():
        trained = _networks.train(name, architecture, task, key=jax.random.key(config.seed), seeds=1, path=path)
        network = sj.networks.wrap(trained.model("best"))
        curves[name] = sweep_strengths(config, network, probe, name)
        lengths = curves[name].sel(cutoff=first).radius.to_numpy()
        steps[name] = {
            kind: sweep_steps(config, network, probe, lengths, same_class=kind == "same class", name=name)
            for kind in ("same class", "another class")
        }
        regimes[name] = {f"cutoff {c}": find_regimes(curves[name].sel(cutoff=c)) for c in config.cutoffs}
        regimes[name] |= {f"toward {kind}": find_bump(data.radius, data.noise) for kind, data in steps[name].items()}
        console.print(f"{name}: {regimes[name][f'cutoff {first}']}")
    norm = float(jnp.mean(jnp.linalg.norm(jnp.reshape(probe.clean, (len(probe.clean), -1)), axis=1)))
    common = {"probe": dict(probe.settings), "regimes": regimes, "mean_image_norm": norm}
    figure, at_the_bump = draw_images(config, task, probe, curves, regimes)
    return {
        f"noise_curves_{config.size}": (
            draw(curves, regimes, first, norm),
            common | {"networks": {name: _lists(data) for name, data in curves.items()}},
        ),
        f"noise_curves_toward_{config.size}": (
            draw_steps(curves, steps, first),
            common | {"networks": {n: {k: _lists(data) for k, data in many.items()} for n, many in steps.items()}},
        ),
        f"noise_curves_images_{config.size}": (figure, {**common, **at_the_bump}),
    }


# Measurements


def cell(
    key: jax.Array,
    *,
    cutoff: jax.Array,
    strength: jax.Array,
    network: Any,
    images: jax.Array,
    labels: jax.Array,
    max_cutoff: int,
) -> dict[str, jax.Array]:
    """Measure all numbers at one cutoff and one temperature ``(T_min/15) (30 T_max/T_min)^strength``.

    The same normals at every temperature, so that curves are paired.
    """
    low, high = sj.fields.temperature_range(cutoff, images.shape[1:-1], max_cutoff=max_cutoff)
    temperature = low / 15 * (30 * high / low) ** strength
    deformation = sj.perturb.Diffeomorphism(temperature, cutoff, max_cutoff=max_cutoff)
    (deformed,), (noisy,) = sj.probe.perturbed(images, key=key, deformation=deformation)
    clean = network(images)
    numbers = _numbers(clean, network(deformed), labels, "deformation")
    numbers |= _numbers(clean, network(noisy), labels, "noise")
    return numbers | {"temperature": temperature, "radius": _radius(images, noisy)}


def step_cell(
    key: jax.Array,
    *,
    length: jax.Array,
    network: Any,
    images: jax.Array,
    targets: jax.Array,
    labels: jax.Array,
) -> dict[str, jax.Array]:
    """Measure all numbers after each image went so far toward its target, not beyond it; nothing is random."""
    del key
    distance = jnp.sqrt(sj.stability.squared_change(images, targets))
    share = jnp.minimum(length / distance, 1)
    shifted = images + jnp.reshape(share, (-1,) + (1,) * (images.ndim - 1)) * (targets - images)
    numbers = _numbers(network(images), network(shifted), labels, "noise")
    return numbers | {"radius": _radius(images, shifted), "share": jnp.mean(share)}


def _numbers(clean: jax.Array, perturbed: jax.Array, labels: jax.Array, name: str) -> dict[str, jax.Array]:
    probability = jax.nn.softmax(perturbed)
    predicted = jnp.argmax(perturbed, axis=1)
    return {
        name: sj.stability.deformation(clean, perturbed, average="median_per_unit"),
        f"{name}_mean": sj.stability.deformation(clean, perturbed),
        f"{name}_error": jnp.mean(predicted != labels),
        f"{name}_changed": jnp.mean(predicted != jnp.argmax(clean, axis=1)),
        f"{name}_p_true": jnp.mean(jnp.take_along_axis(probability, labels[:, None], axis=1)),
        f"{name}_p_predicted": jnp.mean(jnp.max(probability, axis=1)),
    }


def _radius(images: jax.Array, perturbed: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sqrt(sj.stability.squared_change(images, perturbed)))


def sweep_strengths(config: Config, network: Any, probe: Probe, name: str) -> xarray.Dataset:
    """Measure `cell` over cutoffs and strengths."""
    return _sweep(
        partial(
            cell,
            network=network,
            images=probe.clean,
            labels=jnp.asarray(probe.labels),
            max_cutoff=max(config.cutoffs),
        ),
        {"cutoff": np.array(config.cutoffs, float), "strength": np.linspace(0, 1, config.strengths)},
        config,
        name,
    )


def sweep_steps(
    config: Config, network: Any, probe: Probe, lengths: np.ndarray, *, same_class: bool, name: str
) -> xarray.Dataset:
    """Measure `step_cell` over lengths of the step: the mean radii of the noise that it is compared with."""
    rng = np.random.default_rng(config.seed)
    labels = probe.labels
    others = [
        np.flatnonzero(((labels == label) == same_class) & (np.arange(len(labels)) != k))
        for k, label in enumerate(labels)
    ]
    if not all(map(len, others)):
        raise ValueError(f"expected two images of each class and two classes, got labels {labels}: take more images")
    partners = [rng.choice(each) for each in others]
    return _sweep(
        partial(
            step_cell,
            network=network,
            images=probe.clean,
            targets=probe.clean[np.array(partners)],
            labels=jnp.asarray(labels),
        ),
        {"length": lengths},
        config,
        f"{name}_toward_{same_class}",
    )


def _sweep(f: Any, axes: Mapping[str, Any], config: Config, name: str) -> xarray.Dataset:
    path = config.folder(f"noise_curves_{config.size}_s{config.seed}_n{config.images}_{_networks.file_name(name)}")
    return sj.sweep.run(f, axes, key=jax.random.key(config.seed), path=path).isel(seed=0)


# Regimes


def find_regimes(data: xarray.Dataset) -> dict[str, Any]:
    """Fit the slopes of ``log D`` and ``log G`` in the lowest decade of ``r``, and find where noise leaves it."""
    radius = data.radius.to_numpy()
    lowest = radius <= 10 * radius[0]
    result: dict[str, Any] = {
        f"{name}_slope": float(np.polyfit(np.log(radius[lowest]), np.log(data[name].to_numpy()[lowest]), 1)[0])
        for name in ("deformation", "noise")
    }
    error = data.noise_error.to_numpy()
    half = (error[0] + error[-1]) / 2
    above = np.flatnonzero((error >= half) & (error[-1] > error[0]))
    result["half_error_radius"] = float(radius[above[0]]) if len(above) else None
    return result | find_bump(data.radius, data.noise)


def find_bump(radius: xarray.DataArray, noise: xarray.DataArray) -> dict[str, float | str | None]:
    """Find where ``b = G / (G_0 r^2)`` is largest; where it has no maximum inside, where the local slope of G is.

    ``G_0`` is the mean of ``G / r^2`` in the lowest decade of ``r``.
    """
    r, g = radius.to_numpy().astype(float), noise.to_numpy().astype(float)
    ratio = g / r**2
    b = ratio / np.exp(np.mean(np.log(ratio[r <= 10 * r[0]])))
    best = int(np.argmax(b))
    if 0 < best < len(b) - 1 and b[best] > 1.05:
        return {"bump_radius": float(r[best]), "bump_height": float(b[best]), "bump_by": "maximum of G / r^2"}
    slope = np.gradient(np.log(g), np.log(r))
    beyond = np.flatnonzero(r > 3 * r[0])
    place = int(beyond[np.argmax(slope[beyond])]) if len(beyond) else best
    return {"bump_radius": float(r[place]), "bump_height": float(b[place]), "bump_by": "largest slope of log G"}


# Figures


def draw(curves: Mapping[str, xarray.Dataset], regimes: Mapping[str, Any], cutoff: int, norm: float) -> Any:
    """Draw ``D`` and ``G`` above, ``R`` in the middle, errors and probabilities below, one column per network."""
    figure, grid = sj.plot.panels(3, len(curves), size=(4.2, 3.0), sharex=True, sharey="row")
    for column, (name, data) in zip(grid.T, curves.items(), strict=True):
        data = data.sel(cutoff=cutoff)
        r = data.radius
        for key, color, symbol in (("deformation", sj.plot.COLORS[1], "D"), ("noise", sj.plot.COLORS[2], "G")):
            column[0].loglog(r, data[key], color=color, label=f"${symbol}_f$, medians per unit")
            column[0].loglog(r, data[f"{key}_mean"], color=color, linewidth=0.8, linestyle=":", label="means")
            guide = data[key][0] * (r / r[0]) ** 2
            column[0].loglog(r, guide, color=color, linewidth=0.6, linestyle="--", alpha=0.6)
            column[2].semilogx(r, data[f"{key}_error"], color=color, label=f"error, {key}")
            column[2].semilogx(r, data[f"{key}_changed"], color=color, linestyle="--", label="predictions changed")
            column[2].semilogx(r, data[f"{key}_p_true"], color=color, linestyle=":", label="$p$ of the true class")
        column[1].loglog(r, data.deformation / data.noise, color="0.2")
        column[1].axhline(1, color="0.7", linewidth=0.8, linestyle="--")
        place = regimes[name][f"cutoff {cutoff}"]["bump_radius"]
        for axes in column:
            axes.axvline(place, color="0.7", linewidth=0.8)
            axes.grid(color="0.93")
        column[0].set_title(name, fontsize=10)
        column[0].set_ylim(0.3 * float(min(data.deformation.min(), data.noise.min())), 3 * float(data.noise.max()))
        column[2].set_xlabel("$r = \\langle|\\tau x - x|\\rangle$")
        share = column[0].secondary_xaxis("top", functions=(lambda x: x / norm, lambda x: x * norm))
        share.set_xlabel("$r / |x|$", fontsize=8)
        sj.plot.plain_ticks(column[2].xaxis)
        figure.draw_without_rendering()  # the upper axis takes its scale, and with it new ticks, when it is drawn
        sj.plot.plain_ticks(share.xaxis)
    for axes, label in zip(grid[:, 0], ("$D_f$, $G_f$ of the output", "$R_f$", "share of images"), strict=True):
        axes.set_ylabel(label)
    grid[2, 0].set_ylim(-0.03, 1.15)
    for axes in (grid[0, 0], grid[2, 0]):
        axes.legend(fontsize=6.5, frameon=False, loc="upper left")
    figure.suptitle(f"cutoff {cutoff}; gray line: the bump; dashed: the square law", fontsize=10)
    return figure


def draw_steps(
    curves: Mapping[str, xarray.Dataset], steps: Mapping[str, Mapping[str, xarray.Dataset]], cutoff: int
) -> Any:
    """Draw ``G`` and the error rate for isotropic noise and for steps toward other images, against the mean length."""
    figure, grid = sj.plot.panels(2, len(curves), size=(4.2, 3.0), sharex=True, sharey="row")
    for column, (name, data) in zip(grid.T, curves.items(), strict=True):
        many = {"isotropic noise": data.sel(cutoff=cutoff), **{f"toward {k}": v for k, v in steps[name].items()}}
        for color, (label, each) in zip(sj.plot.COLORS[1:], many.items(), strict=False):
            r = each.radius.to_numpy()
            column[0].loglog(r, each.noise, color=color, label=label)
            column[1].semilogx(r, each.noise_error, color=color, label=label)
            if "share" in each:
                middle = float(np.interp(0.5, each.share, r))
                for axes in column:
                    axes.axvline(middle, color=color, linewidth=0.8, linestyle=":")
        for axes in column:
            axes.grid(color="0.93")
        column[0].set_title(name, fontsize=10)
        column[1].set_xlabel("length of the step $r$")
        sj.plot.plain_ticks(column[1].xaxis)
    grid[0, 0].set_ylabel("$G_f$ of the output, medians per unit")
    grid[1, 0].set_ylabel("error rate")
    grid[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle("Steps toward another test image; dotted: half way to it", fontsize=10)
    return figure


def draw_images(
    config: Config,
    task: Task,
    probe: Probe,
    curves: Mapping[str, xarray.Dataset],
    regimes: Mapping[str, Any],
) -> Drawing:
    """Draw four images at the bump of each network: clean, deformed, and with noise of the same size."""
    count = min(4, len(probe.clean))
    rows = np.linspace(0, len(probe.clean) - 1, count).astype(int)
    cutoff = config.cutoffs[0]
    figure, grid = sj.plot.panels(1 + 2 * len(curves), count, size=(1.5, 1.5))
    strips: list[tuple[str, Any]] = [("clean", probe.clean)]
    places = {}
    for name, data in curves.items():
        place = regimes[name][f"cutoff {cutoff}"]["bump_radius"]
        data = data.sel(cutoff=cutoff)
        temperature = float(np.exp(np.interp(np.log(place), np.log(data.radius), np.log(data.temperature))))
        deformation = sj.perturb.Diffeomorphism(temperature, float(cutoff), max_cutoff=max(config.cutoffs))
        key = jax.random.fold_in(jax.random.key(config.seed), 0)
        (deformed,), (noisy,) = sj.probe.perturbed(probe.clean, key=key, deformation=deformation)
        strips += [(f"{name}\ndeformed, r = {place:.1f}", deformed), (f"{name}\nnoise, r = {place:.1f}", noisy)]
        places[name] = {"radius": place, "temperature": temperature}
    deviation, mean = np.array(task.recipe.deviation or (1.0,)), np.array(task.recipe.mean or (0.0,))
    for axes_row, (label, images) in zip(grid, strips, strict=True):
        for axes, image in zip(axes_row, np.asarray(images)[rows], strict=True):
            pixels = np.clip(image * deviation + mean, 0, 1)
            axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        axes_row[0].set_ylabel(label, fontsize=6.5)
    figure.suptitle(f"Test images at the bump of each network, cutoff {cutoff}", fontsize=8)
    return figure, {"images": rows.tolist(), "at_the_bump": places}


def _lists(data: xarray.Dataset) -> dict[str, Any]:
    return {str(name): values.to_numpy().tolist() for name, values in {**data.coords, **data.data_vars}.items()}


if __name__ == "__main__":
    main()
