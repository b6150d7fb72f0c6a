"""Deform a batch of images, one random field each: the time from keys and images to deformed images.

Each library draws its own amplitudes, makes the field of them and samples the image bilinearly; on equal amplitudes the
peers (torch, kornia, dm-pix) are compared with stabjax before they are timed in the same run. The loop over images is
written as the published code does it. Times are medians, ratios stabjax over peer (below one: stabjax is faster),
``copies`` is the time in copies of the same bytes.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import kornia
import numpy as np
import torch

from benchmarks._timing import compile_call, median_milliseconds
from stabjax import fields, perturb, warp

CUTOFF = 3
# name: (images, side, channels, repeats, repeats of the loop)
SIZES = {
    "500 images 32x32x3": (500, 32, 3, 41, 3),
    "64 images 224x224x3": (64, 224, 3, 15, 3),
}


def amplitudes() -> np.ndarray:
    """Return standard deviations of the sine amplitudes at temperature one, zero beyond the cutoff."""
    i = np.arange(1, CUTOFF + 1)
    square = i[:, None] ** 2 + i**2
    return np.where(square < (CUTOFF + 0.5) ** 2, 1 / np.sqrt(square), 0).astype(np.float32)


def sine_table(n: int) -> np.ndarray:
    """Return ``sin(i pi u)`` at the pixels of one axis, ``(cutoff, n)``."""
    return np.sin(np.pi * np.arange(1, CUTOFF + 1)[:, None] * np.linspace(0, 1, n)).astype(np.float32)


def torch_fields(coefficients: torch.Tensor, n: int, temperature: float) -> torch.Tensor:
    """Return displacements ``(..., 2, n, n)`` of coefficients ``(..., 2, c, c)``."""
    table = torch.from_numpy(sine_table(n))
    return n * math.sqrt(temperature) * (table.T @ coefficients @ table)


def torch_one(image: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Sample one image ``(channels, n, n)`` bilinearly by four gathers."""
    n = image.shape[-1]
    rows, columns = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    y = (rows - field[0]).clamp(0, n - 1)
    x = (columns - field[1]).clamp(0, n - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = y.ceil().long(), x.ceil().long()
    v, u = y - top, x - left
    return (
        (1 - v) * (1 - u) * image[:, top, left]
        + (1 - v) * u * image[:, top, right]
        + v * (1 - u) * image[:, bottom, left]
        + v * u * image[:, bottom, right]
    )


def torch_loop(images: torch.Tensor, fields_of: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """Deform one image after the other, each with its field."""
    return torch.stack([torch_one(image, fields_of(k)) for k, image in enumerate(images)])


def torch_positions(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the pixels of a batch come from: rows and columns, ``(batch, n, n)`` each."""
    steps = torch.arange(field.shape[-1])
    return steps[:, None] - field[:, 0], steps - field[:, 1]


def torch_batch(images: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Deform all images at once by `grid_sample`."""
    y, x = torch_positions(field)
    grid = torch.stack([x, y], -1) * (2 / (images.shape[-1] - 1)) - 1
    return torch.nn.functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def kornia_batch(images: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """Deform all images at once by kornia's `remap`."""
    y, x = torch_positions(field)
    return kornia.geometry.transform.remap(images, x, y, padding_mode="border", align_corners=True)


def pix_one(image: Any, field: Any) -> Any:
    """Deform one image ``(n, n, channels)`` by dm-pix, channel by channel."""
    n = image.shape[0]
    grid = jnp.asarray(np.indices((n, n)), field.dtype)
    sample = partial(dm_pix.flat_nd_linear_interpolate, coordinates=jnp.clip(grid - field, 0, n - 1))
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def pix_deform(key: Any, image: Any, temperature: float) -> Any:
    """Draw a field and deform one image by it, by dm-pix."""
    n = image.shape[0]
    coefficients = amplitudes() * jax.random.normal(key, (2, CUTOFF, CUTOFF))
    table = sine_table(n)
    return pix_one(image, n * math.sqrt(temperature) * (table.T @ coefficients @ table))


def check_peers(count: int, n: int, channels: int, temperature: float) -> None:
    """Raise unless all libraries make the same images of the same amplitudes."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, n, n, channels)).astype(np.float32)
    coefficients = amplitudes() * rng.normal(size=(count, 2, CUTOFF, CUTOFF)).astype(np.float32)
    field = jax.vmap(lambda c: fields.synthesize(c, (n, n), temperature))(coefficients)
    ours = np.asarray(jax.vmap(warp.pull_back)(images, field))
    first, theirs = (
        torch.from_numpy(images).movedim(-1, 1),
        torch_fields(torch.from_numpy(coefficients), n, temperature),
    )
    for found in (
        torch_loop(first, lambda k: theirs[k]),
        torch_batch(first, theirs),
        kornia_batch(first, theirs),
        torch.from_numpy(np.array(jax.vmap(pix_one)(images, field))).movedim(-1, 1),
    ):
        np.testing.assert_allclose(found.movedim(1, -1), ours, atol=2e-3)


def measure(name: str, count: int, n: int, channels: int, repeats: int, loop_repeats: int) -> list[dict]:
    """Time one size; return one row for each peer."""
    temperature = float(fields.temperature(1.0, CUTOFF, (n, n), convention="paper"))
    check_peers(4, n, channels, temperature)
    key = jax.random.key(0)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count))
    images = jax.random.normal(key, (count, n, n, channels))
    first = torch.from_numpy(np.array(images)).movedim(-1, 1).contiguous()
    scale = torch.from_numpy(amplitudes())

    def draw(*batch: int) -> torch.Tensor:
        return torch_fields(scale * torch.randn(*batch, 2, CUTOFF, CUTOFF), n, temperature)

    def deform(perturbation: perturb.Diffeomorphism, keys: Any, images: Any) -> Any:
        return jax.vmap(perturbation)(keys, images)

    ours, compile_s = compile_call(deform, perturb.Diffeomorphism(temperature, CUTOFF), keys, images)
    pix, _ = compile_call(jax.vmap(partial(pix_deform, temperature=temperature)), keys, images)
    copy, _ = compile_call(jnp.copy, images)
    # The peers are timed between repeats of our own time, which is taken several times: the machine's pace drifts.
    times = {"copy": median_milliseconds(copy, repeats)}
    mine = [median_milliseconds(ours, repeats)]
    for peer, call, times_called in (
        ("torch, loop over images", lambda: torch_loop(first, lambda _: draw()), loop_repeats),
        ("torch, grid_sample", lambda: torch_batch(first, draw(count)), repeats),
        ("kornia, remap", lambda: kornia_batch(first, draw(count)), repeats),
        ("dm-pix, flat_nd_linear_interpolate", pix, min(repeats, 9)),
    ):
        times[peer] = median_milliseconds(call, times_called)
        mine.append(median_milliseconds(ours, repeats))
    floor, stabjax_ms = times.pop("copy"), statistics.median(mine)
    return [
        {
            "name": name,
            "stabjax_ms": round(stabjax_ms, 2),
            "compile_s": round(compile_s, 2),
            "peer": peer,
            "peer_ms": round(peer_ms, 2),
            "ratio": round(stabjax_ms / peer_ms, 4),
            "copy_ms": round(floor, 2),
            "copies": round(stabjax_ms / floor, 2),
        }
        for peer, peer_ms in times.items()
    ]


def run() -> list[dict]:
    """Return the rows of the table, one for each size and peer."""
    with torch.inference_mode():
        return [row for name, size in SIZES.items() for row in measure(name, *size)]


if __name__ == "__main__":
    for line in run():
        print(line)
