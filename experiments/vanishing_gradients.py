"""Why the gradients of a sum of far Gaussians vanish, and what log space and a median bandwidth give.

Ten points ``y_i`` (normal, in three dimensions) are to move so that their squares come near ``x = (8, 3, 4)``::

    plain       sigmoid(sum_i exp(-|x - y_i^2|^2 / sigma))
    log space   log sum_i exp(-|x - y_i^2|^2 / sigma)

with ``sigma = 1`` or the median of the squared distances ``|x - y_i^2|^2``, of each draw of points at the start. Draws
one figure with its numbers beside it, ``vanishing_gradients``::

    python -m experiments.vanishing_gradients
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import stabjax as sj
from experiments._study import Drawing, Study, run

X = (8.0, 3.0, 4.0)
"""Where the squares of the points are to go."""


@dataclass(frozen=True)
class Config(Study):
    """Why the gradients of a sum of far Gaussians vanish."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"draws": 20, "followed": 4, "steps": 100}

    draws: int = 1000
    """Draws of the points, for the gradients."""
    followed: int = 200
    """Of these, draws that are optimized."""
    points: int = 10
    """Points in each."""
    steps: int = 2000
    """Steps of Adam."""
    rate: float = 0.01
    """Its rate."""


def squared_distances(y: Any) -> Any:
    """Return ``|x - y_i^2|^2`` of points ``(..., points, 3)``, squared element by element."""
    return ((np.asarray(X, y.dtype) - y**2) ** 2).sum(-1)


def plain(y: Any, sigma: Any) -> Any:
    """Return the objective as it is usually written, for points ``(points, 3)``."""
    return jax.nn.sigmoid(jnp.sum(jnp.exp(-squared_distances(y) / sigma)))


def log_space(y: Any, sigma: Any) -> Any:
    """Return the logarithm of the sum, likewise."""
    return jax.nn.logsumexp(-squared_distances(y) / sigma)


@dataclass(frozen=True)
class Variant:
    """A way to write the objective, and to climb it."""

    objective: Callable[[Any, Any], Any]
    dtype: Any = np.float64
    median: bool = False
    """Whether ``sigma`` is the median squared distance, instead of 1."""
    epsilon: float = 1e-8
    """What Adam adds to the size of the gradient before it divides by it."""


VARIANTS: Mapping[str, Variant] = {
    "plain, float32": Variant(plain, np.float32),
    "plain, float64": Variant(plain),
    "log space": Variant(log_space),
    "plain, median bandwidth": Variant(plain, median=True),
    "log space, median bandwidth": Variant(log_space, median=True),
    "plain, float64, Adam with $\\epsilon = 0$": Variant(plain, epsilon=0.0),
}
"""The last has the gradients of the second."""
STYLES = ("0.2", "#c0392b", "#2471a3", "#1e8449", "#7d3c98", "#c0392b")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure the gradients of every variant, and climb by each."""
    y = np.random.default_rng(config.seed).normal(size=(config.draws, config.points, 3))
    distances = squared_distances(y)
    slopes = {name: gradients(y, variant) for name, variant in VARIANTS.items() if variant.epsilon}
    paths = {name: climb(y[: config.followed], variant, config) for name, variant in VARIANTS.items()}
    numbers = {
        "quantiles": QUANTILES,
        "exponents": {"nearest": _over_draws(-distances.min(1)), "farthest": _over_draws(-distances.max(1))},
        "median_squared_distance": _over_draws(np.median(distances, axis=1)),
        "gradients": {name: summary(*each) for name, each in slopes.items()},
        "float32_against_float64": precision(slopes["plain, float32"][0], slopes["plain, float64"][0]),
        "share_of_draws_with_an_arrival": {
            name: float(np.mean(path["arrived"][:, -1] > 0)) for name, path in paths.items()
        },
        "climbs": {
            name: {k: np.round(_over_draws(v[:, ::20]), 5) for k, v in path.items()} for name, path in paths.items()
        },
    }
    figure = draw(config, distances, {name: norms for name, (norms, _) in slopes.items()}, paths)
    return {"vanishing_gradients": (figure, numbers)}


def gradients(y: np.ndarray, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """Return the norm of each point's gradient, ``(draws, points)``, and the value of the objective, ``(draws,)``."""
    with jax.enable_x64(variant.dtype == np.float64):
        both = jax.jit(jax.vmap(jax.value_and_grad(variant.objective)))
        value, gradient = both(jnp.asarray(y, variant.dtype), jnp.asarray(bandwidths(y, variant), variant.dtype))
    # In single precision the square of 1e-20 is zero, and so would be the norm.
    return np.linalg.norm(np.asarray(gradient, np.float64), axis=-1), np.asarray(value)


def bandwidths(y: np.ndarray, variant: Variant) -> np.ndarray:
    """Return ``sigma`` of each draw, ``(draws,)``."""
    return np.median(squared_distances(y), axis=1) if variant.median else np.ones(len(y))


