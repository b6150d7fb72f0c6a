"""Look inside a network: trace it, recognise its operations, evaluate it with its taps.

The only place that touches JAX's tracing machinery.
"""

from stabjax._jaxpr._evaluate import evaluate
from stabjax._jaxpr._program import Program, path_name, trace
from stabjax._jaxpr._reading import Reading, Site, read
from stabjax._jaxpr._regions import Hidden

__all__ = ["Hidden", "Program", "Reading", "Site", "evaluate", "path_name", "read", "trace"]
