"""VGG11 with batch normalization at full width: 500 images forward, and a training step of 128, against torch.

Both libraries run two threads in the same process; times are medians, compilation is reported beside them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from jax import lax

from benchmarks._timing import compile_call, median_milliseconds, row
from stabjax import models

IMAGES, BATCH, STEP = 500, 125, 128
STEPS = 3
CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def torch_vgg11() -> torch.nn.Module:
    layers, channels = [], 3
    for item in CHANNELS:
        if isinstance(item, str):
            layers.append(torch.nn.MaxPool2d(2))
            continue
        layers += [
            torch.nn.Conv2d(channels, item, 3, padding=1),
            torch.nn.BatchNorm2d(item),
            torch.nn.ReLU(inplace=True),
        ]
        channels = item
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(512, 10))


def time_forward() -> dict:
    images = np.random.default_rng(0).standard_normal((IMAGES, 32, 32, 3), dtype=np.float32)
    model = models.VGG(11, rngs=nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)

    def ours(state: nnx.State, x: jax.Array) -> jax.Array:
        def batch(x: jax.Array) -> jax.Array:
            return nnx.merge(graph, state)(x)

        return lax.map(batch, jnp.reshape(x, (-1, BATCH, *x.shape[1:])))

    network = torch_vgg11().eval()
    theirs = []
    with torch.inference_mode():
        for size in (IMAGES, BATCH):
            batches = torch.tensor(np.moveaxis(images, -1, 1).copy()).split(size)
            theirs.append(median_milliseconds(lambda batches=batches: [network(x) for x in batches]))
    call, seconds = compile_call(ours, state, jnp.asarray(images))
    return row(f"VGG11-BN forward, {IMAGES} images", median_milliseconds(call), seconds, "torch", min(theirs))


def time_training_step() -> list[dict]:
    draw = np.random.default_rng(0)
    images = draw.standard_normal((STEPS, STEP, 32, 32, 3), dtype=np.float32)
    labels = draw.integers(0, 10, (STEPS, STEP))
    graph, params, rest = nnx.split(models.VGG(11, rngs=nnx.Rngs(0)), nnx.Param, ...)
    optimizer = optax.sgd(0.01, momentum=0.9)

    def step(carry: tuple, batch: tuple) -> tuple:
        params, rest, moments = carry
        x, y = batch

        def loss(params: nnx.State) -> tuple:
            model = nnx.merge(graph, params, rest, copy=True)
            value = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(x), y))
            return value, nnx.state(model, nnx.Not(nnx.Param))

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), rest, moments), value

    carry = (params, rest, optimizer.init(params))
    x, y = jnp.asarray(images), jnp.asarray(labels)
    one, one_seconds = compile_call(step, carry, (x[0], y[0]))
    epoch, epoch_seconds = compile_call(lambda carry, x, y: lax.scan(step, carry, (x, y)), carry, x, y)

    network = torch_vgg11().train()
    torch_optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    torch_images = torch.tensor(np.moveaxis(images, -1, 2).copy())
    torch_labels = torch.tensor(labels)

    def theirs() -> None:
        for x, y in zip(torch_images, torch_labels, strict=True):
            torch_optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            torch_optimizer.step()

    peer_ms = median_milliseconds(theirs) / STEPS
    return [
        row(f"VGG11-BN training step, batch {STEP}", median_milliseconds(one), one_seconds, "torch", peer_ms),
        row(
            f"VGG11-BN training step, batch {STEP}, in a scan of {STEPS}",
            median_milliseconds(epoch) / STEPS,
            epoch_seconds,
            "torch",
            peer_ms,
        ),
    ]


def run() -> list[dict]:
    torch.set_num_threads(2)
    return [time_forward(), *time_training_step()]


if __name__ == "__main__":
    for line in run():
        print(line)
