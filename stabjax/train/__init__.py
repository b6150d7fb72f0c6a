"""Train Flax NNX models, so that a killed run loses nothing that was saved.

`fit` runs the epochs, `evaluate` scores a model, `calibrate` sets batch statistics from images, `load` reads weights;
a `Recipe` says how to train, `published`, `short` and `fast` are three of them.
Images are ``(n, *spatial, channels)``, integers 0..255 (kept as bytes on the device) or floats; labels are integers.
"""

from stabjax.train._augment import crop, flip
from stabjax.train._calibrate import calibrate
from stabjax.train._evaluate import Evaluation, evaluate
from stabjax.train._files import checkpoints, load, recipe
from stabjax.train._fit import Run, fit
from stabjax.train._history import History, history
from stabjax.train._recipe import Recipe, log_spaced, loss, optimizer, schedule
from stabjax.train._recipes import fast, published, short

__all__ = [
    "Evaluation",
    "History",
    "Recipe",
    "Run",
    "calibrate",
    "checkpoints",
    "crop",
    "evaluate",
    "fast",
    "fit",
    "flip",
    "history",
    "load",
    "log_spaced",
    "loss",
    "optimizer",
    "published",
    "recipe",
    "schedule",
    "short",
]
