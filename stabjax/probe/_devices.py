"""Images split over devices: each device passes its own share, with a state of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


class Split(Enum):
    """Along which axis an array is split over the devices."""

    WHOLE = None
    """Along none: every device has all of it."""
    IMAGES = 0
    """The first axis is that of the images, or of the devices themselves."""
    BATCHES = 1
    """The axis of the images comes after one of batches."""
    DRAWS = 2
    """The axis of the images comes after those of batches and draws."""


WHOLE, IMAGES, BATCHES, DRAWS = Split


@dataclass(frozen=True)
class Devices:
    """The devices over which images are split.

    Attributes:
        mesh: Their mesh, with automatic axes; None for one device, where nothing is split.
        axes: Those axes of the mesh along which images are split. Along others the network may be.
    """

    mesh: Mesh | None = None
    axes: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """Shares into which images are split."""
        return 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in self.axes]))

    @property
    def processes(self) -> int:
        """Processes that take part."""
        return jax.process_count() if self.mesh is not None and self.mesh.is_multi_process else 1

    def split(self, f: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """Return a function whose arguments are split like that, each device calling ``f`` on its share."""
        if self.mesh is None:
            return f
        return jax.shard_map(
            f,
            mesh=self.mesh,
            in_specs=self._specs(inputs),
            out_specs=self._specs(outputs),
            axis_names=set(self.axes),
            check_vma=False,
        )

    def split_states(self, f: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        """Do the same for ``f(states, ...) -> states``.

        States of all devices are stacked along a leading axis; each sees its own without it.
        """
        if self.mesh is None:
            return f

        def local(states: Any, *others: Any) -> Any:
            return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], states), *others))

        return self.split(local, (IMAGES, *inputs), IMAGES)

    def split_states_and_rows(self, f: Callable[..., Any], inputs: Any, rows: Any) -> Callable[..., Any]:
        """Do the same for ``f(states, ...) -> states, rows``."""
        if self.mesh is None:
            return f

        def local(states: Any, *others: Any) -> tuple[Any, Any]:
            states, found = f(jax.tree.map(lambda x: x[0], states), *others)
            return jax.tree.map(lambda x: x[None], states), found

        return self.split(local, (IMAGES, *inputs), (IMAGES, rows))

    def as_context(self) -> AbstractContextManager[Any]:
        """Return a context in which functions may be split, whatever mesh the caller has set (`jax.set_mesh`)."""
        if self.mesh is None or jax.sharding.get_abstract_mesh().empty:
            return nullcontext()
        return jax.set_mesh(self.mesh)

    def index(self) -> Any:
        """Return the number of the device that runs a function which is split."""
        return 0 if self.mesh is None else jax.lax.axis_index(self.axes)

    def gather(self, tree: Any, splits: Any) -> Any:
        """Return what all devices have of a tree, inside a function that is split."""
        if self.mesh is None:
            return tree

        def of_all(split: Split, part: Any) -> Any:
            axis = split.value
            if axis is None:
                return part
            return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axes, axis=axis, tiled=True), part)

        return jax.tree.map(of_all, splits, tree)

    def put(self, x: Any, split: Split = IMAGES) -> Any:
        """Put an array on the devices; along the axis that is split it has the share of this process."""
        if self.mesh is None:
            return x
        sharding = NamedSharding(self.mesh, self._specs(split))
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    def stack(self, states: Any) -> Any:
        """Return a state for every device, stacked."""
        if self.mesh is None:
            return states
        count = self.number // self.processes
        return jax.tree.map(lambda x: self.put(np.broadcast_to(np.asarray(x), (count, *np.shape(x)))), states)

    def local(self, states: Any) -> Any:
        """Return the stacked states of the devices of this process, in the memory of the host."""
        return jax.tree.map(lambda x: local_part(x, 0), states)

    def unstack(self, states: Any) -> list[Any]:
        """Return the states of all devices, of other processes too, in the memory of the host."""
        if self.mesh is None:
            return [states]
        if self.processes > 1:
            states = multihost_utils.process_allgather(states, tiled=True)
        states = jax.tree.map(np.asarray, states)
        return [jax.tree.map(lambda x, k=k: x[k], states) for k in range(self.number)]

    def _specs(self, splits: Any) -> Any:
        # Where several axes of the mesh split one axis of an array they stand together in one entry.
        def spec(split: Split) -> PartitionSpec:
            return PartitionSpec() if split.value is None else PartitionSpec(*[None] * split.value, self.axes)

        return jax.tree.map(spec, splits)


ONE_DEVICE = Devices()


def local_part(x: Any, axis: int) -> np.ndarray:
    """Return that part of an array, split along an axis, which lies on devices of this process."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return np.asarray(x)
    parts = {shard.index[axis].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)], axis)


def find_devices(mesh: Mesh | None, images: Any, network: Any) -> Devices:
    """Return over which devices images are split: those of a mesh, or those on which the images lie.

    Args:
        mesh: What the caller gives.
        images: An array, which may be sharded along its first axis; or anything else.
        network: A pytree. Axes of the mesh along which its arrays are sharded do not split images.
    """
    if mesh is None and isinstance(images, jax.Array) and isinstance(images.sharding, NamedSharding):
        first = images.sharding.spec[:1]
        if first and first[0] is not None and images.sharding.mesh.size > 1:
            concrete: Any = images.sharding.mesh
            mesh = concrete
    if mesh is None:
        return ONE_DEVICE
    taken = {axis for leaf in jax.tree.leaves(network) for axis in _sharded_axes(leaf)}
    axes = tuple(axis for axis in mesh.axis_names if axis not in taken)
    if not axes:
        raise ValueError(
            f"expected a mesh with an axis along which images are split, got {mesh.shape} and a network that is "
            "sharded along all of them: add an axis, jax.make_mesh((2, 4), ('images', 'model'))"
        )
    # Under explicit axes the sharding is part of an array's type, which operations of a network do not say.
    return Devices(Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names)), axes)


def _sharded_axes(leaf: Any) -> list[str]:
    if not isinstance(leaf, jax.Array) or not isinstance(leaf.sharding, NamedSharding):
        return []
    entries = [entry for entry in leaf.sharding.spec if entry is not None]
    return [axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))]
