"""Networks of constant filters: what spatial pooling alone does, measured by the probe and known in closed form.

Draws five figures, each with its numbers beside it in ``.json``::

    constant_filters_numerators   numerators of D and G and their denominator, layer by layer
    constant_filters_stability    D, G and R
    constant_filters_bias         G_f / eta^2 of the last layer against the size of the noise, for nine biases
    constant_filters_paths        receptive fields, path counts, and how much they differ between neighbors
    constant_filters_evolution    two lit pixels on their way through the layers

    python -m experiments.constant_filters
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import stabjax as sj
from experiments._study import Drawing, ResumableStudy, run

NETWORKS = {(3, 1): 8, (5, 1): 8, (2, 2): 8, (3, 3): 5, (4, 2): 6, (3, 2): 6}
"""Depth of the network by its kernel and stride; (3, 2) is the trap, where the stride does not divide the kernel."""

BIAS_NETWORK: dict[str, Any] = {"kernel": 3, "stride": 2, "depth": 4}
QUANTITIES: tuple[sj.theory.Quantity, ...] = (
    "deformation_numerators",
    "noise_numerators",
    "denominators",
    "deformation",
    "noise",
    "relative",
)
BIASES = np.array([0, *np.logspace(-4, -1, 8)], np.float32)
RADII = np.logspace(-4, 4, 30).astype(np.float32)
RADIUS = 2**0.5  # of the noise: the norm of a shift of one lit pixel


@dataclass(frozen=True)
class Config(ResumableStudy):
    """Networks of constant filters, measured and in closed form."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"draws": 2, "seeds": 2}

    draws: int = 20
    """Noises of each image."""
    seeds: int = 20
    """Noises in the study of the bias."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure networks of all kernels and strides, and predict what is measured."""
    networks = {(3, 1): 2, (2, 2): 2, (3, 2): 2} if config.smoke else NETWORKS
    measured = {network: measure(*network, depth, config) for network, depth in networks.items()}
    return {
        "constant_filters_numerators": draw_numerators(measured),
        "constant_filters_stability": draw_stability(measured),
        "constant_filters_bias": draw_bias(config),
        "constant_filters_paths": draw_paths(),
        "constant_filters_evolution": draw_evolution(),
    }


# Depth


def size(kernel: int, stride: int, depth: int) -> int:
    """Return the length of the signals of the published study."""
    return kernel + (kernel - 1) * sum(stride**layer for layer in range(1, depth + 1)) + 1


def rectified_noise(key: jax.Array, image: Any) -> jax.Array:
    """Return ``relu(x + eta)``."""
    return jax.nn.relu(sj.perturb.SphericalNoise(RADIUS, spatial=1)(key, image))


def shift(key: jax.Array, image: Any) -> jax.Array:
    """Shift by one pixel, round the end."""
    return jnp.roll(image, 1, axis=0)


def measure(kernel: int, stride: int, depth: int, config: Config) -> dict[str, Any]:
    """Measure numerators, denominators, D, G and R after every ReLU by the probe, and compute them by theory."""
    pixels = size(kernel, stride, depth)
    network = sj.models.ConstantFilterCNN(1, kernel=kernel, stride=stride, depth=depth)
    result = sj.probe.stability(
        network,
        jnp.eye(pixels)[:, :, None],
        key=jax.random.key(config.seed),
        deformation=shift,
        noise=rectified_noise,
        draws=config.draws,
        select="activation",
        spatial=1,
    )
    layers = slice(1, None)  # without the images themselves
    of_noise = np.asarray(result.noise_numerators, np.float64)[layers]
    deformation, denominators = sj.theory.constant_filter_moments(kernel, stride, depth, pixels)
    noise = sj.theory.rectified_noise_numerators(kernel, stride, depth, pixels, radius=RADIUS)
    endless = sj.theory.infinite_chain(kernel, stride, depth, radius=RADIUS)
    measured = {
        "deformation_numerators": np.asarray(result.deformation_numerators, np.float64)[layers].mean((1, 2)),
        "noise_numerators": of_noise.mean((1, 2)),
        "denominators": np.asarray(result.pair_distance, np.float64)[layers],
        **{name: np.asarray(getattr(result, name), np.float64)[layers] for name in QUANTITIES[3:]},
    }
    return {
        "size": pixels,
        "measured": measured,
        "error of the noise numerators": of_noise.mean(2).std(1, ddof=1) / np.sqrt(config.draws),
        "fits": fits(kernel, stride, measured),
        "exact": {
            "deformation_numerators": deformation,
            "noise_numerators": noise,
            "denominators": denominators,
            "deformation": deformation / denominators,
            "noise": noise / denominators,
            "relative": deformation / noise,
        },
        "without border": {name: np.asarray(getattr(endless, name)) for name in QUANTITIES},
    }


