"""What comes in, checked once for every function of the room."""

import operator


def geometry(kernel: int, stride: int, depth: int = 1, *, shallowest: int = 1) -> tuple[int, int, int]:
    """The three as Python integers, if a chain of such layers sees every pixel."""
    kernel, stride = positive("kernel", kernel), positive("stride", stride)
    depth = positive("depth", depth, least=shallowest)
    if kernel < stride:
        raise ValueError(
            f"expected a kernel at least as large as the stride, got kernel {kernel} and stride {stride}: "
            f"some pixels would be seen by no unit; take a kernel of {stride} or more, or a smaller stride"
        )
    return kernel, stride, depth


def positive(name: str, value: int, *, least: int = 1) -> int:
    """``value`` as a Python integer of at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} as an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"expected {name} >= {least}, got {number}")
    return number
