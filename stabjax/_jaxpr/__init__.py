"""Look inside a network: trace it, recognize its operations, evaluate it with its taps.

The only place that touches JAX's tracing machinery.
"""

from stabjax._jaxpr._domain import Domain, Step
from stabjax._jaxpr._evaluate import evaluate
from stabjax._jaxpr._identity import examine, of_object, token
from stabjax._jaxpr._interpreter import interpret
from stabjax._jaxpr._lifted import Lifted, lift
from stabjax._jaxpr._primitives import (
    AFFINE,
    COPIES,
    IDENTITIES,
    MOVES,
    NONLINEAR,
    PLACEMENTS,
    RESHAPES,
    SCATTERS,
    VIEWS,
    WINDOWS,
)
from stabjax._jaxpr._program import path_name
from stabjax._jaxpr._regions import Hidden, Kind
from stabjax._jaxpr._reuse import in_double
from stabjax._jaxpr._statistics import RunningNorms, find_running_norms
from stabjax._jaxpr._traced import TapSite, TracedProgram, read, trace_network

__all__ = [
    "AFFINE",
    "COPIES",
    "IDENTITIES",
    "MOVES",
    "NONLINEAR",
    "PLACEMENTS",
    "RESHAPES",
    "SCATTERS",
    "VIEWS",
    "WINDOWS",
    "Domain",
    "Hidden",
    "Kind",
    "Lifted",
    "RunningNorms",
    "Step",
    "TapSite",
    "TracedProgram",
    "evaluate",
    "examine",
    "find_running_norms",
    "in_double",
    "interpret",
    "lift",
    "of_object",
    "path_name",
    "read",
    "token",
    "trace_network",
]
