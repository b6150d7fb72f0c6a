"""How hard the compiler works for a probe: as hard as what passes through the network repays.

That is counted in pixels, of all versions of all images. The bounds were measured with networks for images of 32 x 32
on two cores.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from stabjax import conv, features

FEW_PIXELS = 200 * 32**2
"""So few pass through a program without optimizations, which compiles in less than half the time. It takes a third
longer (ResNet18), or three times as long where depthwise convolutions are many (MobileNetV2), which sets the bound."""
SOME_PIXELS = 500 * 32**2
"""So few do not repay Winograd's filtering, which compiles for 3 s (ResNet18, VGG11) and saves 0.1 to 0.4 s for every
150 versions of images of 32 x 32. Of ResNet18, the first probe gains by it from 1000 versions on, every further probe
always: the bound lies between."""

_RULES: Mapping[str, Callable[..., Any]] = {"conv_general_dilated": conv.conv_general_dilated}


def count_pixels(rows: int, image: Sequence[int]) -> int:
    """Count the pixels of so many images of one shape, channels last."""
    return rows * math.prod(image[:-1])


def rules_of(traced: features.Traced) -> Mapping[str, Callable[..., Any]]:
    """Return how to compute a network's convolutions, as `stabjax.features.Traced.capture` takes it."""
    return _RULES if traced.convolutions == "fast" else {}


def routes_for(pixels: int | None) -> AbstractContextManager[Any]:
    """Choose routes of convolutions for so many pixels, unless the caller has; None where their number is not known."""
    return conv.quick_to_compile(pixels is not None and pixels <= SOME_PIXELS, overrides=False)


def are_few(pixels: int | None) -> bool:
    """Tell whether so few pixels pass that to compile the network takes longer."""
    return pixels is not None and pixels <= FEW_PIXELS
