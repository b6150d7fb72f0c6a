"""What each axis of an activation is, followed through a program beside the values.

An axis is the product of its parts, each with its role and size: ``b`` the batch, ``c`` the channels, ``s`` space,
``n`` an axis the network made itself (branches, heads), None where it is not known. So a batch that was merged with
windows is found again, a channel axis is known in any layout, and no statistic takes the wrong one.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from stabjax._jaxpr._primitives import AFFINE, NONLINEAR, REDUCTIONS, SEARCHES, SELECTIONS, VIEWS, WINDOWS

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
    """Return the role of an axis: batch if it holds the batch, channels if heads are merged with channels."""
    # Parts of size 1 do not count beside larger ones, (n 1  s 8) is space; but a batch of one image is a batch.
    roles = {role for role, size in axis if size > 1} or {role for role, _ in axis}
    if any(role == "b" for role, _ in axis):
        return "b"
    # Heads merged with channels, (n 3  c 64), are channels. Any other mixture has no role.
    if "c" in roles:
        roles.discard("n")
    return roles.pop() if len(roles) == 1 else None


def channel(axes: Axes) -> int | None:
    """Return the position of the channel axis, or None if it is not known."""
    roles = [role(axis) for axis in axes]
    # Two such axes, as of a Gram matrix of channels, leave it open.
    return roles.index("c") if roles.count("c") == 1 else None


def _knowledge(axes: Axes) -> tuple[int, int]:
    """Return how many axes are known to be batch, channels or space, and how few the network made itself."""
    roles = [role(axis) for axis in axes]
    return sum(name in ("b", "c", "s") for name in roles), -roles.count("n")


def _parts_of(axis: Axis, size: int) -> Axis:
    """Return the parts of an axis of this size; what was cut or enlarged keeps its role and forgets its parts."""
    return axis if axis and prod(part for _, part in axis) == size else ((role(axis), size),)


def reshape(axes: Sequence[Axis], old: Sequence[int], new: Sequence[int]) -> Axes:
    """Return the axes after a reshape: their parts, distributed anew in the same order.

    A part goes to one new axis, or is divided among several; where sizes do not divide, the rest is unknown::

        (b 2) (s 8) (c 3)  -> (16, 3)       (b 2  s 8) (c 3)
        (b 2  s 8) (c 3)   -> (4, 4, 3)     (b 2  s 2) (s 4) (c 3)
    """
    if 0 in old:
        return (UNKNOWN,) * len(new)
    # Old and new axes list the same entries, the last axis fastest. So both are the same row of parts, and each new
    # axis takes from the front what its size needs.
    parts = [part for axis, size in zip(axes, old) for part in _parts_of(axis, size)]
    result: list[Axis] = []
    for k, size in enumerate(new):
        own, missing = [], size
        if size == 1 and parts and parts[0][1] == 1:
            own.append(parts.pop(0))
        while missing > 1:
            name, part = parts.pop(0)
            # The border between two new axes cuts a part at no whole number: (s 6) (s 2) -> (4, 3).
            if missing % part != 0 and part % missing != 0:
                return (*result, *[UNKNOWN] * (len(new) - k))
            if missing % part != 0:
                # (s 8) where 4 are missing: the outer 4 go here, the inner 2 to the next axis.
                parts.insert(0, (name, part // missing))
                part = missing
            own.append((name, part))
            missing //= part
        # Parts of size 1 stay with the axis in front of them, but where the next new axis is one of size 1.
        while size > 1 and parts and parts[0][1] == 1 and new[k + 1 : k + 2] != (1,):
            own.append(parts.pop(0))
        if {name for name, part in own if part > 1} == {"s", "n"}:
            # What the network merges with space is space from then on: repeated positions, or tokens of branches.
            own = [("s", part) for _, part in own]
        result.append(tuple(own))
    return tuple(result)


def of_results(equation: Any, operands: Sequence[Axes | None]) -> Sequence[Axes]:
    """Return the axes of each result of an equation, given those of its operands, None for constants."""
    rule = RULES.get(equation.primitive.name, _of_same_rank)
    return [rule(equation, operands, var.aval) for var in equation.outvars]


def _of_same_rank(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    """Return the axes of the first active operand of the rank of the result."""
    del equation
    rank = len(getattr(result, "shape", ()))
    return next((axes for axes in operands if axes is not None and len(axes) == rank), unknown(result))


def _elementwise(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    """Return the axes of the active operand that is known best."""
    del equation
    candidates = [axes for axes in operands if axes is not None and len(axes) == len(result.shape)]
    return max(candidates, key=_knowledge, default=unknown(result))


def _convolution(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    image, kernel = operands
    if image is None or kernel is not None:
        return _of_same_rank(equation, operands, result)
    numbers = equation.params["dimension_numbers"]
    # Channels are made anew; the batch goes through, with what it was merged with; what windows slide along is space.
    axes: list[Axis] = [(("s", size),) for size in result.shape]
    batch, channels = numbers.out_spec[:2]
    axes[batch], axes[channels] = image[numbers.lhs_spec[0]], (("c", result.shape[channels]),)
    return tuple(axes)


def _dot(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    """Return the axes of ``dot_general``: the shared ones, then the free ones of both operands."""
    del result
    contracted, batch = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars[:2]]
    free = [[k for k in range(len(shapes[i])) if k not in contracted[i] and k not in batch[i]] for i in (0, 1)]
    # What a kernel brings in are new axes, the last of them channels where the activation keeps none of its own.
    known = [axes or [(("n", size),) for size in shape] for axes, shape in zip(operands, shapes)]
    # Both operands have the shared axes; those of an activation are known. What attention weights have found to be
    # heads are heads of the values, too.
    side = 1 if operands[0] is None else 0
    shared = [known[side][k] for k in batch[side]]
    if all(operands):
        other = [known[1][k] for k in batch[1]]
        shared = [q if (role(p), role(q)) == ("c", "n") else p for p, q in zip(shared, other)]
    own = [[axes[k] for k in dims] for axes, dims in zip(known, free)]
    if all(operands) and all(role(axes[k]) == "c" for axes, dims in zip(known, contracted) for k in dims):
        # Queries meet keys: their channels are summed, and what was divided from these is heads.
        shared = [_without_channels(axis) for axis in shared]
        own = [[_without_channels(axis) for axis in axes] for axes in own]
    if operands[1 - side] is None and own[1 - side] and not any(role(axis) == "c" for axis in own[side] + shared):
        own[1 - side][-1] = (("c", shapes[1 - side][free[1 - side][-1]]),)
    return (*shared, *own[0], *own[1])


def _without_channels(axis: Axis) -> Axis:
    return tuple(("n" if name == "c" else name, size) for name, size in axis)


def _selection(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    """Return the axes after cutting, joining and looking up entries."""
    name = equation.primitive.name
    axes = next(axes for axes in operands if axes is not None)
    if name in ("stack", "unstack"):
        return _rearranged(equation, [axes], result)
    if name == "gather":
        # An embedding: the indices depend on the images, the table does not.
        return _lookup(equation, axes) if operands[0] is None else _gathered(equation, operands[0], operands[1])
    return axes if len(axes) == len(result.shape) else unknown(result)


def _lookup(equation: Any, axes: Axes) -> Axes:
    """Return the axes of rows of a table: batch and space of the indices, then the channels of the table."""
    offset = equation.params["dimension_numbers"].offset_dims
    shape, indices = equation.outvars[0].aval.shape, iter(axes)
    # Tokens (b, s, 1) look up a table (v, c): the result is (b, s, c), with offset_dims (2,) for the axes of a row.
    result = [(("c", size),) if k in offset else next(indices, UNKNOWN) for k, size in enumerate(shape)]
    return tuple(axis if k in offset or role(axis) == "b" else (("s", shape[k]),) for k, axis in enumerate(result))


def _gathered(equation: Any, axes: Axes, indices: Axes | None) -> Axes:
    """Return the axes of entries of an activation, as ``x[:, [0, 2, 2]]`` takes them."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.outvars[0].aval.shape
    # Axes of the result are those of a slice, which stand at offset_dims, and between them those of the indices.
    removed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = iter(k for k in range(len(axes)) if k not in removed)
    # What an axis of indices stands for is what all axes are that it takes an entry of.
    roles = {role(axes[k]) for k in numbers.collapsed_slice_dims}
    name = roles.pop() if len(roles) == 1 else None
    shared = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims))
    result: list[Axis] = []
    place = 0
    for k, size in enumerate(shape):
        if k in numbers.offset_dims:
            source = next(kept)
            is_whole = sizes[source] == equation.invars[0].aval.shape[source]
            result.append(axes[source] if is_whole else ((role(axes[source]), size),))
        else:
            own = axes[shared[place]] if place in shared else indices[place] if indices else ((name, size),)
            result.append(own)
            place += 1
    return tuple(result)


