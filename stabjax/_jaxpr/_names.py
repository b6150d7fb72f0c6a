"""Names of taps: the module of the parameters of an operation, or its scope and a number."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from stabjax._jaxpr._plan import Frame
from stabjax._jaxpr._regions import Operation


class Names:
    """Gives every tap its name, once, given the shapes and dtypes of the parameters by their paths.

    The parts of a name are written with the separator of the framework between them.
    """

    def __init__(self, parameters: Mapping[str, Any], separator: str = "/") -> None:
        self._parameters = parameters
        self._separator = separator
        self._trained = frozenset(k for k, v in parameters.items() if jnp.issubdtype(v.dtype, jnp.inexact))
        self._used: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._modules: dict[Frame, str] = {}

    def of_operation(self, operation: Operation, iteration: tuple[int, ...]) -> str:
        """Return the name of an operation in one iteration of the scans around it."""
        node = operation.node
        module = common_path(operation.parameters)
        if operation.parameters and not module and operation.kind != "other":
            # Parameters of modules that share nothing, as a kernel and its weight norm: the largest is the kernel.
            module = common_path([max(sorted(operation.parameters), key=lambda path: self._parameters[path].size)])
        name = self._indexed(module.split("/") if module else list(node.scope), node.frames, iteration)
        if not module:
            stem = f"{name}/{operation.label}" if name else operation.label
            name = f"{stem}_{self._numbers[stem]}"
            self._numbers[stem] += 1
        return self.once(name)

    def once(self, name: str) -> str:
        """Return a name, with the number of times it was used before."""
        name = name.replace("/", self._separator)
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}:{self._used[name] - 1}"

    def _indexed(self, parts: list[str], frames: tuple[Frame, ...], iteration: tuple[int, ...]) -> str:
        """Put the iteration of every scan behind the module it runs over: ``layers/3/conv``."""
        around = ""
        # From the outermost scan on: each module lies inside that of the scan around it, if it can.
        modules = [around := self._module(frame, around) for frame in frames]
        # Innermost first, so that the parts in front keep their places. Scans over blocks and, inside, over
        # blocks/conv:
        #
        #     blocks/conv in iteration (0, 2)  ->  blocks/conv/2  ->  blocks/0/conv/2
        for module, k in reversed(list(zip(modules, iteration, strict=False))):
            prefix = module.split("/")
            shared = 0
            while shared < min(len(prefix), len(parts)) and parts[shared] == prefix[shared]:
                shared += 1
            parts = [*prefix, str(k), *parts[shared:]]
        return "/".join(parts)

    def _module(self, frame: Frame, around: str) -> str:
        """Return the module that a scan runs over, or its scope if it stacks no parameters."""
        if frame not in self._modules:
            module = stacked_module(frame.parameters, self._trained, around)
            self._modules[frame] = module or "/".join((*frame.scope, "scan"))
        return self._modules[frame]


def common_path(paths: Iterable[str]) -> str:
    """Return the module that parameters share: ``blocks/2`` of ``blocks/2/kernel`` and ``blocks/2/bias``."""
    split = [path.split("/") for path in paths]
    if not split:
        return ""
    shared = []
    for parts in zip(*[parts[:-1] for parts in split], strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    # A parameter of no module names its operation itself.
    return "/".join(shared) or (split[0][0] if len(split) == 1 else "")


def stacked_module(stacked: frozenset[str], paths: frozenset[str], around: str) -> str:
    """Return the module that a scan runs over: the outermost one all of whose parameters it stacks.

    Programs know arrays, not modules: ``blocks/conv/kernel`` may come from a stack of blocks or from a stacked
    convolution. So the answer follows from the paths alone, alike in every framework.

    Args:
        stacked: paths of the parameters that the scan stacks.
        paths: paths of all parameters.
        around: module that the scan around this one runs over, or ""; the answer lies inside of it, if it can.
    """
    parts = common_path(stacked).split("/")
    outer = around.split("/") if around else []
    least = len(outer) + 1 if len(parts) > len(outer) and parts[: len(outer)] == outer else 1
    while len(parts) > least:
        # One module further out, as long as the scan stacks everything that is in it.
        inside = "/".join(parts[:-1]) + "/"
        if not all(path in stacked for path in paths if path.startswith(inside)):
            break
        parts.pop()
    return "/".join(parts)
