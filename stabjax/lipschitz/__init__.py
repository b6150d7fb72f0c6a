"""Lipschitz bounds: the most by which a layer can stretch the difference of two inputs, in Euclidean norms.

Every number is a `Bound` and says what it is: from above (``"upper"``), from below (``"lower"``), or the norm itself
to rounding (``"exact"``). Those from above are certificates, and hold with the rounding of their own computation.
"""

from stabjax.lipschitz._bound import Bound
from stabjax.lipschitz._conv import conv
from stabjax.lipschitz._dense import dense
from stabjax.lipschitz._jacobian import LocalNorm, local
from stabjax.lipschitz._network._network import NetworkBound, network
from stabjax.lipschitz._projection import constrain, keep

__all__ = [
    "Bound",
    "LocalNorm",
    "NetworkBound",
    "constrain",
    "conv",
    "dense",
    "keep",
    "local",
    "network",
]