def _rearranged(equation: Any, operands: Sequence[Axes | None], result: Any) -> Axes:
    """Return the axes after an equation that moves, cuts or sums axes and mixes nothing else."""
    name, params = equation.primitive.name, equation.params
    axes = operands[0]
    if axes is None or (len(equation.outvars) > 1 and name != "unstack"):
        return _of_same_rank(equation, operands, result)
    old, new = equation.invars[0].aval.shape, result.shape
    if name == "reshape":
        order = params.get("dimensions") or range(len(old))
        return reshape([axes[k] for k in order], [old[k] for k in order], new)
    if name == "transpose":
        return tuple(axes[k] for k in params["permutation"])
    if name == "broadcast_in_dim":
        # An axis that is no axis of the operand was made by the network.
        broadcast: list[Axis] = [(("n", size),) for size in new]
        for source, target in enumerate(params["broadcast_dimensions"]):
            broadcast[target] = axes[source]
        return tuple(broadcast)
    if name == "squeeze":
        return tuple(axis for k, axis in enumerate(axes) if k not in params["dimensions"])
    if name == "stack":
        return (*axes[: params["axis"]], (("n", new[params["axis"]]),), *axes[params["axis"] :])
    if name == "unstack":
        return (*axes[: params["axis"]], *axes[params["axis"] + 1 :])
    # A reduction. Windows, reversals and casts keep the axes as they are.
    if "axes" in params and len(new) == len(old) - len(params["axes"]):
        return tuple(axis for k, axis in enumerate(axes) if k not in params["axes"])
    return axes if len(old) == len(new) else (UNKNOWN,) * len(new)


