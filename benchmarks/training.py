"""Steps of `stabjax.train.fit` against the same steps in torch: crop, flip, normalize, SGD with Nesterov momentum.

In one run, batches of 128 images 32 x 32 that lie in memory as bytes, float32, two threads. The time of a step is that
of an epoch after the first, divided; so that what a user gets is measured, dispatch and bookkeeping included. An epoch
of CIFAR-10 has 390 steps: those of the small network are long enough here that what is done once per epoch does not
count. A peer whose memory lies channels last and one whose does not: the faster one counts.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

import stabjax as sj

BATCH, EPOCHS = 128, 4
MEAN, DEVIATION = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def block(channels: int, out: int, side: int, *, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    """Convolution, batch normalization, ReLU."""
    conv = nn.Conv2d(channels, out, side, stride=stride, padding=side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *[nn.ReLU(inplace=True)] * act)


class Sum(nn.Module):
    """The body and its shortcut, rectified or not."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, *, rectified: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.rectified = body, shortcut, rectified

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum."""
        y = self.body(x) + self.shortcut(x)
        return torch.relu(y) if self.rectified else y


def head(channels: int) -> Sequence[nn.Module]:
    """Mean over positions, dense layer."""
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)


def small_cnn() -> nn.Module:
    layers, channels = [], 3
    for out in (32, 64, 128, 128):
        conv = nn.Conv2d(channels, out, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = out
    return nn.Sequential(*layers, *head(channels))


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [block(3, 64, 3)]
    channels = 64
    for out, strides in ((64, (1, 1)), (128, (2, 1)), (256, (2, 1)), (512, (2, 1))):
        for stride in strides:
            same = stride == 1 and channels == out
            shortcut = nn.Identity() if same else block(channels, out, 1, stride=stride, act=False)
            body = nn.Sequential(block(channels, out, 3, stride=stride), block(out, out, 3, act=False))
            layers.append(Sum(body, shortcut, rectified=True))
            channels = out
    return nn.Sequential(*layers, *head(channels))


def mobilenet() -> nn.Module:
    layers: list[nn.Module] = [block(3, 32, 3)]
    channels = 32
    for expansion, out, blocks, first in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for stride in (first, *[1] * (blocks - 1)):
            wide = expansion * channels
            depthwise = block(wide, wide, 3, stride=stride, groups=wide)
            body: nn.Module = nn.Sequential(block(channels, wide, 1), depthwise, block(wide, out, 1, act=False))
            if stride == 1:
                shortcut = nn.Identity() if channels == out else block(channels, out, 1, act=False)
                body = Sum(body, shortcut, rectified=False)
            layers.append(body)
            channels = out
    return nn.Sequential(*layers, block(channels, 1280, 1), *head(1280))


PEERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SmallCNN": (small_cnn, 24),
    "ResNet18": (resnet18, 4),
    "MobileNetV2": (mobilenet, 4),
}
"""The network in torch, and the steps of an epoch."""


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (steps * BATCH, 32, 32, 3), dtype=np.uint8)
    return images, draw.integers(0, 10, len(images)).astype(np.int32)


def step_milliseconds(name: str) -> tuple[float, float]:
    """Return the time of a step, and how much longer than others the first epoch took."""
    recipe = sj.train.Recipe(
        epochs=EPOCHS, batch_size=BATCH, rate=0.01, mean=MEAN, deviation=DEVIATION, crop=4, flip=True, nesterov=True
    )
    _, steps = PEERS[name]
    images_and_labels = data(steps)
    run = sj.train.fit(
        lambda *, rngs: sj.models.build(name, rngs=rngs), images_and_labels, key=jax.random.key(0), recipe=recipe
    )
    first, *others = np.diff(run.history.seconds, prepend=0.0)
    epoch = statistics.median(others)
    return 1e3 * epoch / steps, 1e3 * (first - epoch)


def torch_step_milliseconds(name: str, memory_format: Any) -> float:
    """Return the time of a step in torch."""
    build, steps = PEERS[name]
    images, labels = (torch.from_numpy(x) for x in data(steps))
    images = images.permute(0, 3, 1, 2).contiguous()
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    network: Any = build().train()
    network.to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def augment(x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, (4, 4, 4, 4))
        windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
        row, column = torch.randint(0, 9, (2, len(x)))
        x = windows[torch.arange(len(x)), :, row, column]
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
        return ((x / 255 - mean) / deviation).to(memory_format=memory_format)

    def epoch() -> None:
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(augment(images[chosen])), labels[chosen].long())
            loss.backward()
            optimizer.step()

    times = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[1:]) / steps


def run() -> list[dict]:
    torch.set_num_threads(2)
    rows = []
    for name, (build, _) in PEERS.items():
        parameters = sum(p.numel() for p in build().parameters())
        step, compilation = step_milliseconds(name)
        peer = min(torch_step_milliseconds(name, memory) for memory in (torch.contiguous_format, torch.channels_last))
        rows.append(
            {
                "name": f"{name}, step of {BATCH}",
                "ms": step,
                "compile ms": compilation,
                "peer": "torch",
                "peer ms": peer,
                "ratio": step / peer,
                "parameters": parameters,
            }
        )
    return rows


if __name__ == "__main__":
    for line in run():
        print(line)
