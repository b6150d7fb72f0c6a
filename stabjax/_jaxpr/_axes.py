"""What each axis of an activation is: ``b`` the batch, ``c`` the channels, ``s`` space, None where it is not known.

Roles flow through a program beside the values, so that a channel axis is known in any layout and no statistic takes
the wrong one.
"""

from collections.abc import Sequence
from typing import Any

Roles = tuple[str | None, ...]


def of_images(ndim: int) -> Roles:
    """Roles of a batch, ``(batch, *spatial, channels)``."""
    return ("b", *["s"] * (ndim - 2), "c") if ndim >= 2 else ("b",) * ndim


def channel(roles: Roles) -> int | None:
    """Position of the channel axis."""
    return roles.index("c") if roles.count("c") == 1 else None


def reshape(roles: Roles, old: Sequence[int], new: Sequence[int]) -> Roles:
    """Roles after a reshape: an axis keeps its role where it stays whole, the first part of a batch stays batch."""
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front]:
        front += 1
    back = 0
    while back < min(len(old), len(new)) - front and old[-1 - back] == new[-1 - back]:
        back += 1
    stop = len(old) - back
    middle = _regroup(roles[front:stop], old[front:stop], new[front : len(new) - back])
    return (*roles[:front], *middle, *roles[stop:])


def _regroup(roles: Roles, old: Sequence[int], new: Sequence[int]) -> list[str | None]:
    result: list[str | None] = [None] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        start_i, start_j = i, j
        size_old, size_new = old[i], new[j]
        i, j = i + 1, j + 1
        while size_old != size_new:
            if size_old < size_new:
                size_old *= old[i]
                i += 1
            else:
                size_new *= new[j]
                j += 1
        sources = [roles[k] for k in range(start_i, i) if old[k] > 1]
        targets = [k for k in range(start_j, j) if new[k] > 1]
        if len(sources) == len(targets) == 1 or ("b" in sources[:1] and targets):
            result[targets[0]] = sources[0]
        elif len(sources) == 1 and targets:
            for k in targets:
                result[k] = sources[0]
        elif targets and len(set(sources)) == 1:
            result[targets[0]] = sources[0]
    return result


def dot(equation: Any, first: bool, roles: Roles) -> Roles:
    """Roles of ``dot_general`` with one activation, the first operand or the second."""
    (contracted, batch) = equation.params["dimension_numbers"]
    side = 0 if first else 1
    ranks = [atom.aval.ndim for atom in equation.invars[:2]]
    free = [k for k in range(ranks[side]) if k not in contracted[side] and k not in batch[side]]
    other = ranks[1 - side] - len(contracted[1 - side]) - len(batch[1 - side])
    mine = [roles[k] for k in free]
    shared = [roles[k] for k in batch[side]]
    theirs: list[str | None] = [None] * other
    if other and "c" not in mine + shared:
        theirs[-1] = "c"
    return (*shared, *(mine + theirs if first else theirs + mine))


def convolution(equation: Any, roles: Roles) -> Roles:
    """Roles of a convolution of an activation."""
    spec = equation.params["dimension_numbers"].out_spec
    result: list[str | None] = ["s"] * len(spec)
    result[spec[0]], result[spec[1]] = roles[equation.params["dimension_numbers"].lhs_spec[0]], "c"
    return tuple(result)


def through(equation: Any, roles: Roles) -> Roles:
    """Roles after an operation that moves, cuts or sums axes and mixes nothing else."""
    name, params = equation.primitive.name, equation.params
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    if name == "reshape":
        return reshape(roles, old, new)
    if name == "transpose":
        return tuple(roles[k] for k in params["permutation"])
    if name == "broadcast_in_dim":
        result: list[str | None] = [None] * len(new)
        for source, target in enumerate(params["broadcast_dimensions"]):
            result[target] = roles[source]
        return tuple(result)
    if name in ("squeeze", "expand_dims"):
        dropped = params["dimensions"] if name == "squeeze" else ()
        return tuple(role for k, role in enumerate(roles) if k not in dropped)
    if "axes" in params and len(new) == len(old) - len(params["axes"]):
        return tuple(role for k, role in enumerate(roles) if k not in params["axes"])
    if len(old) == len(new):
        return roles
    return (None,) * len(new)


def is_pooled(roles: Roles, axes: Sequence[int]) -> bool:
    """Whether reducing these axes leaves batch and channels: a pool over space."""
    return "c" in roles and bool(axes) and all(roles[k] not in ("b", "c") for k in axes)


def batch_first(roles: Roles, shape: Sequence[int], batch: int) -> tuple[int, tuple[int, ...]] | None:
    """How to put the batch in front: the axis to move there, and the shape to give it then; None if it is lost."""
    axis = roles.index("b") if "b" in roles else 0
    if axis >= len(shape) or (roles[axis] is None and shape[axis] != batch) or shape[axis] % batch:
        return None
    rest = (*shape[:axis], *shape[axis + 1 :])
    parts = shape[axis] // batch
    return axis, (batch, *rest) if parts == 1 else (batch, parts, *rest)
