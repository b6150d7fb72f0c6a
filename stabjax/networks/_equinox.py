"""Equinox: a module is a callable pytree; one with a state comes as ``(module, state)``."""

import sys
from collections.abc import Callable
from typing import Any

from stabjax.networks import _pytree
from stabjax.networks._framework import Framework, Parts, bind_method


def _is_module(model: Any) -> bool:
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(model, equinox.Module)


def _is_pair(model: Any) -> bool:
    if not (isinstance(model, tuple) and len(model) == 2 and _is_module(model[0])):
        return False
    return isinstance(model[1], sys.modules["equinox"].nn.State)


def take_apart(model: Any, mode: str) -> Parts:
    """Flatten the module in inference mode, and its state."""
    # `inference_mode` returns a changed copy; the module that was given keeps its own.
    parts = _pytree.take_apart(sys.modules["equinox"].nn.inference_mode(model), mode)
    if not _is_pair(model):
        return parts
    # Paths of the pair are ``0/conv/weight`` of the module, and ``1/...`` of the state.
    paths = tuple(path[2:] if path.startswith("0/") else "" for path in parts.paths)
    return parts._replace(rebuild=_rebuild_pair, paths=paths)


def _rebuild_pair(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    module, state = _pytree.restore(skeleton, variables)

    def apply(*images: Any, **inputs: Any) -> Any:
        # The new state comes back beside the outputs, and is the old one in inference mode.
        function = bind_method(module, method)
        outputs, _ = function(*images, state, **inputs) if images else function(state=state, **inputs)
        return outputs

    return apply


REMEDY = (
    "most Equinox modules take one example with its channels first, "
    'networks.wrap(module, single=True, layout="channels_first"); one with a state comes as (module, state)'
)
FRAMEWORK = Framework(name="Equinox", claims=_is_module, take_apart=take_apart, remedy=REMEDY)
WITH_STATE = Framework(
    name="Equinox with a state", claims=_is_pair, take_apart=take_apart, is_callable=False, remedy=REMEDY
)
