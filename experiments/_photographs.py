"""The photographs that scikit-image and scikit-learn ship, as networks trained on ImageNet take them."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

REMEDY = "pip install '.[pretrained]'"

CLASSES: Mapping[str, Mapping[int, str]] = {
    "chelsea": {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"},
    "coffee": {967: "espresso", 968: "cup"},
    "rocket": {657: "missile", 744: "projectile"},
    "camera": {872: "tripod"},
    "stereo_motorcycle": {665: "moped", 670: "motor scooter"},
    "china": {698: "palace", 663: "monastery", 832: "stupa"},
    "flower": {985: "daisy"},
    "astronaut": {},
    "brick": {},
    "clock": {},
    "coins": {},
    "grass": {},
    "gravel": {},
    "hubble_deep_field": {},
    "moon": {},
    "retina": {},
}
"""All photographs of the two packages of at least 300 pixels on the shorter side, a stereo pair as one of them; with
the classes of ImageNet that fit what they show, numbered from 0. Drawings, micrographs and patterns are left out."""

OF_SCIKIT_LEARN = ("china", "flower")
MEAN, DEVIATION = 127.0, 128.0
"""Of bytes, as EfficientNet-Lite was trained (``efficientnet_lite_builder.py`` of its TensorFlow implementation)."""
SHARE = 7 / 8
"""Side of a crop, by the shorter side of the photograph: the central crop of 224 of 256 pixels."""
# Of a crop, as a share of the way from the upper left to the lower right: the center, two opposite corners, two more.
_PLACES = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))
CROPS = len(_PLACES)


def load(size: int, *, photographs: int, crops: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Load crops of photographs at the size of a network, normalized.

    Args:
        size: side of the result in pixels.
        photographs: how many, from the first of `CLASSES` on.
        crops: how many of each, from 1 to `CROPS`; the first is the central one.

    Returns:
        names of the photographs, and their crops, ``(crops, photographs, size, size, 3)``.
    """
    if not 1 <= crops <= CROPS:
        raise SystemExit(f"expected from 1 to {CROPS} crops, got {crops}")
    names = tuple(CLASSES)[:photographs]
    opened = [Image.fromarray(_read(name)).convert("RGB") for name in names]
    pixels = np.stack([[_cut(image, size, place) for image in opened] for place in _PLACES[:crops]])
    return names, (pixels - np.float32(MEAN)) / np.float32(DEVIATION)


def import_extra(module: str) -> Any:
    """Import a module of the extra ``pretrained``; say how to install it where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise SystemExit(f"expected the package of {module}, which is not installed: {REMEDY}") from error


def _read(name: str) -> np.ndarray:
    """Read a photograph, ``(height, width)`` or ``(height, width, 3)``, bytes."""
    if name in OF_SCIKIT_LEARN:
        return import_extra("sklearn.datasets").load_sample_image(f"{name}.jpg")
    image = getattr(import_extra("skimage.data"), name)()
    return image[0] if name.startswith("stereo") else image


def _cut(image: Image.Image, size: int, place: tuple[float, float]) -> np.ndarray:
    """Cut a square and scale it, ``(size, size, 3)``."""
    side = SHARE * min(image.size)
    left, top = ((length - side) * share for length, share in zip(image.size, place, strict=True))
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box), np.float32)
