"""Convolution looked at: what kernels respond to, what it costs, what its units see, and what it learns on MNIST.

Draws five figures, each with its numbers beside it in ``.json``::

    convolutions_edges     digits and their responses to four edge kernels
    convolutions_routes    seconds of the three routes against the side of the kernel
    convolutions_field     the pixels that a unit of the second of two strided convolutions sees
    convolutions_rgb       a convolution of a color image as the sum of its channels' parts
    convolutions_training  validation accuracy of the primer's network, epoch by epoch

The primer is the chapter on convolutions of the course of fast.ai (2022, part 2, lesson 15). Finished trainings are
read, others go on where they were::

    python -m experiments.convolutions
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import stabjax as sj
from experiments import _networks, _primer, _routes
from experiments._study import Drawing, ResumableStudy, run

Figure: TypeAlias = Literal["edges", "routes", "field", "rgb", "training"]
Train: TypeAlias = Callable[[str, int], tuple[sj.train.Run, np.ndarray]]
"""From the name of a network and a seed to its training and the validation accuracies."""

COLORS = {"red": 1.0, "green": -0.5, "blue": -0.5}
"""Factor on the top-edge kernel for each channel: gray edges cancel."""


@dataclass(frozen=True)
class Config(ResumableStudy):
    """Convolution looked at: kernels, routes, fields, colors, training."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"digits": (0,), "kernels": (1, 3), "repeats": 3, "seeds": 1, "epochs": 1}

    figures: tuple[Figure, ...] = get_args(Figure)
    """Which to draw."""
    digits: tuple[int, ...] = (7, 0)
    """Training images of MNIST whose edges are drawn; the first is that of the primer."""
    image: int = 1237
    """Test image of CIFAR-10 that is taken apart."""
    kernels: tuple[int, ...] = (1, 3, 5, 7, 9, 11, 15)
    """Sides of the kernels that are timed."""
    repeats: int = 15
    """Timings of each."""
    seeds: int = 5
    """Networks trained."""
    epochs: int = 5
    """Passes through the training images at each of the two learning rates."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure and train what the figures that are asked for need."""

    @cache
    def digits() -> _primer.Digits:
        return _primer.load_digits(smoke=config.smoke, seed=config.seed)

    @cache
    def train(name: str, seed: int) -> tuple[sj.train.Run, np.ndarray]:
        path = config.folder(f"convolutions_{name.split()[0]}_e{config.epochs}_s{seed}")
        options = {"path": path, "progress": console.is_terminal}
        return _primer.train(digits(), _primer.NETWORKS[name], epochs=config.epochs, seed=seed, **options)

    timing = {"repeats": config.repeats, "seed": config.seed, "smoke": config.smoke}
    draw: Mapping[Figure, Callable[[], Drawing]] = {
        "edges": lambda: draw_edges(config, digits()),
        "routes": lambda: _routes.draw(config.kernels, **timing),
        "field": lambda: draw_field(config, digits(), train),
        "rgb": lambda: draw_rgb(config),
        "training": lambda: draw_training(config, digits(), train),
    }
    return {f"convolutions_{name}": draw[name]() for name in config.figures}


