"""Files of weights: arrays by name, read without running anything that they hold."""

import importlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stabjax.cli._refusal import Refusal, refusing

_NESTED = ("state_dict", "model_state_dict", "model", "params")
"""Where checkpoints of PyTorch keep the weights, beside the state of the optimizer and more."""


def read(path: Path) -> dict[str, Any]:
    """Return the arrays of a file, or of an Orbax folder, by name: ``layer1/0/conv/kernel``, or as the file has them.

    Tensors of PyTorch stay tensors. A checkpoint that holds the weights beside other things gives the weights.

    Raises:
        Refusal: if there is no such file, its kind is not known, it is damaged, or it holds more than arrays.
    """
    if not path.exists():
        raise Refusal(f"expected a file of weights, got {str(path)!r}, which is not there: check the path")
    reader = _read_orbax if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        raise Refusal(
            f"expected weights as {', '.join(_READERS)} or an Orbax folder, got {path.name!r}: save them in one of "
            "these forms, or let the function load them itself"
        )
    with refusing(
        f"the weights {str(path)!r} cannot be read",
        remedy="The file may be damaged or incomplete: copy or save it again",
    ):
        found = reader(path)
    if not found:
        raise Refusal(f"expected arrays in {str(path)!r}, got a file without any: check that it is the right one")
    return found


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # Not loaded by stabjax itself, and not needed for other files.
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise Refusal(f"{path.name!r} is a file of PyTorch, which is not installed: {_PYTORCH}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":
            raise
        raise Refusal(
            f"expected tensors alone in {str(path)!r}, got objects that would run code when they are read: save "
            "model.state_dict(), torch.save(model.state_dict(), file)"
        ) from error
    content = _unpacked(content)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise Refusal(
            f"expected a state dict in {str(path)!r}, tensors by name, got {', '.join(map(repr, list(content)[:5]))}: "
            "save model.state_dict()"
        )
    return tensors


def _unpacked(content: Any) -> Mapping[Any, Any]:
    """Return the state dict in a checkpoint: itself, or the entry that is one."""
    if not isinstance(content, Mapping):
        raise Refusal(f"expected a state dict, tensors by name, got {type(content).__name__}: save model.state_dict()")
    for name in _NESTED:
        if isinstance(content.get(name), Mapping):
            return content[name]
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        safetensors = importlib.import_module("safetensors.numpy")
    except ModuleNotFoundError as error:
        raise Refusal(f"{path.name!r} needs the package safetensors: pip install safetensors") from error
    return dict(safetensors.load_file(path))


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_msgpack(path: Path) -> dict[str, Any]:
    from flax import serialization

    return flatten(serialization.msgpack_restore(path.read_bytes()))


def _read_orbax(path: Path) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    steps = [each for each in path.iterdir() if each.is_dir() and each.name.isdigit()]
    if steps:  # of a manager: the last one
        path = max(steps, key=lambda step: int(step.name))
    if not (path / "_METADATA").exists():
        inside = [each for each in sorted(path.iterdir()) if (each / "_METADATA").exists()]
        if not inside:
            raise Refusal(
                f"expected a checkpoint of Orbax in the folder {str(path)!r}, got none with a file _METADATA: give the "
                "folder that was saved"
            )
        path = inside[0]
    # Onto this device, wherever the arrays were when they were saved.
    names = ocp.PyTreeCheckpointer().metadata(path.resolve()).item_metadata
    host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    return flatten(ocp.PyTreeCheckpointer().restore(path.resolve(), restore_args=host))


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a nested mapping by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


_PYTORCH = "pip install 'stabjax[pytorch]'"
_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".msgpack": _read_msgpack,
}
