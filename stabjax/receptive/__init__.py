"""Receptive fields: which pixels a unit of any network sees, and which of them it looks at.

    boxes = receptive.extent(network, images)["blocks/2/conv"]                    # Extent(size, stride, start, ...)
    seen = receptive.effective(network, images, tap="blocks/2/conv")              # (h, w), expected size of a gradient
    paths = receptive.constant_weight(network, images, tap="blocks/2/conv")       # (h, w), all weights one
    receptive.width(seen), receptive.center(seen)

Units of a tap are named as in `stabjax.features`. Boxes and maps are in pixels of the image, a pixel is one long, and
axis ``i`` is axis ``i`` of the image without batch and channels.
"""

from stabjax.receptive._constant_weight import constant_weight
from stabjax.receptive._effective import effective
from stabjax.receptive._extent import Extent, extent
from stabjax.receptive._measures import Growth, center, growth, width

__all__ = ["Extent", "Growth", "center", "constant_weight", "effective", "extent", "growth", "width"]