def draw_numerators(measured: Mapping[tuple[int, int], Mapping[str, Any]]) -> Drawing:
    """Draw numerators and denominators against depth."""
    curves: dict[sj.theory.Quantity, str] = {
        "deformation_numerators": r"$\langle|f_k(\tau x)-f_k(x)|^2\rangle$",
        "noise_numerators": r"$\langle|f_k(x+\eta)-f_k(x)|^2\rangle$",
        "denominators": r"$\langle|f_k(x)-f_k(z)|^2\rangle$",
    }
    return _against_depth(measured, curves, "squared distance")


def draw_stability(measured: Mapping[tuple[int, int], Mapping[str, Any]]) -> Drawing:
    """Draw D, G and R against depth."""
    curves: dict[sj.theory.Quantity, str] = {"deformation": "$D_k$", "noise": "$G_k$", "relative": "$R_k=D_k/G_k$"}
    return _against_depth(measured, curves, "stability")


def _against_depth(
    measured: Mapping[tuple[int, int], Mapping[str, Any]], curves: Mapping[sj.theory.Quantity, str], ylabel: str
) -> Drawing:
    figure, panels = sj.plot.panels(-(-len(measured) // 3), 3, sharey=True)
    for axes, ((kernel, stride), numbers) in zip(panels.flat, measured.items(), strict=False):
        depth = np.arange(1, len(numbers["exact"]["denominators"]) + 1)
        for color, (name, label) in zip(sj.plot.COLORS[1:], curves.items(), strict=False):
            axes.plot(depth, numbers["measured"][name], "o", color=color, markersize=4.5, label=label)
            axes.plot(depth, numbers["exact"][name], "-", color=color, linewidth=1.2)
            axes.plot(depth, numbers["without border"][name], "--", color=color, linewidth=0.9)
        trap = " (the trap)" if kernel % stride else ""
        axes.set_title(f"kernel {kernel}, stride {stride}{trap}: {numbers['size']} pixels", fontsize=10)
        prediction = sj.theory.scaling(kernel, stride)
        written = [f"{label}: {law(prediction, name)}" for name, label in curves.items()]
        axes.text(0.03, 0.03, "\n".join(written), transform=axes.transAxes, fontsize=7.5, va="bottom")
        axes.set_yscale("log")
        axes.set_xticks(depth)
        axes.grid(axis="y", color="0.9")
    for axes in panels[-1]:
        axes.set_xlabel("layer $k$")
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    lines = [panels.flat[0].plot([], [], style, color="0.3", linewidth=1.1)[0] for style in ("-", "--")]
    figure.legend(
        [*handles, *lines],
        [*(f"{label}, measured" for label in labels), "closed form for this size", "closed form without border"],
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=9,
    )
    return figure, {"networks": {f"kernel {k}, stride {s}": numbers for (k, s), numbers in measured.items()}}


def law(prediction: sj.theory.Scaling, name: sj.theory.Quantity) -> str:
    """Write the predicted dependence on depth."""
    value = getattr(prediction, name)
    if value == (0 if prediction.law == "power" else 1):
        return "const"
    return f"$k^{{{value:g}}}$" if prediction.law == "power" else f"${value:.3g}^k$"


def fits(kernel: int, stride: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Fit the predicted exponents and factors to the measured layers from the second on."""
    prediction = sj.theory.scaling(kernel, stride)
    form = "power" if prediction.law == "power" else "geometric"
    result: dict[str, Any] = {"law": prediction.law, "condition": prediction.condition}
    for name in QUANTITIES:
        layers = range(2, len(values[name]) + 1)
        fitted = sj.theory.fit(values[name][1:], law=form, layers=layers) if len(layers) > 1 else None
        result[name] = {"predicted": getattr(prediction, name)} | (
            {"fitted": fitted.value, "error": fitted.error} if fitted else {}
        )
    return result


# Bias


def bias_cell(key: jax.Array, *, bias: jax.Array, radius: jax.Array) -> dict[str, jax.Array]:
    """Measure the noise stability of the pre-activations of the last layer, for the input ``x + eta``."""
    network = sj.models.ConstantFilterCNN(1, **BIAS_NETWORK, bias=bias)
    pixels = size(**BIAS_NETWORK)
    clean = jnp.eye(pixels)
    keys = jax.random.split(key, pixels)
    noisy = jax.vmap(sj.perturb.SphericalNoise(1.0))(keys, jnp.zeros_like(clean)) * radius + clean
    last = sj.features.capture(network, select=f"layers/{BIAS_NETWORK['depth'] - 1}")
    activations = [next(iter(last(x[:, :, None])[1].values())) for x in (clean, noisy)]
    change = jnp.mean(sj.stability.squared_change(*activations))
    return {"numerator": change, "noise_stability": change / sj.stability.pair_distance(activations[0])}


def draw_bias(config: Config) -> Drawing:
    """Draw ``G_f / eta^2`` against ``eta``: at the step from one plateau to the other noise switches units off."""
    radii = np.logspace(-4, 4, 5).astype(np.float32) if config.smoke else RADII
    result = sj.sweep.run(
        bias_cell,
        {"bias": BIASES[:: 4 if config.smoke else 1], "radius": radii},
        key=jax.random.key(config.seed),
        seeds=config.seeds,
        path=config.folder(f"constant_filters_bias_s{config.seed}_n{config.seeds}"),
    )
    biases = result.bias.to_numpy()
    pixels = size(**BIAS_NETWORK)
    stability = (result.noise_stability / result.radius**2).transpose("bias", "radius", "seed").to_numpy()
    numerator = (result.numerator / result.radius**2).transpose("bias", "radius", "seed").to_numpy()
    fine = np.logspace(-4, 4, 9 if config.smoke else 97)
    exact = sj.theory.raw_noise_numerator(
        **BIAS_NETWORK, size=pixels, bias=biases[:, None].astype(float), radius=fine[None]
    ) / (fine[None] ** 2)
    _, denominators = sj.theory.constant_filter_moments(**BIAS_NETWORK, size=pixels)

    figure, panels = sj.plot.panels(1, 1, size=(6.8, 4.6))
    axes = panels[0, 0]
    for value, samples, line, color in zip(biases, stability, exact, sj.plot.shades(len(biases)), strict=True):
        middle, error = samples.mean(1), samples.std(1, ddof=1) / np.sqrt(samples.shape[1])
        label = "0" if value == 0 else f"{value:.1e}"
        axes.errorbar(radii, middle, error, fmt="o", markersize=3, color=color, label=label, linewidth=0.8)
        axes.plot(fine, line / denominators[-1], "-", color=color, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(r"size of the noise $|\eta|$")
    axes.set_ylabel(r"$G_f\,/\,|\eta|^2$")
    axes.set_title(
        f"kernel 3, stride 2, depth 4, input $x+\\eta$ ({pixels} pixels, {config.seeds} noises of each image)\n"
        "dots: measured, with standard errors; lines: closed form",
        fontsize=9,
    )
    axes.legend(title="bias", fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(color="0.93")
    record = {
        "network": BIAS_NETWORK | {"size": pixels},
        "bias": biases,
        "radius": radii,
        "measured": {
            "noise_stability_over_radius_squared": stability.mean(2),
            "error": stability.std(2, ddof=1) / np.sqrt(stability.shape[2]),
            "numerator_over_radius_squared": numerator.mean(2),
        },
        "closed_form": {"radius": fine, "numerator_over_radius_squared": exact, "denominator": denominators[-1]},
    }
    return figure, record


# Paths


def draw_paths() -> Drawing:
    """Draw receptive fields, path counts of a unit, and their squared differences between neighbors."""
    figure, panels = sj.plot.panels(2, 3, size=(4.4, 3.0))
    fields, largest, differences = panels[1]
    numbers: dict[str, Any] = {}
    for axes, depth in zip(panels[0], (2, 3, 4), strict=True):
        n = sj.theory.path_counts(3, 2, depth)
        axes.bar(np.arange(len(n)) - (len(n) - 1) // 2, n, width=1.0, color="0.75", edgecolor="0.4", linewidth=0.6)
        axes.set_title(f"kernel 3, stride 2, layer {depth}: {len(n)} pixels", fontsize=9)
        axes.set(xlabel="pixel, from the middle of the field", ylabel="paths to the unit, $n_i$", ylim=(0, 5.4))
        numbers[f"path counts, kernel 3, stride 2, layer {depth}"] = n
    for color, ((kernel, stride), depth) in zip((*sj.plot.COLORS[1:6], "0.3"), NETWORKS.items(), strict=True):
        label = f"kernel {kernel}, stride {stride}"
        layers = list(range(1, depth + 1))
        counts = [sj.theory.path_counts(kernel, stride, k) for k in layers]
        squared = sj.theory.path_sums(kernel, stride, depth).squared_differences
        sums: dict[str, list[Any]] = {
            "receptive_fields": [len(n) for n in counts],
            "largest_counts": [int(n.max()) for n in counts],
            "sums_of_squared_differences": [int(total) for total in squared],
        }
        sums["squared_differences_per_pixel"] = [
            total / len(n) * (stride / kernel) ** (2 * k)
            for k, (total, n) in enumerate(zip(sums["sums_of_squared_differences"], counts, strict=True))
        ]
        style = {"marker": "s" if kernel % stride else "o", "linestyle": "--" if kernel % stride else "-"}
        for axes, name in (
            (fields, "receptive_fields"),
            (largest, "largest_counts"),
            (differences, "squared_differences_per_pixel"),
        ):
            axes.plot(layers, sums[name], color=color, markersize=4, label=label, **style)
        numbers[label] = sums
    for axes, ylabel in (
        (fields, "receptive field (pixels)"),
        (largest, "largest number of paths, $\\max_i n_i$"),
        (differences, r"$(s/F)^{2(k-1)}\,\langle(n_i-n_{i-1})^2\rangle_i$"),
    ):
        axes.set(yscale="log", xlabel="layer $k$", ylabel=ylabel)
    fields.legend(fontsize=8, frameon=False, loc="lower right")
    differences.set_title("the trap keeps its differences", fontsize=9)
    return figure, {"networks": numbers}


# Two lit pixels


def draw_evolution() -> Drawing:
    """Draw activations of two lit pixels and of each alone: overlapping filters smear them, pooling ones merge them."""
    smear, pool = responses(5, 1, 5, 41, (15, 27)), responses(2, 2, 5, 64, (18, 27))
    depth = len(smear)
    figure, panels = sj.plot.panels(depth, 2, size=(5.2, 1.15), sharex="col")
    for k, (left, right) in enumerate(zip(smear, pool, strict=True)):
        axes = panels[k, 0]
        position = np.arange(left.shape[1])
        axes.step(position, left[0], where="mid", color="0.2", linewidth=1.2)
        for color, alone in zip(sj.plot.COLORS[1:], left[1:], strict=False):
            axes.step(position, alone, where="mid", color=color, linewidth=1.3, linestyle=":")
        axes.set_ylim(0, 1.25 * left[0].max())
        axes.set_ylabel("input" if k == 0 else f"layer {k}", fontsize=9)
        cells = panels[k, 1]
        edges = np.linspace(0, 64, right.shape[1] + 1)
        cells.pcolormesh(edges, [0, 1], right[:1], cmap="Greys", vmin=0, vmax=2, edgecolor="0.8", lw=0.3)
        cells.set_yticks([])
        for axes in panels[k]:
            axes.tick_params(labelsize=7)
    panels[0, 0].set_title("kernel 5, stride 1: sum (steps), each pixel alone (dotted)", fontsize=9)
    panels[0, 1].set_title("kernel 2, stride 2: gray is 1, black is 2 (both pixels in one unit)", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("position in the image (pixels)", fontsize=9)
    return figure, {
        "kernel 5, stride 1": {"pixels": (15, 27), "activations": smear},
        "kernel 2, stride 2": {"pixels": (18, 27), "activations": pool},
    }


def responses(kernel: int, stride: int, depth: int, pixels: int, lit: tuple[int, int]) -> list[np.ndarray]:
    """Return input and activations, each ``(3, units)``: of both pixels, of the first alone, of the second alone."""
    network = sj.models.ConstantFilterCNN(1, kernel=kernel, stride=stride, depth=depth)
    first, second = jnp.eye(pixels)[np.array(lit)]
    images = jnp.stack([first + second, first, second])
    _, activations = sj.features.capture(network, select="activation")(images[:, :, None])
    return [np.asarray(images), *(np.asarray(a)[:, :, 0] for a in activations.values())]


if __name__ == "__main__":
    main()