RULES: dict[str, Callable[[Any, Sequence[Axes | None], Any], Axes]] = (
    {"conv_general_dilated": _convolution, "dot_general": _dot}
    | dict.fromkeys(REDUCTIONS | SEARCHES | WINDOWS | VIEWS, _rearranged)
    | dict.fromkeys(SELECTIONS, _selection)
    | dict.fromkeys(AFFINE | NONLINEAR, _elementwise)
)
"""Rules by primitive: ``rule(equation, axes of its operands, aval of the result) -> axes of the result``."""


def crosses_rows(equation: Any, operands: Sequence[Axes | None]) -> bool:
    """Return whether an equation reduces, contracts or reorders the batch axis."""
    if equation.primitive.name == "dot_general":
        contracted, _ = equation.params["dimension_numbers"]
        summed = [axes[k] for axes, dims in zip(operands, contracted) if axes is not None for k in dims]
        result = of_results(equation, operands)[0]
        # x' x sums over the batch, and x x' has it on two axes: every row meets every other one.
        return any(role(axis) == "b" for axis in summed) or [role(axis) for axis in result].count("b") > 1
    return operands[0] is not None and any(role(operands[0][k]) == "b" for k in crossed_axes(equation))


def crossed_axes(equation: Any) -> list[int]:
    """Return the axes of the first operand along which an equation adds up or reorders entries."""
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


def check_channels_last(equation: Any, axes: Axes) -> None:
    """Raise a ValueError where a first convolution takes positions for channels and slides along the channels."""
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


def is_pooled(axes: Axes, reduced: Sequence[int]) -> bool:
    """Return whether reducing these axes leaves batch and channels: a pool over space."""
    roles = [role(axis) for axis in axes]
    return "c" in roles and bool(reduced) and all(roles[k] in ("s", None) for k in reduced)


def batch_first(axes: Axes, shape: Sequence[int], batch: int) -> tuple[int, int, int] | None:
    """Return the axis that holds the batch, and how much was merged before and behind it; None if the batch is lost."""
    holders = [k for k, axis in enumerate(axes) if role(axis) == "b"]
    # Nothing is known of the first axis, but it is as long as the batch, and networks keep it in front.
    if not holders and shape and shape[0] == batch and role(axes[0]) is None:
        return 0, 1, 1
    if len(holders) != 1:
        return None
    axis = holders[0]
    names, sizes = zip(*_parts_of(axes[axis], shape[axis]))
    # (n 4  b 3  s 2), 24 entries: 4 before the batch, 2 behind it.
    place = names.index("b")
    # Two batches in one axis, or a batch that was cut or joined with another.
    if names.count("b") > 1 or sizes[place] != batch:
        return None
    return axis, prod(sizes[:place]), prod(sizes[place + 1 :])
