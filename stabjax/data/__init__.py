"""Real image sets from disk or download, image folders, array pairs, and the scale-detection task.

Images are channels-last. `load` and `folder` give float32 in [0, 1], not normalized; `load_bytes` and `folder_bytes`
give the bytes themselves, which training keeps on the device, and `stream` gives them batch by batch; `normalize` takes
either. Labels are int32.
"""

from stabjax._pixels import Statistics
from stabjax.data._arrays import STATISTICS, arrays, normalize, statistics
from stabjax.data._cache import cache_dir
from stabjax.data._images import folder, folder_bytes, folder_classes, to_float
from stabjax.data._named import Source, describe, load, load_bytes
from stabjax.data._pairs import pair, pair_number
from stabjax.data._scale import (
    LocalTranslation,
    ScaleDetection,
    ScaleTask,
    label_changes,
    lit_points,
    scale_detection,
    scale_images,
    scale_labels,
    translate_points,
    translation_steps,
)
from stabjax.data._stream import Stream, stream
from stabjax.data._subset import subset

__all__ = [
    "STATISTICS",
    "LocalTranslation",
    "ScaleDetection",
    "ScaleTask",
    "Source",
    "Statistics",
    "Stream",
    "arrays",
    "cache_dir",
    "describe",
    "folder",
    "folder_bytes",
    "folder_classes",
    "label_changes",
    "lit_points",
    "load",
    "load_bytes",
    "normalize",
    "pair",
    "pair_number",
    "scale_detection",
    "scale_images",
    "scale_labels",
    "statistics",
    "stream",
    "subset",
    "to_float",
    "translate_points",
    "translation_steps",
]
