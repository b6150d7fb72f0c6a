"""Similarity of representations: what two layers, or two networks, compute of the same images.

Activations are samples in rows, ``(n, units)``. Which measure sees what:

    cca, svcca, pwcca   the same for every invertible linear map of either side (svcca up to what it leaves out)
    cka                 the same for rotations and one common scale; RBF kernels see local structure
    pls, procrustes     likewise, by covariances

`Similarity` holds them for all pairs of layers of two networks; `stabjax.probe.similarity` measures it. The same from
samples that pass in batches, which are never all in memory, is in `stabjax.similarity.streaming`.

CCA needs clearly more samples than units on both sides together, and its results say so (``valid``); the others do not.
"""

from stabjax.similarity import streaming
from stabjax.similarity._cca import CCA, cca, pwcca, svcca
from stabjax.similarity._cka import cka
from stabjax.similarity._pls import PLS, pls, procrustes
from stabjax.similarity._result import Measure, Similarity
from stabjax.similarity._samples import average, fourier_cca, positions, resized

__all__ = [
    "CCA",
    "PLS",
    "Measure",
    "Similarity",
    "average",
    "cca",
    "cka",
    "fourier_cca",
    "pls",
    "positions",
    "procrustes",
    "pwcca",
    "resized",
    "streaming",
    "svcca",
]
