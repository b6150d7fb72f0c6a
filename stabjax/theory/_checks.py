"""Validation of kernels, strides and depths, shared by all closed forms."""

import operator


def check_geometry(kernel: int, stride: int, depth: int = 1, *, shallowest: int = 1) -> tuple[int, int, int]:
    """Return the three as Python integers; raise `ValueError` unless a chain of such layers sees every pixel."""
    kernel, stride = check_integer("kernel", kernel), check_integer("stride", stride)
    depth = check_integer("depth", depth, least=shallowest)
    if kernel < stride:
        raise ValueError(
            f"expected a kernel at least as large as the stride, got kernel {kernel} and stride {stride}: "
            f"some pixels would be seen by no unit; take a kernel of {stride} or more, or a smaller stride"
        )
    return kernel, stride, depth


def check_integer(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value`` as a Python integer; raise `TypeError` for no integer, `ValueError` below ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} as an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"expected {name} >= {least}, got {number}")
    return number