def draw_edges(config: Config, digits: _primer.Digits) -> Drawing:
    """Draw digits, and where the four edge kernels respond."""
    kernels = sj.conv.edge_kernels()
    images = digits.pixels(digits.training[0][list(config.digits)])
    maps = {name: np.asarray(sj.conv.convolve(images, kernel))[..., 0] for name, kernel in kernels.items()}
    # Windows of rows 3:6 and 7:10, columns 14:17.
    marks = {(4, 15): "rows 3:6", (8, 15): "rows 7:10"}
    first = {text: float(sj.conv.apply_kernel(images[0], kernels["top"], at)[0]) for at, text in marks.items()}
    figure, grid = sj.plot.panels(len(images), 5, size=(2.1, 2.2), sharex=True, sharey=True)
    for k, (row, index) in enumerate(zip(grid, config.digits, strict=True)):
        row[0].imshow(images[k, ..., 0], cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(f"image {index}, a {digits.training[1][index]}", fontsize=9)
        for axes, (name, kernel) in zip(row[1:], kernels.items(), strict=True):
            axes.imshow(maps[name][k], cmap="RdBu_r", vmin=-3, vmax=3)
            if k == 0:
                axes.set_title(f"{name}\n{_rows(kernel[..., 0, 0])}", fontsize=8, family="monospace")
    for (y, x), text in marks.items():
        for axes in grid[0, :2]:
            axes.plot(*(np.array([x, y])[:, None] + 1.5 * _SQUARE), color="#27ae60", linewidth=1.2)
        grid[0, 1].text(8, y, f"{first[text]:.4f}", fontsize=6.5, ha="right", va="center", color="#145a32")
    for axes in grid.ravel():
        axes.tick_params(labelsize=6)
    grid[0, 0].set_title("pixels, from 0 (black)\nto 1 (white)", fontsize=8)
    figure.colorbar(grid[0, 1].images[0], ax=grid, label="response (pixels times weights)", shrink=0.7)
    figure.suptitle(f"Training images of {digits.name}, 28 x 28, and their responses to four 3 x 3 kernels", fontsize=9)
    numbers = {
        "data": digits.name,
        "labels": [int(digits.training[1][index]) for index in config.digits],
        "top": {"image": config.digits[0], "columns": "14:17"} | first,
        "range": {name: [float(responses.min()), float(responses.max())] for name, responses in maps.items()},
        "maps": {name: np.round(responses, 4) for name, responses in maps.items()},
    }
    return figure, numbers


def draw_field(config: Config, digits: _primer.Digits, train: Train) -> Drawing:
    """Draw the box of pixels that a unit of the second convolution sees: by arithmetic, paths, trial, and gradients."""
    # Its gradients take long to compile.
    untrained = _primer.convolutional(rngs=nnx.Rngs(config.seed)) if config.smoke else None
    network = sj.networks.wrap(untrained or train("SimpleCNN", config.seed)[0].model())
    images = jnp.asarray(digits.pixels(digits.validation[0][:200]))
    first, second = [tap.name for tap in sj.features.taps(network, images) if tap.kind == "conv"][:2]
    place = (3, 3)
    extents = sj.receptive.extent(network, images)
    options = {"tap": second, "unit": place}
    paths = sj.receptive.constant_weight(network, images, **options)
    gradient = np.asarray(sj.receptive.effective(network, images, **options))
    (top, bottom), (left, right) = box = extents[second].box(place)

    # One pixel at a time: does the unit, any of its channels, change for any of these images?
    responses = jax.jit(lambda x: sj.features.capture(network, select=second)(x)[1][second][:, *place])
    steps = jnp.eye(28 * 28).reshape(-1, 28, 28, 1)
    changes = np.zeros((28, 28), bool)
    for image in images[:10]:
        differs = np.asarray(responses(image + steps)) != np.asarray(responses(image[None]))
        changes |= differs.any(-1).reshape(28, 28)

    figure, grid = sj.plot.panels(1, 3, size=(3.6, 3.7))
    grid[0, 0].imshow(images[0, ..., 0], cmap="gray")
    window = 2 * place[0]
    boxes = {"second": (box, "#e67e22"), "first": (extents[first].box((window, window)), "#27ae60")}
    for name, (((low, high), (begin, end)), color) in boxes.items():
        corners = np.array([begin + end - 1, low + high - 1])[:, None] / 2 + (high - low) / 2 * _SQUARE
        label = f"a unit of the {name}: {high - low} x {end - begin}"
        grid[0, 0].plot(*corners, color=color, linewidth=1.5, label=label)
    grid[0, 0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=8)
    grid[0, 0].set_title("a validation image", fontsize=9)
    panels = {
        "paths to the unit (all weights one)": paths,
        f"{'untrained' if untrained else 'trained'}: mean |gradient| / its maximum": gradient,
    }
    for axes, (title, values) in zip(grid[0, 1:], panels.items(), strict=True):
        image = axes.imshow(values / (1 if values is paths else values.max()), cmap="magma")
        axes.set(xlim=(left - 1.5, right + 0.5), ylim=(bottom + 0.5, top - 1.5), title=title)
        axes.title.set_fontsize(9)
        figure.colorbar(image, ax=axes, shrink=0.7)
    for y, x in np.ndindex(bottom - top, right - left):
        count = paths[top + y, left + x]
        grid[0, 1].text(
            left + x,
            top + y,
            f"{count:.0f}",
            ha="center",
            va="center",
            color="black" if count > 3 else "white",
            fontsize=8,
        )
    for axes in grid[0]:
        axes.set_xlabel("column (pixels)", fontsize=8)
        axes.tick_params(labelsize=7)
    grid[0, 0].set_ylabel("row (pixels)", fontsize=8)
    figure.suptitle(
        f"{digits.name}, 28 x 28 pixels, {len(images)} images: unit {place} of the second of two 3 x 3 convolutions "
        f"of stride 2 sees {bottom - top} x {right - left} pixels",
        fontsize=10,
    )
    return figure, {
        "data": digits.name,
        "taps": [first, second],
        "unit": place,
        "extents": {name: asdict(extents[name]) for name in (first, second)},
        "box": box,
        "pixels_with_a_path": int((paths > 0).sum()),
        "pixels_that_change_it": int(changes.sum()),
        "all_within_the_box": not changes[_outside(box)].any() and not gradient[_outside(box)].any(),
        "paths": paths[top:bottom, left:right],
        "gradient": np.round(gradient[top:bottom, left:right], 6),
    }


def draw_rgb(config: Config) -> Drawing:
    """Draw a convolution of three channels as the sum of three convolutions of one."""
    if config.smoke:
        task = sj.data.ScaleTask.plane(size=32)
        drawn = sj.data.scale_detection(jax.random.key(config.seed), 3, task=task)
        image, name, note = np.moveaxis(np.asarray(drawn.images / task.value)[..., 0], 0, -1), "two lit pixels", ""
    else:
        images, labels = sj.data.load("cifar10", "test")
        source = sj.data.describe("cifar10")
        image, name, note = (
            images[config.image],
            f"CIFAR-10{'' if source.exact else ' (JPEG copy)'}, {source.classes[labels[config.image]]}",
            source.note,
        )
    kernel = sj.conv.edge_kernels()["top"] * np.array(list(COLORS.values()), np.float32)[:, None]

    def response(channels: slice) -> np.ndarray:
        return np.asarray(sj.conv.convolve(image[None, ..., channels], kernel[:, :, channels], padding="valid"))[
            0, ..., 0
        ]

    total, parts = response(slice(None)), np.stack([response(slice(c, c + 1)) for c in range(3)])
    figure, grid = sj.plot.panels(2, 5, size=(2.1, 2.25), sharex=True, sharey=True)
    limit = float(np.abs(parts).max())
    maps: dict[tuple[int, int], tuple[str, np.ndarray]] = {(0, 4): ("the 3 x 3 x 3 kernel", total)}
    maps[1, 4] = "sum of the three", parts.sum(0)
    grid[0, 0].imshow(image)
    grid[0, 0].set_title("image", fontsize=9)
    for c, (color, factor) in enumerate(COLORS.items()):
        grid[0, 1 + c].imshow(image[..., c], cmap="gray", vmin=0, vmax=1)
        grid[0, 1 + c].set_title(f"{color}: 0 (black) to 1", fontsize=9)
        maps[1, 1 + c] = f"{color}, {factor:g} times top", parts[c]
    for place, (title, values) in maps.items():
        # Responses are of windows that lie inside the image.
        grid[place].imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0.5, 30.5, 30.5, 0.5))
        grid[place].set_title(title, fontsize=9)
    grid[1, 0].axis("off")
    grid[1, 0].text(
        0.5,
        0.5,
        f"top:\n{_rows(kernel[..., 0, 0])}",
        ha="center",
        va="center",
        family="monospace",
        transform=grid[1, 0].transAxes,
    )
    for axes in grid.ravel():
        axes.set(xlim=(-0.5, 31.5), ylim=(31.5, -0.5))
        axes.tick_params(labelsize=6)
    figure.colorbar(grid[0, 4].images[0], ax=grid, label="response", shrink=0.7)
    difference = float(np.abs(total - parts.sum(0)).max())
    figure.suptitle(
        f"{name}, 32 x 32 x 3: three responses and their sum, which differs from the convolution by {difference:.0e}",
        fontsize=9,
    )
    return figure, {
        "data": note or name,
        "image": name,
        "kernel": kernel[..., 0],
        "largest_difference": difference,
        "root_mean_square": {"sum": _rms(total)} | {c: _rms(part) for c, part in zip(COLORS, parts)},
        "parts": np.round(parts, 4),
    }


