"""The cells of a sweep: axes that are traced, axes that are Python values, and seeds."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax._provenance import describe_shortly

RESERVED = ("key", "seed", "valid")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The checked axes. Cells are numbered block by block, a block being one combination of the static values."""

    names: tuple[str, ...]
    """All axes, in the order they were given."""
    traced: dict[str, np.ndarray]
    """Numeric axes, in the dtype they are computed in."""
    static: dict[str, tuple[Any, ...]]
    """Axes of hashable Python values."""
    labels: dict[str, np.ndarray]
    """What stands beside the result: the values as they were given, or their names."""
    seeds: int

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Return the lengths of the traced axes, and the number of seeds."""
        return (*map(len, self.traced.values()), self.seeds)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Return the static part of every block."""
        for values in itertools.product(*self.static.values()):
            yield dict(zip(self.static, values))

    def where(self, row: int) -> str:
        """Return the coordinates of one cell of the sweep, as text."""
        # Rows are numbered over (*static, *traced, seeds), in C order.
        index = np.unravel_index(row, (*map(len, self.static.values()), *self.block_shape))
        position = dict(zip([*self.static, *self.traced, "seed"], index))
        shown = {name: f"{self.labels[name][position[name]]!s:.40}" for name in self.names}
        return f"({', '.join(f'{k}={v}' for k, v in (shown | {'seed': str(position['seed'])}).items())})"

    def unflatten(self, flat: np.ndarray) -> np.ndarray:
        """Reshape rows of cells, block after block, to ``(*axes, seeds, ...)`` in the order the axes were given."""
        outer = tuple(map(len, self.static.values()))
        array = flat.reshape(*outer, *self.block_shape, *flat.shape[1:])
        # (cells, ...) -> (*static, *traced, seeds, ...) -> (*names, seeds, ...), the names as the caller gave them.
        position = {name: k for k, name in enumerate([*self.static, *self.traced])}
        order = [position[name] for name in self.names]
        return np.ascontiguousarray(array.transpose(*order, *range(len(order), array.ndim)))

    def describe(self) -> dict[str, Any]:
        """Describe the axes as they are written down, so that two grids can be compared."""
        traced = {name: {"dtype": str(axis.dtype), "values": axis.tolist()} for name, axis in self.traced.items()}
        static = {name: {"static": [describe_shortly(value) for value in axis]} for name, axis in self.static.items()}
        return {name: (traced | static)[name] for name in self.names}


def check_grid(axes: Mapping[str, Any], static: Iterable[str], seeds: int) -> Grid:
    """Check what was asked for."""
    if not isinstance(axes, Mapping):
        raise TypeError(f"expected axes as a mapping from name to values, got {type(axes).__name__}")
    names = [static] if isinstance(static, str) else list(static) if isinstance(static, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"expected static as the name of an axis or several, got {static!r}: leave it out for none")
    for name in axes:
        if not isinstance(name, str):
            raise TypeError(f"expected names of axes as text, got {name!r}")
        if name in RESERVED:
            raise ValueError(f"expected another name for the axis {name!r}: a sweep uses {', '.join(RESERVED)} itself")
    if unknown := [name for name in names if name not in axes]:
        raise ValueError(f"expected static to name some of the axes {list(axes)}, got {unknown}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected every name in static once, got {names}")
    if isinstance(seeds, bool) or not isinstance(seeds, int | np.integer) or seeds < 1:
        raise ValueError(f"expected seeds as a number of at least 1, got {seeds!r}")
    labels, traced, fixed = {}, {}, {}
    for name, values in axes.items():
        if name in names:
            fixed[name] = _static_axis(name, values)
            labels[name] = _labels(fixed[name])
        else:
            given = _array(name, values)
            traced[name] = _traced_axis(name, given)
            # Halves are widened: files of labeled arrays know neither bfloat16 nor float16.
            wide = given.dtype.kind in "biu" or (given.dtype.kind == "f" and given.dtype.itemsize >= 4)
            labels[name] = given if wide else given.astype(np.float32)
    return Grid(tuple(axes), traced, fixed, labels, int(seeds))


def _array(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"expected the values of axis {name!r} one after the other, got lists of unequal lengths: sweep over an "
            "index and look the list up inside the function"
        ) from error
    if array.ndim != 1:
        raise ValueError(
            f"expected the values of axis {name!r} in one dimension, got shape {array.shape}: give a list of numbers; "
            "sweep over an index for anything larger"
        )
    if not array.size:
        raise ValueError(f"expected at least one value on axis {name!r}, got none")
    return array


def _traced_axis(name: str, given: np.ndarray) -> np.ndarray:
    known = any(jnp.issubdtype(given.dtype, kind) for kind in (np.bool_, np.integer, np.floating))
    if not known or given.dtype.itemsize > 8:
        raise TypeError(
            f"expected numbers on axis {name!r}, real ones of at most 64 bits, got {given.dtype} ({given[0]!r}, ...): "
            "name the axis in static to hand its values over as they are"
        )
    with np.errstate(over="ignore", under="ignore"):
        array = given.astype(jax.dtypes.canonicalize_dtype(given.dtype))
    if jnp.issubdtype(given.dtype, np.floating):
        # Rounded is allowed, but neither to infinity nor to zero. Whole numbers and truth values must be exact.
        fits = np.array_equal(np.isfinite(array), np.isfinite(given)) and np.array_equal(array == 0, given == 0)
    else:
        fits = np.array_equal(array, given)
    if not fits:
        raise ValueError(f"expected values that fit {array.dtype} on axis {name!r}: enable jax_enable_x64")
    return array


def _static_axis(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, np.ndarray | jax.Array):
        return tuple(_array(name, values).tolist())
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"expected a list of the values of axis {name!r}, got {type(values).__name__}")
    if not values:
        raise ValueError(f"expected at least one value on axis {name!r}, got none")
    for value in values:
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"expected hashable values on the static axis {name!r}, got {type(value).__name__}: give tuples for "
                "lists, or sweep over a name and look the value up inside the function"
            ) from error
    return tuple(values)


def _labels(values: tuple[Any, ...]) -> np.ndarray:
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    # `type`, not `isinstance`: True is an int for Python. One kind for all values, or their names.
    for kinds in ((bool,), (int,), (int, float), (str,)):
        if all(type(v) in kinds for v in plain):
            return np.asarray(plain)
    return np.asarray([str(getattr(v, "__name__", v)) for v in plain])
