"""Look inside a network: trace it, recognise its operations, evaluate it with its taps.

The only place that touches JAX's tracing machinery.
"""

from stabjax._jaxpr._evaluate import evaluate
from stabjax._jaxpr._extents import extents
from stabjax._jaxpr._identity import examine, of_object, token
from stabjax._jaxpr._interpret import Step, interpret
from stabjax._jaxpr._lifted import Lifted, lift
from stabjax._jaxpr._positive import positive
from stabjax._jaxpr._program import path_name
from stabjax._jaxpr._reading import Reading, Site, read, trace_network
from stabjax._jaxpr._regions import Hidden
from stabjax._jaxpr._reuse import in_double
from stabjax._jaxpr._spans import Span, clipped, is_still
from stabjax._jaxpr._windows import entry

__all__ = [
    "Hidden",
    "Lifted",
    "Reading",
    "Site",
    "Span",
    "Step",
    "clipped",
    "entry",
    "evaluate",
    "examine",
    "extents",
    "in_double",
    "interpret",
    "is_still",
    "lift",
    "of_object",
    "path_name",
    "positive",
    "read",
    "token",
    "trace_network",
]
