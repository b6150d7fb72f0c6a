"""What each axis of an activation is, followed through a program beside the values.

An axis is the product of its parts, each with its role and size: ``b`` the batch, ``c`` the channels, ``s`` space,
``n`` an axis the network made itself (branches, heads), None where it is not known. So a batch that was merged with
windows is found again, a channel axis is known in any layout, and no statistic takes the wrong one.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

Role = str | None
Axis = tuple[tuple[Role, int], ...]
Axes = tuple[Axis, ...]

UNKNOWN: Axis = ()


def of_images(shape: Sequence[int]) -> Axes:
    """Return the axes of a batch, ``(batch, *spatial, channels)``."""
    roles = ("b", *"s" * (len(shape) - 2), "c") if len(shape) >= 2 else "b" * len(shape)
    return tuple(((role, size),) for role, size in zip(roles, shape))


def unknown(aval: Any) -> Axes:
    """Return the axes of a value of which nothing is known."""
    return (UNKNOWN,) * len(getattr(aval, "shape", ()))


def role(axis: Axis) -> Role:
    """Return the role of an axis; one that holds the batch counts as batch, heads merged with channels as channels."""
    roles = {role for role, size in axis if size > 1} or {role for role, _ in axis}
    if any(role == "b" for role, _ in axis):
        return "b"
    if "c" in roles:
        roles.discard("n")
    return roles.pop() if len(roles) == 1 else None


def channel(axes: Axes) -> int | None:
    """Return the position of the channel axis."""
    roles = [role(axis) for axis in axes]
    return roles.index("c") if roles.count("c") == 1 else None


def known(axes: Axes) -> int:
    """Return how many axes are known to be batch, channels or space."""
    return sum(role(axis) in ("b", "c", "s") for axis in axes)


def _fitted(axis: Axis, size: int) -> Axis:
    """Return the parts of an axis of this size; what was cut or enlarged keeps its role and forgets its parts."""
    return axis if axis and prod(part for _, part in axis) == size else ((role(axis), size),)


def reshape(axes: Sequence[Axis], old: Sequence[int], new: Sequence[int]) -> Axes:
    """Return the axes after a reshape: their parts, distributed anew in the same order."""
    if 0 in old:
        return (UNKNOWN,) * len(new)
    parts = [part for axis, size in zip(axes, old) for part in _fitted(axis, size)]
    result: list[Axis] = []
    for k, size in enumerate(new):
        mine, left = [], size
        if size == 1 and parts and parts[0][1] == 1:
            mine.append(parts.pop(0))
        while left > 1:
            name, part = parts.pop(0)
            if left % part == 0:
                taken = part
            elif part % left == 0:
                taken = left
                parts.insert(0, (name, part // left))
            else:
                return (*result, *[UNKNOWN] * (len(new) - k))
            mine.append((name, taken))
            left //= taken
        while size > 1 and parts and parts[0][1] == 1 and new[k + 1 : k + 2] != (1,):
            mine.append(parts.pop(0))
        result.append(tuple(mine))
    return tuple(result)


def dot(equation: Any, first: bool, axes: Axes, others: Axes | None) -> Axes:
    """Return the axes of ``dot_general``, an activation as first or second operand, with another one or a kernel."""
    contracted, batch = equation.params["dimension_numbers"]
    side = 0 if first else 1
    shapes = [atom.aval.shape for atom in equation.invars[:2]]
    free = [[k for k in range(len(shapes[i])) if k not in contracted[i] and k not in batch[i]] for i in (0, 1)]
    mine = [axes[k] for k in free[side]]
    shared = [axes[k] for k in batch[side]]
    if others is not None:
        theirs = [others[k] for k in free[1 - side]]
    else:
        theirs = [(("n", shapes[1 - side][k]),) for k in free[1 - side]]
        if theirs and not any(role(axis) == "c" for axis in mine + shared):
            theirs[-1] = (("c", shapes[1 - side][free[1 - side][-1]]),)
    return (*shared, *(mine + theirs if first else theirs + mine))


def convolution(equation: Any, axes: Axes) -> Axes:
    """Return the axes of a convolution of an activation."""
    numbers, shape = equation.params["dimension_numbers"], equation.outvars[0].aval.shape
    spec = numbers.out_spec
    result: list[Axis] = [(("s", size),) for size in shape]
    result[spec[0]], result[spec[1]] = axes[numbers.lhs_spec[0]], (("c", shape[spec[1]]),)
    return tuple(result)


def check_channels_last(equation: Any, axes: Axes) -> None:
    """Raise where the first convolution of a network takes positions for channels and slides along the channels."""
    numbers, window = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    feature, spatial = numbers.lhs_spec[1], numbers.lhs_spec[2:]
    if role(axes[feature]) != "s" or not any(role(axes[axis]) == "c" for axis in spatial):
        return
    # A window of one along a signal may mix its positions, as mixers do; that has two names for one thing in 1-D only.
    if len(spatial) > 1 or window[numbers.rhs_spec[2]] > 1:
        raise ValueError(
            "expected a network of images with channels last, (batch, *spatial, channels), got one whose first "
            f"convolution takes its channels from axis {feature} and slides along the last: say so, "
            "networks.wrap(model, layout='channels_first'), and give images with channels last, "
            "jnp.moveaxis(images, 1, -1)"
        )


def lookup(equation: Any, axes: Axes) -> Axes:
    """Return the axes of rows taken from a table: batch and space of the indices, then the channels of the table."""
    offset = equation.params["dimension_numbers"].offset_dims
    shape, indices = equation.outvars[0].aval.shape, iter(axes)
    result = [(("c", size),) if k in offset else next(indices, UNKNOWN) for k, size in enumerate(shape)]
    return tuple(axis if k in offset or role(axis) == "b" else (("s", shape[k]),) for k, axis in enumerate(result))


def through(equation: Any, axes: Axes) -> Axes:
    """Return the axes after an operation that moves, cuts or sums axes and mixes nothing else."""
    name, params = equation.primitive.name, equation.params
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if name == "reshape":
        order = params.get("dimensions") or range(len(old))
        return reshape([axes[k] for k in order], [old[k] for k in order], new)
    if name == "transpose":
        return tuple(axes[k] for k in params["permutation"])
    if name == "broadcast_in_dim":
        result: list[Axis] = [(("n", size),) for size in new]
        for source, target in enumerate(params["broadcast_dimensions"]):
            result[target] = axes[source]
        return tuple(result)
    if name == "squeeze":
        return tuple(axis for k, axis in enumerate(axes) if k not in params["dimensions"])
    if name in ("stack", "unstack"):
        axis = params["axis"]
        made = ((("n", new[axis]),),) if name == "stack" else ()
        return (*axes[:axis], *made, *axes[axis + (name == "unstack") :])
    if "axes" in params and len(new) == len(old) - len(params["axes"]):
        return tuple(axis for k, axis in enumerate(axes) if k not in params["axes"])
    return axes if len(old) == len(new) else (UNKNOWN,) * len(new)


def crossed(equation: Any) -> list[int]:
    """Return the axes of the first operand along which an operation adds up or reorders entries."""
    name, params = equation.primitive.name, equation.params
    if "window_dimensions" in params:
        return [axis for axis, width in enumerate(params["window_dimensions"]) if width > 1]
    if name.startswith(("reduce_", "arg")) and "axes" in params:
        return [int(axis) for axis in params["axes"]]
    if name.startswith("cum"):
        return [params["axis"]]
    if name == "sort":
        return [params["dimension"]]
    if name == "rev":
        return list(params["dimensions"])
    return []


def is_pooled(axes: Axes, reduced: Sequence[int]) -> bool:
    """Return whether reducing these axes leaves batch and channels: a pool over space."""
    roles = [role(axis) for axis in axes]
    return "c" in roles and bool(reduced) and all(roles[k] in ("s", None) for k in reduced)


def batch_first(axes: Axes, shape: Sequence[int], batch: int) -> tuple[int, int, int] | None:
    """Return the axis that holds the batch, and how much was merged before and behind it; None if the batch is lost."""
    holders = [k for k, axis in enumerate(axes) if role(axis) == "b"]
    if not holders and shape and shape[0] == batch and role(axes[0]) is None:
        return 0, 1, 1
    if len(holders) != 1:
        return None
    axis = holders[0]
    names, sizes = zip(*_fitted(axes[axis], shape[axis]))
    place = names.index("b")
    if names.count("b") > 1 or sizes[place] != batch:
        return None
    return axis, prod(sizes[:place]), prod(sizes[place + 1 :])
