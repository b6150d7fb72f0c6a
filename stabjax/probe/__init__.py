"""The main job: run a network on clean, deformed and noisy images, and reduce on the fly, in one pass.

`stability` compares a network with itself on perturbed images, layer by layer; `similarity` every layer with every
layer, of two networks or of one. `run` takes any measurements in one pass, of any number of images, over any number of
devices: `RelativeStability` is the one behind `stability`, and `Measurement` says what one of your own has to do.
"""

from stabjax._types import Measurement
from stabjax.probe._context import Context, Rows, Summary
from stabjax.probe._moments import Moments
from stabjax.probe._perturbed import perturbed
from stabjax.probe._relative_stability import RelativeStability
from stabjax.probe._run import run
from stabjax.probe._similarity import similarity
from stabjax.probe._stability import stability

__all__ = [
    "Context",
    "Measurement",
    "Moments",
    "RelativeStability",
    "Rows",
    "Summary",
    "perturbed",
    "run",
    "similarity",
    "stability",
]
