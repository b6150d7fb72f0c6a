"""``D``, ``G`` and ``R`` from features: arrays in, arrays out.

How far features move when images are deformed (``D``) and when noise of the same size is added (``G``), in units of the
distance between two images, and their ratio ``R = D / G`` (Petrini et al. 2021, arXiv 2105.02468)::

    D_f = <|f(tau x) - f(x)|^2>_{x,tau} / <|f(x) - f(z)|^2>_{x,z}
    G_f = <|f(x + eta) - f(x)|^2>_{x,eta} / <|f(x) - f(z)|^2>_{x,z}       |eta| = |tau x - x|
    R_f = D_f / G_f

`deformation`, `noise` and `relative` are these formulas on whole arrays, ``(n, *units)``, by means or by medians.
`from_features` does all layers at once, with bootstrap intervals; `summarize` does the same from a few numbers per
image, which is what `stabjax.probe.stability` collects while it runs a network.
"""

from stabjax.stability._bootstrap import Intervals, bootstrap
from stabjax.stability._formulas import (
    Average,
    deformation,
    median,
    median_change,
    median_pair_distance,
    noise,
    pair_distance,
    relative,
    squared_change,
)
from stabjax.stability._result import Stability
from stabjax.stability._summarize import from_features, summarize

__all__ = [
    "Average",
    "Intervals",
    "Stability",
    "bootstrap",
    "deformation",
    "from_features",
    "median",
    "median_change",
    "median_pair_distance",
    "noise",
    "pair_distance",
    "relative",
    "squared_change",
    "summarize",
]
