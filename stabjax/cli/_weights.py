"""Weights of a file put into a network, name by name and shape by shape."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax import networks
from stabjax.cli import _weight_files
from stabjax.cli._refusal import Refusal, refusing

_SHOWN = 3
"""Names in a message."""


def is_torch_module(model: Any) -> bool:
    """Tell whether a model is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def load_into_module(model: Any, path: Path) -> None:
    """Put the weights of a file into a module of PyTorch.

    Raises:
        Refusal: if weights are missing, not known to the module, or of another shape; the module is as it was then.
    """
    torch = sys.modules["torch"]
    own = model.state_dict(keep_vars=True)
    found = {name.replace("/", "."): value for name, value in _weight_files.read(path).items()}
    found = _without_common_start(found, own, ".")
    # Tied weights are one tensor of several names, and a file may have one of these. Counters change nothing that is
    # measured.
    present = {id(own[name]) for name in found if name in own}
    optional = {name for name, tensor in own.items() if id(tensor) in present or not tensor.is_floating_point()}
    _check(path, _shapes(own), _shapes(found), optional)
    tensors = {name: torch.as_tensor(_as_plain(value)) for name, value in found.items()}
    with refusing(f"the weights {str(path)!r} do not fit"):
        model.load_state_dict(tensors, strict=False)


def load_into_network(network: networks.Network, path: Path) -> networks.Network:
    """Return a network with the weights of a file, by the paths of its variables.

    Raises:
        Refusal: if weights are missing, not known to the network, or of another shape.
    """
    own = {_name(path): leaf for path, leaf in _weight_files.flatten(network.variables).items()}
    found = {name.removesuffix("/value"): value for name, value in _weight_files.read(path).items()}
    if not any("/" in name for name in found):
        found = {name.replace(".", "/"): value for name, value in found.items()}
    found = _without_common_start(found, own, "/")
    inside = {f"params/{name}": value for name, value in found.items()}
    if inside.keys() & own.keys():
        # The tree of the parameters alone, without the name of their collection.
        found = inside
    # Random keys and what counts them are no weights: the network keeps its own.
    weights = {name: leaf for name, leaf in own.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    found = {name: value for name, value in found.items() if name in weights or name not in own}
    _check(path, _shapes(weights), _shapes(found), optional=())
    leaves, structure = jax.tree.flatten(network.variables)
    values = [
        jnp.asarray(_as_array(found[name]), leaf.dtype) if name in weights else leaf
        for name, leaf in zip(own, leaves, strict=True)
    ]
    return replace(network, variables=structure.unflatten(values))


def _name(path: str) -> str:
    """Return the name of a variable without what frameworks put around it."""
    return path.removeprefix("trees/").removesuffix("/value")


def _as_array(value: Any) -> np.ndarray:
    """Return a tensor, or an array of any kind, as an array of NumPy."""
    return value.detach().float().numpy() if hasattr(value, "detach") else np.asarray(value)


def _as_plain(value: Any) -> Any:
    """Return an array with a type that PyTorch takes from NumPy; bfloat16 becomes float32. A tensor stays one."""
    if hasattr(value, "detach"):
        return value
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.kind == "V" else array.copy()


def _shapes(found: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(np.shape(value)) for name, value in found.items()}


def _without_common_start(found: Mapping[str, Any], own: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Drop what all names of a file start with (``module.``), if that makes known names of them."""
    rest = dict(found)
    while not rest.keys() & own.keys():
        if len({name.partition(separator)[0] for name in rest}) > 1 or not all(separator in name for name in rest):
            # The names as the file has them, for the message.
            return dict(found)
        rest = {name.partition(separator)[2]: value for name, value in rest.items()}
    return rest


def _check(
    path: Path,
    own: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    optional: Iterable[str],
) -> None:
    missing = [name for name in own if name not in found and name not in set(optional)]
    unexpected = [name for name in found if name not in own]
    shapes = [
        f"{name}: expected {own[name]}, got {found[name]}" for name in found if name in own and own[name] != found[name]
    ]
    parts = [
        f"{len(names)} {words} ({_list(names, separator)})"
        for names, words, separator in (
            (missing, f"of {len(own)} weights are missing", ", "),
            (unexpected, f"of {len(found)} in the file are unknown to the network", ", "),
            (shapes, "have another shape", "; "),
        )
        if names
    ]
    if parts:
        raise Refusal(
            f"expected the weights of this network in {str(path)!r}, got others: {'; '.join(parts)}. Give the weights "
            "of the same architecture, or make the network that they belong to (--arguments num_classes=...)"
        )


def _list(names: list[str], separator: str) -> str:
    more = f"{separator}..." if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
