"""What arrays are like from outside: sharded over explicit mesh axes, or traced."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")


def without_explicit_axes(tree: T) -> T:
    """Let the compiler decide the sharding of every array of a tree that lies on a mesh with explicit axes.

    Under explicit axes, the default of `jax.make_mesh`, the sharding is part of an array's type: slices, reshapes and
    maps over a sharded axis raise unless each of them says how its result is sharded. The same array over automatic
    axes (``AxisType.Auto``) is taken by all of them; nothing is copied. Within a program, or where a mesh is set
    (`jax.set_mesh`), the axes are given, and the array is gathered instead.
    """
    return jax.tree.map(_without, tree)


def is_explicit(x: jax.Array) -> bool:
    """Tell whether the sharding over a mesh is part of an array's type."""
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


def beside(x: jax.Array, tree: T) -> T:
    """Bring arrays of a tree onto the mesh of an array, if that has explicit axes, along none of which it is split.

    Some operations (`jax.lax.dynamic_update_slice`) take arrays of one mesh only, and what is made of nothing has none.
    """
    if not is_explicit(x):
        return tree
    sharding = NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, sharding), tree)


def is_traced(tree: Any) -> bool:
    """Tell whether what is computed from a tree is traced: arrays of it are, or the caller's function is compiled."""
    leaves = jax.tree.leaves(tree)
    # Within a caller's `jit` even what is made of nothing is traced. Outside this compiles nothing.
    return any(isinstance(leaf, Tracer) for leaf in leaves) or isinstance(jax.device_put(np.float32(0)), Tracer)


def _without(x: Any) -> Any:
    if not isinstance(x, jax.Array) or not is_explicit(x):
        return x
    kind = jax.typeof(x).sharding
    if isinstance(x, Tracer):
        return jax.sharding.reshard(x, NamedSharding(kind.mesh, PartitionSpec())) if any(kind.spec) else x
    sharding: Any = x.sharding
    mesh, spec = sharding.mesh, sharding.spec
    if jax.sharding.get_abstract_mesh().empty:
        axes = (AxisType.Auto,) * len(mesh.axis_names)
        return jax.device_put(x, NamedSharding(Mesh(mesh.devices, mesh.axis_names, axis_types=axes), spec))
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec())) if any(spec) else x
