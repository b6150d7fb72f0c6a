"""PyTorch: a module runs through torchax, whose tensors hold arrays of JAX."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from stabjax.networks import _torchax
from stabjax.networks._framework import Framework, Parts, bind_method

_PREFIX = "module."
"""Of every tensor, in the module around the one that is called."""


@dataclass(frozen=True, eq=False)
class _Skeleton:
    """A module without its tensors. Equal to itself alone, as modules are.

    Attributes:
        module: copy of the module, with tensors that have shapes only.
        tensors: names of the tensors, in the order of the sorted paths.
    """

    module: Any
    tensors: Mapping[str, str]


def _claims(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def take_apart(model: Any, mode: str) -> Parts:
    """Copy the module in evaluation mode, and its parameters, buffers and other tensors to arrays."""
    # Made here, and not while the module is traced.
    _torchax.environment()
    tensors = dict(_named_tensors(model))
    skeleton = _copy_structure(model, tensors.values())
    skeleton.eval()
    if mode == "batch_statistics":
        _forget_statistics(skeleton)
    _name_scopes(skeleton)
    # "layer1.0.conv1.weight" -> "layer1/0/conv1/weight"
    paths = {name.replace(".", "/"): name for name in sorted(tensors)}
    variables = {path: _to_array(tensors[name]) for path, name in paths.items()}
    # A dictionary flattens in the order of its sorted keys.
    return Parts(_Skeleton(skeleton, paths), _rebuild, variables, tuple(sorted(paths)), separator=".")


def _rebuild(skeleton: _Skeleton, variables: Any, method: Any) -> Callable[..., Any]:
    torch = sys.modules["torch"]

    class Caller(torch.nn.Module):
        """`torch.func.functional_call` calls modules, not their methods: this one calls any of its module."""

        def __init__(self) -> None:
            super().__init__()
            # A copy: what modules keep while they run, such as a table of positions, belongs to one trace.
            self.module = _copy_structure(skeleton.module, [*skeleton.module.parameters(), *skeleton.module.buffers()])

        def forward(self, *args: Any, **static: Any) -> Any:
            return bind_method(self.module, method)(*args, **static)

    def apply(x: Any, **static: Any) -> Any:
        with _torchax.running() as environment:
            held = {_PREFIX + skeleton.tensors[path]: environment.j2t_iso(array) for path, array in variables.items()}
            outputs = torch.func.functional_call(Caller(), held, (environment.j2t_iso(x),), static)
        return _to_tree(outputs, environment)

    return apply


def _named_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Return every tensor of a module once, by name: parameters, buffers, and plain attributes."""
    torch = sys.modules["torch"]
    met = set()
    attributes = (
        (f"{prefix}.{name}" if prefix else name, value)
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    )
    for named in (model.named_parameters(), model.named_buffers(), attributes):
        for name, tensor in named:
            # Tied weights are one tensor of two names: the copy shares it too.
            if id(tensor) not in met:
                met.add(id(tensor))
                yield name, tensor


def _copy_structure(model: Any, tensors: Any) -> Any:
    """Copy a module, with tensors that have a shape and a dtype, and no values, in the places of its own."""
    torch = sys.modules["torch"]

    def empty(tensor: Any) -> Any:
        value = torch.empty_like(tensor, device="meta", requires_grad=False)
        return torch.nn.Parameter(value, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else value

    # `deepcopy` takes what it finds in its memo for the copy: no values are copied, and what was shared stays so.
    return copy.deepcopy(model, {id(tensor): empty(tensor) for tensor in tensors})


def _forget_statistics(module: Any) -> None:
    """Let batch normalizations take the statistics of their batch, which they do where they have none."""
    batch_norm = sys.modules["torch"].nn.modules.batchnorm._BatchNorm
    for inner in module.modules():
        if isinstance(inner, batch_norm):
            inner.track_running_stats = False
            inner.running_mean = inner.running_var = inner.num_batches_tracked = None


def _name_scopes(module: Any) -> None:
    """Let every module inside put its name around its operations: ``layer1/0/relu``."""
    # The modules that are being called: (name, how to leave the scope).
    stack: list[tuple[str, ExitStack]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            around = stack[-1][0] + "." if stack else ""
            scope = ExitStack()
            # Inside of a scope that is called already, the rest of the name.
            scope.enter_context(jax.named_scope(name.removeprefix(around).replace(".", "/")))
            stack.append((name, scope))

        return hook

    def leave(*_: Any) -> None:
        stack.pop()[1].close()

    for name, inner in module.named_modules():
        if name:
            inner.register_forward_pre_hook(enter(name))
            inner.register_forward_hook(leave, always_call=True)


def _to_array(tensor: Any) -> Any:
    """Copy a tensor to an array of JAX."""
    torch = sys.modules["torch"]
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        # NumPy has no such numbers: the bits pass.
        array = values.view(torch.int16).numpy().view(jax.numpy.bfloat16)
    else:
        array = values.numpy()
    # A copy: JAX may use the memory of the array as it lies there, and a training goes on in it.
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.array(array))


def _to_tree(outputs: Any, environment: Any) -> Any:
    """Return outputs as a pytree of arrays; classes of outputs that libraries define become dictionaries."""
    if isinstance(outputs, Mapping):
        return {str(name): _to_tree(value, environment) for name, value in outputs.items()}
    if isinstance(outputs, tuple | list):
        return tuple(_to_tree(value, environment) for value in outputs)
    return environment.t2j_iso(outputs)


FRAMEWORK = Framework(
    name="PyTorch",
    claims=_claims,
    take_apart=take_apart,
    modes=("eval", "batch_statistics"),
    state="listed",
    layout="channels_first",
)
