"""Measure what neural networks have learned to ignore.

The rooms, in the order of the data::

    images, network -> perturb (fields, warp) -> features -> probe -> sweep -> plot

    data       real image sets, and the scale-detection task
    fields     random displacement fields
    warp       pull an image back along a field
    perturb    random perturbations of one image
    networks   a network of any framework as data
    features   the activations of any network, by operation
    stability  D, G and R with their intervals, from features
    similarity CCA, CKA and their kin, of two layers
    probe      the main job: perturb, run, reduce, in one jitted pass
    receptive  receptive fields of any network
    theory     constant-filter networks in closed form
    lipschitz  bounds on how much layers and networks stretch differences
    conv       the convolution the models use
    models     Flax networks of the field
    train      Optax training as jitted epochs
    sweep      grids over strengths and seeds
    plot       results to matplotlib axes
    report     a measurement as a folder, with one HTML page
    cli        the command ``stabjax``

Each is loaded on first use: ``import stabjax as sj; help(sj.probe.stability)``.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from stabjax._version import version

if TYPE_CHECKING:
    from stabjax import (
        cli,
        conv,
        data,
        features,
        fields,
        lipschitz,
        models,
        networks,
        perturb,
        plot,
        probe,
        receptive,
        report,
        similarity,
        stability,
        sweep,
        theory,
        train,
        warp,
    )

__version__ = version

__all__ = [
    "cli",
    "conv",
    "data",
    "features",
    "fields",
    "lipschitz",
    "models",
    "networks",
    "perturb",
    "plot",
    "probe",
    "receptive",
    "report",
    "similarity",
    "stability",
    "sweep",
    "theory",
    "train",
    "warp",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"stabjax.{name}")
    raise AttributeError(f"module 'stabjax' has no room {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