def draw_training(config: Config, digits: _primer.Digits, train: Train) -> Drawing:
    """Draw the validation accuracy after every epoch of the primer's two networks, with the published numbers."""
    numbers: dict[str, Any] = {}
    figure, grid = sj.plot.panels(1, 1, size=(6.4, 4.4))
    axes = grid[0, 0]
    epochs = np.arange(1, 2 * config.epochs + 1)
    for color, name in zip(sj.plot.COLORS[1:], list(_primer.NETWORKS)[config.smoke :], strict=False):
        many = [train(name, config.seed + k) for k in range(config.seeds)]
        trained, accuracy = many[0][0], np.stack([each for _, each in many], axis=1)
        sizes = _networks.parameters(trained.model("last"))
        numbers[name] = {
            "parameters": sum(sizes),
            "parameters_by_array": sizes,
            "accuracy": accuracy.tolist(),
            "final": {"mean": float(accuracy[-1].mean()), "lowest": float(accuracy[-1].min())}
            | {"highest": float(accuracy[-1].max()), "deviation": float(accuracy[-1].std())},
            "seconds_of_half_a_training": float(trained.history.seconds[-1]),
        }
        error = 100 * (1 - accuracy)
        axes.plot(epochs, error.mean(1), "o-", color=color, markersize=4, label=f"{name}, {sum(sizes):,} parameters")
        axes.fill_between(epochs, error.min(1), error.max(1), color=color, alpha=0.2, linewidth=0)
    if not config.smoke:
        published = 100 * (1 - np.array(_primer.PUBLISHED))
        axes.plot(range(1, len(_primer.PUBLISHED) + 1), published, "kx--", linewidth=0.8, label="SimpleCNN, published")
    axes.axvline(config.epochs + 0.5, color="0.7", linewidth=0.8, linestyle="--")
    axes.set(yscale="log", xlabel="epoch", ylabel="validation error (%)")
    axes.set_xticks(epochs)
    axes.grid(color="0.93")
    axes.legend(frameon=False, fontsize=9)
    sj.plot.plain_ticks(axes.yaxis)
    final = "; ".join(f"{name} {each['final']['mean']:.4f}" for name, each in numbers.items())
    axes.set_title(
        f"{digits.name}, {len(digits.training[0]):,} images, {len(digits.validation[0]):,} more for validation\n"
        f"SGD, batch 256, rate {' then '.join(map(str, _primer.RATES))}; mean and range of {config.seeds} seeds\n"
        f"Final accuracy: {final}; published {_primer.PUBLISHED[-1]}",
        fontsize=9,
    )
    return figure, {"data": digits.name, "published": _primer.PUBLISHED, "networks": numbers}


def _outside(box: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return a mask of the pixels of a 28 x 28 image that are not in the box."""
    outside = np.ones((28, 28), bool)
    outside[tuple(slice(max(low, 0), high) for low, high in box)] = False
    return outside


def _rows(kernel: np.ndarray) -> str:
    """Write a kernel of whole numbers, line by line."""
    return "\n".join(" ".join(f"{int(weight):2d}" for weight in line) for line in kernel)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


_SQUARE = np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]])
"""Corners of a square of side two around the origin, x over y, closed."""


if __name__ == "__main__":
    main()
