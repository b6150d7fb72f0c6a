"""Constant-filter networks in closed form: no network is run, and nothing is drawn.

The network is a chain of convolutions of a signal, kernel ``F``, stride ``s``, all weights ``s / F``, zero padding
``(F - 1) // 2`` on both sides, each with a ReLU. The images have one lit pixel of height one; the deformation is a
shift by one pixel with wrap-around. Then everything can be counted (Tomasini, Petrini, Cagnetta, Wyart 2022)::

    paths     how many ways lead from each pixel to a unit               exact integers
    moments   numerators of D and G, and their denominator, at any size  exact, float64
    scaling   what another layer adds, far from the border               factors and exponents

Everything is NumPy, in double precision whatever JAX is set to.
"""

from stabjax.theory._fit import Fit, FitLaw, fit
from stabjax.theory._moments import constant_filter_moments
from stabjax.theory._paths import PathSums, path_counts, path_differences, path_sums, receptive_field
from stabjax.theory._raw_noise import NoisePlateaus, noise_plateaus, raw_noise_numerator
from stabjax.theory._rectified_noise import rectified_noise_numerators
from stabjax.theory._scaling import InfiniteChain, Law, Quantity, Scaling, growth_rate, infinite_chain, scaling

__all__ = [
    "Fit",
    "FitLaw",
    "InfiniteChain",
    "Law",
    "NoisePlateaus",
    "PathSums",
    "Quantity",
    "Scaling",
    "constant_filter_moments",
    "fit",
    "growth_rate",
    "infinite_chain",
    "noise_plateaus",
    "path_counts",
    "path_differences",
    "path_sums",
    "raw_noise_numerator",
    "receptive_field",
    "rectified_noise_numerators",
    "scaling",
]
