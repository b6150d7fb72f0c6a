"""Convolutions of many shapes: the route of this library against XLA's own and torch's, forward and with gradients.

Batch 128, float32, two threads, all in one run. Each time is the median of repeats of one compiled call; compilation is
reported beside it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks._timing import compile_call, median_milliseconds, row
from stabjax import conv

BATCH = 128
# name: (size, kernel, in, out, stride, groups)
SHAPES = {
    "3x3, 3-64, 32x32": (32, 3, 3, 64, 1, 1),
    "3x3, 64-64, 16x16": (16, 3, 64, 64, 1, 1),
    "3x3, 64-128, 16x16": (16, 3, 64, 128, 1, 1),
    "3x3, 256-256, 8x8": (8, 3, 256, 256, 1, 1),
    "3x3, 512-512, 4x4": (4, 3, 512, 512, 1, 1),
    "3x3, 256-256, 2x2": (2, 3, 256, 256, 1, 1),
    "3x3 stride 2, 32-64, 32x32": (32, 3, 32, 64, 2, 1),
    "1x1, 64-128, 16x16": (16, 1, 64, 128, 1, 1),
    "3x3, 1-1, 28x28": (28, 3, 1, 1, 1, 1),
    "depthwise 3x3, 64, 16x16": (16, 3, 64, 64, 1, 64),
    "depthwise 7x7, 64, 16x16": (16, 7, 64, 64, 1, 64),
    "32 groups, 3x3, 64-64, 16x16": (16, 3, 64, 64, 1, 32),
}


def run() -> list[dict]:
    torch.set_num_threads(2)
    draw, rows = np.random.default_rng(0), []
    for name, (size, kernel, channels, out, stride, groups) in SHAPES.items():
        image = draw.standard_normal((BATCH, size, size, channels), dtype=np.float32)
        weight = draw.standard_normal((kernel, kernel, channels // groups, out), dtype=np.float32)
        x, w = jnp.asarray(image), jnp.asarray(weight)
        low = (kernel - 1) // 2
        options = {
            "window_strides": (stride, stride),
            "padding": ((low, low), (low, low)),
            "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
            "feature_group_count": groups,
        }

        def both(convolve: Callable, options: dict = options) -> tuple[Callable, Callable]:
            def forward(x: jax.Array, w: jax.Array) -> jax.Array:
                return convolve(x, w, **options)

            return forward, jax.value_and_grad(lambda x, w: jnp.sum(jnp.square(forward(x, w))), (0, 1))

        tx = torch.tensor(np.moveaxis(image, -1, 1).copy(), requires_grad=True)
        tw = torch.tensor(weight.transpose(3, 2, 0, 1).copy(), requires_grad=True)

        def torch_forward(
            tx: torch.Tensor = tx, tw: torch.Tensor = tw, stride: int = stride, low: int = low, groups: int = groups
        ) -> torch.Tensor:
            return torch.nn.functional.conv2d(tx, tw, stride=stride, padding=low, groups=groups)

        def torch_gradients(tx: torch.Tensor = tx, tw: torch.Tensor = tw, f: Callable = torch_forward) -> None:
            tx.grad = tw.grad = None
            f().square().sum().backward()

        with torch.no_grad():
            peer_forward = median_milliseconds(torch_forward)
        peers = (("forward", peer_forward), ("with gradients", median_milliseconds(torch_gradients)))
        ours, theirs = both(conv.conv_general_dilated), both(lax.conv_general_dilated)
        for (mode, peer), f, plain in zip(peers, ours, theirs, strict=True):
            call, seconds = compile_call(f, x, w)
            time_ours = median_milliseconds(call)
            rows.append(row(f"{name}, {mode}", time_ours, seconds, "torch", peer))
            repeats = 1 if mode == "with gradients" and groups > 1 else 5
            rows.append(
                row(
                    f"{name}, {mode}",
                    time_ours,
                    seconds,
                    "XLA",
                    median_milliseconds(compile_call(plain, x, w)[0], repeats),
                )
            )
    return rows


if __name__ == "__main__":
    for line in run():
        print(line)
