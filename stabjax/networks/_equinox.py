"""Equinox: a module is a callable pytree."""

import sys
from typing import Any

from stabjax.networks import _pytree
from stabjax.networks._framework import Framework, Parts


def _claims(model: Any) -> bool:
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(model, equinox.Module)


def take_apart(model: Any, mode: str) -> Parts:
    """Flatten the module in inference mode."""
    # `inference_mode` returns a changed copy; the module that was given keeps its own.
    return _pytree.take_apart(sys.modules["equinox"].nn.inference_mode(model), mode)


FRAMEWORK = Framework(name="Equinox", claims=_claims, take_apart=take_apart)
