"""Settings that have to be made before the guests' frameworks are imported."""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import torch


def declare_operators() -> torch.library.Library | None:
    """Declare two operators of torchvision's compiled library, where it does not go with the build of torch.

    Its import describes them further, and fails where they are missing; none of the networks here calls them.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*")))
    except (OSError, StopIteration):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


# The operators live as long as the object that declares them.
OPERATORS = declare_operators()
