"""Exact moments of a constant-filter network of finite size, layer by layer, without running it.

The network: ``depth`` convolutions of one signal, all weights ``s / F``, zero padding ``(F - 1) // 2`` on both sides,
each followed by ReLU. The images: every pixel lit alone, ``x = e_p``. Nothing is ever negative, so the network is
linear on these, and layer ``k`` answers pixel ``p`` with column ``a_p`` of a matrix. Its rows are zero outside the
receptive field of their unit, so only a window of each is stored; with stride 2 and windows of 3::

    pixel    0  1  2  3  4  5  6
    unit 0   w  w  w
    unit 1         w  w  w
    unit 2               w  w  w
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from stabjax.theory._checks import check_geometry, check_integer


@dataclass(frozen=True, eq=False)
class Responses:
    """Responses of all units of a layer to all inputs: the rows of a matrix, cut to the inputs that they can see."""

    weights: Float[np.ndarray, "units width"]
    """Response of unit ``j`` to input ``start + j step + u``; zero where there is no such input."""
    step: int
    """How far the window moves from unit to unit; 0 where each row holds all inputs."""
    start: int
    """Input at the left end of the first window; negative in the padding."""
    size: int
    """Number of inputs."""

    @property
    def inputs(self) -> Int[np.ndarray, "units width"]:
        """Return the input that each entry belongs to."""
        units, width = self.weights.shape
        return self.start + self.step * np.arange(units)[:, None] + np.arange(width)[None, :]

    @property
    def inside(self) -> Bool[np.ndarray, "units width"]:
        """Return which entries belong to an input; the others are padding."""
        return (self.inputs >= 0) & (self.inputs < self.size)

    def dense(self) -> "Responses":
        """Return the same with every row over all inputs."""
        inside = self.inside
        weights = np.zeros((len(self.weights), self.size))
        # Row j of the window matrix goes to columns start + j step + u; both sides list the entries in row-major order.
        weights[np.nonzero(inside)[0], self.inputs[inside]] = self.weights[inside]
        return Responses(weights, step=0, start=0, size=self.size)

    def next_layer(self, kernel: int, stride: int) -> "Responses":
        """Return the responses of the layer above: each unit adds up ``kernel`` windows, a step apart from each other.

        Unit ``j`` above sums units ``j s + f - padding`` here; unit ``f`` of these puts its window ``f`` steps to the
        right, so the new one is ``width + (kernel - 1) step`` wide.
        """
        # Once windows are as wide as the signal, rows over all inputs are the smaller matrix.
        if self.step and self.weights.shape[1] + (kernel - 1) * self.step > self.size:
            return self.dense().next_layer(kernel, stride)
        units, width = self.weights.shape
        padding = (kernel - 1) // 2
        above = units_above(units, kernel, stride)
        # Rows of zeros stand for the units in the padding. They also keep the weights zero at inputs that do not exist.
        padded = np.pad(self.weights, ((padding, padding), (0, 0)))
        weights = np.zeros((above, width + (kernel - 1) * self.step))
        for f in range(kernel):
            # Rows f, f + s, f + 2 s, ... of the padded matrix, one for each unit above. With step 0 all windows
            # coincide, and rows are simply added.
            weights[:, f * self.step : f * self.step + width] += padded[f : f + stride * (above - 1) + 1 : stride]
        # Unit 0 above begins at unit -padding here, whose window begins padding steps before `start`.
        return Responses(stride / kernel * weights, self.step * stride, self.start - padding * self.step, self.size)


def units_above(units: int, kernel: int, stride: int) -> int:
    """Return the number of units of the next layer: ``floor((units + 2 padding - F) / s) + 1``."""
    return (units + 2 * ((kernel - 1) // 2) - kernel) // stride + 1


def responses_by_layer(kernel: int, stride: int, depth: int, size: int) -> Iterator[Responses]:
    """Yield the responses of the layers 1 to ``depth`` over ``size`` inputs."""
    # The images themselves: unit j sees input j.
    layer = Responses(np.ones((size, 1)), step=1, start=0, size=size)
    for _ in range(depth):
        layer = layer.next_layer(kernel, stride)
        yield layer


def check_sized_geometry(kernel: int, stride: int, depth: int, size: int) -> tuple[int, int, int, int]:
    """Return the four as Python integers; raise `ValueError` unless every layer has a unit."""
    kernel, stride, depth = check_geometry(kernel, stride, depth)
    size = check_integer("size", size)
    units = size
    for layer in range(1, depth + 1):
        units = units_above(units, kernel, stride)
        if units < 1:
            raise ValueError(
                f"a signal of {size} pixels leaves no unit in layer {layer} of kernel {kernel} and stride {stride}; "
                "take a larger size or fewer layers"
            )
    return kernel, stride, depth, size


def constant_filter_moments(
    kernel: int, stride: int, depth: int, size: int
) -> tuple[Float[np.ndarray, " depth"], Float[np.ndarray, " depth"]]:
    """Compute the numerator of ``D`` and the denominator of ``D`` and ``G`` after every ReLU, exactly.

    The images are all ``size`` signals with one lit pixel, the deformation is a shift by one pixel with wrap-around,
    and the pairs are all ordered ones, each image with itself included (Tomasini, Petrini, Cagnetta, Wyart 2022)::

        deformation numerator  <|a_(p+1) - a_p|^2>_p
        denominator            <|a_p - a_p'|^2>_(p, p') = 2 <|a_p - <a>|^2>_p

    In time and memory proportional to ``size`` times the receptive field; nothing is subtracted from something equal.

    Args:
        kernel: ``F``, at least ``stride``.
        stride: ``s``, at least 1.
        depth: number of layers, at least 1.
        size: pixels of the signal. The published size is ``F + (F - 1) sum_{l=1..depth} s^l + 1``.

    Returns:
        Deformation numerators and denominators, ``(depth,)`` each, float64.

    Raises:
        ValueError: a kernel smaller than the stride, or a layer without units.
    """
    sizes = check_sized_geometry(kernel, stride, depth, size)
    moments = [(_shift_change(layer), _pair_distance(layer)) for layer in responses_by_layer(*sizes)]
    deformation, pairs = np.array(moments).T
    return deformation, pairs


def _shift_change(layer: Responses) -> float:
    """Return ``<|a_(p+1) - a_p|^2>_p``, pixel ``size`` being pixel 0."""
    # Within a window, and at both of its ends, where the response falls to zero: column u of `change` is the step to
    # the input `right[u]` from the one before. Steps across the border are left out, and the wrap-around is put in.
    inputs = layer.inputs
    change = np.diff(layer.weights, axis=1, prepend=0, append=0)
    right = np.concatenate([inputs, inputs[:, -1:] + 1], axis=1)
    within = (right >= 1) & (right < layer.size)
    first = np.sum(layer.weights, axis=1, where=inputs == 0)
    last = np.sum(layer.weights, axis=1, where=inputs == layer.size - 1)
    return (np.sum(change**2, where=within) + np.sum((first - last) ** 2)) / layer.size


def _pair_distance(layer: Responses) -> float:
    """Return ``2 <|a_p - <a>|^2>_p``; pixels outside the window of a unit count with a response of zero."""
    inside = layer.inside
    # Mean and squared distances in two passes: <a^2> - <a>^2 would lose the digits of small variances.
    mean = np.sum(layer.weights, axis=1) / layer.size
    seen = np.sum((layer.weights - mean[:, None]) ** 2, where=inside)
    unseen = np.sum((layer.size - np.sum(inside, axis=1)) * mean**2)
    return 2 * (seen + unseen) / layer.size
