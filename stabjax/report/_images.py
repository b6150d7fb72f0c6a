"""Images inside of the page, as data URIs."""

import base64
import io
from html import escape

import numpy as np
from jaxtyping import Float
from PIL import Image

from stabjax._types import AnyArray

Examples = Float[AnyArray, "k h w channels"]

_LARGEST = 320
"""Pixels: larger images are made smaller, so that the page stays small."""
_PIXELATED = 96
"""Pixels: smaller images are drawn with their pixels as squares."""
_VERSIONS = (
    ("clean", "x"),
    ("deformed", "τx"),
    ("with noise of the same norm", "x + η"),
)


def data_uri(image: Float[AnyArray, "h w channels"]) -> str:
    """Return an image of values in [0, 1] as a data URI; what lies outside is cut off, what is not finite is black.

    Small images keep every pixel (PNG); of larger ones JPEG of a high quality takes a quarter of the room.
    """
    pixels = np.round(255 * np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3])
    picture.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    if max(picture.size) < _PIXELATED:
        picture.save(file, kind := "png", optimize=True)
    else:
        picture.save(file, kind := "jpeg", quality=92, subsampling=0)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def draw_examples(images: Examples, deformed: Examples, noisy: Examples) -> str:
    """Return HTML figures, one for each image: clean, deformed, and with noise.

    Raises:
        ValueError: if the three differ in shape, or images have other channels than one, three or four.
    """
    shapes = {np.shape(each) for each in (images, deformed, noisy)}
    if len(shapes) > 1:
        raise ValueError(f"expected clean, deformed and noisy images of one shape, got {sorted(shapes)}")
    (shape,) = shapes
    if shape[-1] not in (1, 3, 4):
        raise ValueError(f"expected images with 1, 3 or 4 channels last, got shape {shape}")
    small = ' class="pixelated"' if max(shape[1:3]) < _PIXELATED else ""
    figures = []
    for k, versions in enumerate(zip(images, deformed, noisy, strict=True)):
        parts = [
            f'<div><img{small} alt="image {k + 1}, {escape(name)}" src="{data_uri(image)}">'
            f"<p><i>{symbol}</i> {escape(name)}</p></div>"
            for image, (name, symbol) in zip(versions, _VERSIONS, strict=True)
        ]
        figures.append(f"<figure>{''.join(parts)}</figure>")
    return "\n".join(figures)
