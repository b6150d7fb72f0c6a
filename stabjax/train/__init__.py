"""Train Flax NNX models, so that a killed run loses nothing that was saved.

`fit` runs the epochs, `evaluate` scores a model, `calibrate` sets batch statistics from images, `load` reads weights.
Images are ``(n, *spatial, channels)``, integers 0..255 (kept as bytes on the device) or floats; labels are integers.
"""

from stabjax.train._calibrate import calibrate
from stabjax.train._evaluate import Evaluation, evaluate
from stabjax.train._files import checkpoints, load, recipe
from stabjax.train._fit import Run, fit
from stabjax.train._history import History, history
from stabjax.train._prepare import crop, flip, normalise
from stabjax.train._recipe import Recipe, log_spaced, loss, optimiser, schedule

__all__ = [
    "Evaluation",
    "History",
    "Recipe",
    "Run",
    "calibrate",
    "checkpoints",
    "crop",
    "evaluate",
    "fit",
    "flip",
    "history",
    "load",
    "log_spaced",
    "loss",
    "normalise",
    "optimiser",
    "recipe",
    "schedule",
]