def climb(y: np.ndarray, variant: Variant, config: Config) -> dict[str, np.ndarray]:
    """Follow Adam on the points of each draw, by one measure for all variants: at ``sigma = 1``, in log space.

    Returns:
        ``objective`` at ``sigma = 1`` in log space, and ``arrived``, the number of points whose square is less than one
        from ``x``; ``(draws, steps + 1)`` each.
    """
    adam = optax.adam(config.rate, eps=variant.epsilon)

    def progress(y: Any) -> tuple[Any, Any]:
        return log_space(y, 1.0), jnp.sum(squared_distances(y) < 1)

    def of_draw(y: Any, sigma: Any) -> tuple[Any, Any]:
        def step(carry: Any, _: None) -> tuple[Any, Any]:
            y, state = carry
            updates, state = adam.update(-jax.grad(variant.objective)(y, sigma), state)
            return (y + updates, state), progress(y)

        (last, _), path = jax.lax.scan(step, (y, adam.init(y)), None, length=config.steps)
        return jax.tree.map(lambda path, end: jnp.append(path, end), path, progress(last))

    with jax.enable_x64(variant.dtype == np.float64):
        sigma = jnp.asarray(bandwidths(y, variant), variant.dtype)
        objective, arrived = jax.jit(jax.vmap(of_draw))(jnp.asarray(y, variant.dtype), sigma)
    return {"objective": np.asarray(objective, np.float64), "arrived": np.asarray(arrived, np.float64)}


def summary(norms: np.ndarray, value: np.ndarray) -> dict[str, Any]:
    """Summarize the gradients of one variant over draws."""
    return {
        "smallest": _over_draws(norms.min(1)),
        "largest": _over_draws(norms.max(1)),
        "points_above_a_thousandth_of_the_largest": _over_draws((norms > 1e-3 * norms.max(1, keepdims=True)).sum(1)),
        "points_above_1e-4": _over_draws((norms > 1e-4).sum(1)),
        "value": _over_draws(value),
        "share_of_draws_with_value_of_exactly_one_half": float(np.mean(value == 0.5)),
    }


def precision(single: np.ndarray, double: np.ndarray) -> dict[str, float]:
    """Compare gradients in single precision with those in double: how far by rounding, and where they are zero."""
    there = single > 0
    return {
        "share_zero_in_float32": float(np.mean(~there)),
        "share_zero_in_float64": float(np.mean(double == 0)),
        "median_relative_difference_elsewhere": float(
            np.median(np.abs(single / np.where(there, double, 1) - 1)[there])
        ),
        "largest_lost_to_zero": float(double[~there].max(initial=0)),
    }


QUANTILES = (0.025, 0.1, 0.5, 0.9, 0.975)


def _over_draws(values: np.ndarray) -> np.ndarray:
    return np.quantile(np.asarray(values, np.float64), QUANTILES, axis=0)


def draw(
    config: Config,
    distances: np.ndarray,
    norms: Mapping[str, np.ndarray],
    paths: Mapping[str, Mapping[str, np.ndarray]],
) -> Any:
    """Draw gradients against distances; objective and arrivals against steps."""
    figure, grid = sj.plot.panels(1, 3, size=(4.7, 4.4))
    some = slice(min(60, config.draws))
    for color, (name, each) in zip(STYLES, norms.items(), strict=False):
        style: dict[str, Any] = {"markersize": 2, "color": color, "zorder": 3}
        if name == "plain, float64":
            style |= {"markersize": 4, "markerfacecolor": "none", "markeredgewidth": 0.5, "zorder": 2}
        grid[0, 0].plot(distances[some].ravel(), each[some].ravel(), "o", **style)
    grid[0, 0].set(
        yscale="log",
        xlim=(0, 120),
        ylim=(1e-52, 1e4),
        xlabel="squared distance $|x - y_i^2|^2$ at the start",
        ylabel="norm of the gradient of a point",
        title=f"Gradients, the points of {some.stop} draws",
    )
    grid[0, 0].axhline(float(np.finfo(np.float32).tiny), color="0.7", linewidth=0.8, linestyle="--")
    grid[0, 0].text(2, 3e-41, "smallest normal float32", fontsize=7, color="0.4")
    step = np.arange(config.steps + 1)
    for color, (name, path) in zip(STYLES, paths.items(), strict=True):
        style = {"linestyle": ":", "zorder": 3} if name == "plain, float32" else {}
        style |= {"linestyle": "--"} if not VARIANTS[name].epsilon else {}
        for axes, values in zip(grid[0, 1:], path.values(), strict=True):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
            axes.plot(step, middle, color=color, linewidth=1.4, label=name, **style)
            axes.fill_between(step, low, high, color=color, alpha=0.12, linewidth=0)
    grid[0, 1].set(
        xlabel=f"step of Adam, rate {config.rate:g}",
        ylabel="$\\log \\sum_i \\exp(-|x - y_i^2|^2)$",
        title="Objective, on one scale for all",
    )
    grid[0, 2].set(
        xlabel=f"step of Adam, rate {config.rate:g}",
        ylabel="points less than 1 from $x$",
        ylim=(-0.3, config.points + 0.3),
        title=f"Points that arrived, of {config.points}",
    )
    for axes in grid[0]:
        axes.grid(color="0.93")
        axes.title.set_fontsize(9)
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(
        f"{config.points} normal points, x = {X}; Adam on {config.followed} draws: median and quartiles\n"
        "Gradients vanish with distance, hardly by rounding; log space moves the nearest point, a median bandwidth all",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    main()
