"""The two programs of a pass: one perturbs a window of batches, which all networks share, one runs the network on it.

A window is a few batches, one after the other in a loop inside the program. On a CPU a program gets its memory from the
system at every call, page by page: a call per batch takes half as long again as a loop over batches.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax import features
from stabjax._compilation import quick_jit
from stabjax._types import AnyArray, Perturbation, PRNGKey
from stabjax.probe._batching import Step
from stabjax.probe._context import Batch, Rows
from stabjax.probe._devices import BATCHES, DRAWS, WHOLE, Devices
from stabjax.probe._pass import Measurements, Normalization, pass_batch, perturb_batch, sum_sizes

_SPLITS: Any = (DRAWS, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, WHOLE, DRAWS, DRAWS)
_OF_WINDOW = Batch(*_SPLITS)
"""How each part of a window lies on the devices."""


@quick_jit(level=1, static_argnames=("step", "normalization", "devices"))
def perturb_window(
    images: AnyArray,
    positions: Int[AnyArray, "batches size"],
    counted: Bool[AnyArray, "batches size"],
    first_draw: Int[AnyArray, ""],
    key: PRNGKey,
    deformation: Perturbation | None,
    noise: Perturbation | None,
    *,
    step: Step,
    normalization: Normalization,
    devices: Devices,
) -> Batch:
    """Make all versions of the images of a window, ``(batches, ...)`` of everything; see `perturb_batch`."""

    def local(images: Any, positions: Any, counted: Any, first_draw: Any, key: Any, *perturbations: Any) -> Batch:
        def of_batch(batch: tuple[Array, Array, Array]) -> Batch:
            return perturb_batch(*batch, first_draw, key, *perturbations, step=step, normalization=normalization)

        return jax.lax.map(of_batch, (images, positions, counted))

    inputs = (BATCHES, BATCHES, BATCHES, WHOLE, WHOLE, WHOLE, WHOLE)
    split = devices.split(local, inputs, _OF_WINDOW)
    return split(images, positions, counted, first_draw, key, deformation, noise)


def _pass_window(
    traced: features.Traced,
    measurements: Measurements,
    states: Mapping[str, Any],
    window: Batch,
    number: Int[AnyArray, ""],
    deformation: Perturbation | None,
    *,
    select: features.Select,
    step: Step,
    devices: Devices,
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Run the network on the first ``number`` batches of a window, and update the state of every measurement.

    Returns:
        States by name, of every device one (on a leading axis if there are several), and rows, ``(batches, ...)``.
    """

    def local(
        states: Any, traced: Any, measurements: Any, window: Batch, number: Any, deformation: Any
    ) -> tuple[Any, Any]:
        def pass_one(states: Any, batch: Batch) -> tuple[Any, Any]:
            return pass_batch(traced, measurements, states, batch, deformation, select=select, step=step)

        def advance(index: Array, carried: tuple[Any, Any]) -> tuple[Any, Any]:
            states, rows = carried
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), window)
            states, found = pass_one(states, batch)
            put = jax.lax.dynamic_update_index_in_dim
            return states, jax.tree.map(lambda x, new: put(x, new, index, 0), rows, found)

        # Rows that are never written belong to batches that only fill up the window. A loop with as many turns as there
        # are batches: a branch inside of it (`lax.cond`) would cost a tenth of the time.
        batches = len(window.finite)
        shapes = jax.eval_shape(pass_one, states, jax.tree.map(lambda x: x[0], window))[1]
        empty = jax.tree.map(lambda x: jnp.zeros((batches, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(0, number, advance, (states, empty))

    inputs = (WHOLE, WHOLE, _OF_WINDOW, WHOLE, WHOLE)
    rows = {name: Rows(BATCHES, DRAWS) for name in measurements}
    split = devices.split_states_and_rows(local, inputs, rows)
    return split(states, traced, measurements, window, number, deformation)


pass_window = jax.jit(_pass_window, static_argnames=("select", "step", "devices"))
pass_window_quickly = quick_jit(level=0, static_argnames=("select", "step", "devices"))(_pass_window)
"""The same for few images, see `_effort`."""


@jax.jit
def sum_window_sizes(window: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the sum of ``|tau x - x|`` over a window, and the number of its terms."""
    totals, counts = jax.vmap(sum_sizes)(window)
    return jnp.sum(totals), jnp.sum(counts)
