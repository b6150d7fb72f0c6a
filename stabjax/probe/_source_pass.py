"""The pass outside of any program: window by window from any source of images, over the devices of a mesh.

Two programs are called for every window: one perturbs its images, one runs the network and reduces at its operations.
While the devices work, the host prepares the next window.
"""

import contextlib
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from stabjax import features, networks, perturb
from stabjax._arguments import value_of
from stabjax._progress import image_bar
from stabjax._provenance import describe
from stabjax.probe._batching import Step
from stabjax.probe._checkpoint import Checkpoint, Position, extend_digest, folder_of_process, open_checkpoint
from stabjax.probe._context import Rows, Summary
from stabjax.probe._devices import BATCHES, ONE_DEVICE, Devices
from stabjax.probe._effort import are_few
from stabjax.probe._pass import init_states, pass_batch
from stabjax.probe._plan import Plan, describe_network, plan_pass
from stabjax.probe._processes import agree, gather_rows
from stabjax.probe._request import Request
from stabjax.probe._rows import RowCollector
from stabjax.probe._source import ArraySource, StreamSource, Window
from stabjax.probe._windows import pass_window, pass_window_quickly, perturb_window, sum_window_sizes

Placed: TypeAlias = tuple[Any, Any, Any]
"""Images, their positions and whether they count, ``(batches, slots, ...)``, on the devices."""


def pass_source(
    network: networks.Network,
    source: ArraySource | StreamSource,
    request: Request,
    devices: Devices,
    *,
    pixels: int | None,
    path: Path | None,
    progress: bool | None,
) -> dict[str, Any]:
    """Take the measurements as `stabjax.probe.run` does, of images from a source.

    Args:
        network: The network.
        source: The images.
        request: What is asked.
        devices: Over which the images are split.
        pixels: Of all versions of all images of all processes, where their number is known.
        path: Folder of the checkpoint.
        progress: Whether to show a bar.
    """
    sizes: dict[str, Any] = {"batch_size": request.batch_size, "draws": request.draws, "kinds": request.kinds}
    plan = plan_pass(source, devices, **sizes)
    step, image = plan.step, jax.ShapeDtypeStruct(source.shape, plan.dtype)
    traced = features.trace(network, jax.ShapeDtypeStruct((step.rows, *image.shape), image.dtype))
    if not step.separate:
        together = f", or pass all images as one batch, batch_size={plan.images}" if plan.images else ""
        traced.check_rows(otherwise=together)
    deformation, noise = request.perturbations(image.shape[:-1])
    by_device: dict[str, Any] = {"step": step, "normalization": request.normalization}
    perturbed = partial(_perturb, key=request.key, deformation=deformation, devices=devices, **by_device)
    if request.radius == "mean":
        noise = perturb.SphericalNoise(_mean_size(plan, perturbed, request.draws), spatial=image.shape[:-1])
    # Shapes of a window on one device, and of one batch of it.
    share_of_device: Any = tuple(
        jax.ShapeDtypeStruct((plan.batches_of_window, step.size, *shape), dtype)
        for shape, dtype in ((image.shape, jax.dtypes.canonicalize_dtype(source.dtype)), ((), np.int32), ((), np.bool_))
    )
    window_shape = perturb_window.eval_shape(
        *share_of_device, np.int32(0), request.key, deformation, noise, **by_device, devices=ONE_DEVICE
    )
    batch_shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), window_shape)
    options: dict[str, Any] = {"select": request.select, "step": step}
    states, taps = init_states(traced, request.measurements, batch_shape, deformation, **options)

    run_network = pass_window_quickly if are_few(pixels) else pass_window

    def pass_step(states: Any, placed: Placed, number: int, draw: int) -> tuple[Any, Any]:
        window = perturbed(placed, noise=noise, draw=np.int32(draw))
        network_and_states = traced, request.measurements, states
        states, found = run_network(
            *network_and_states, window, np.int32(number), deformation, devices=devices, **options
        )
        return states, (found, Rows(window.finite, window.sizes))

    def rows_shape() -> Any:
        one = partial(pass_batch, **options)
        rows = jax.eval_shape(one, traced, request.measurements, states, batch_shape, deformation)[1]
        return rows, Rows(batch_shape.finite, batch_shape.sizes)

    stacked = devices.stack(states)
    with contextlib.ExitStack() as stack:
        checkpoint = None
        if path is not None:
            what = _description(request, traced, plan)
            checkpoint = stack.enter_context(open_checkpoint(folder_of_process(path, devices), what))
        show = stack.enter_context(image_bar(plan.images, shown=progress))
        loop = _Loop(plan, checkpoint, show)
        stacked, collector = loop.resume(stacked, rows_shape)
        stacked = loop.run(stacked, collector, pass_step, request.draws)
    found, facts = gather_rows(*collector.finish(), devices)
    merged = _merge(request, devices.unstack(stacked))
    return request.finish(merged, found, Summary(taps, request.key, facts.per_image, facts.per_draw))


class _Loop:
    """The loop over all windows, which may have been begun by a process that was killed."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint | None, show: Callable[[int], None]) -> None:
        self._plan, self._checkpoint, self._show = plan, checkpoint, show
        self._position = Position()

    def resume(self, states: Any, rows_shape: Callable[[], Any]) -> tuple[Any, RowCollector]:
        """Return states and rows as they were saved, or as they are given."""
        collector = RowCollector()
        if self._checkpoint is None:
            return states, collector
        devices = self._plan.devices
        saved = self._checkpoint.load(agree(self._checkpoint.newest(), min, devices))
        if saved is None:
            return states, collector
        self._position = saved.position
        collector.restore(jax.tree.structure(rows_shape()), saved.rows, saved.positions)
        structure = jax.tree.structure(states)
        return jax.tree.unflatten(structure, [devices.put(leaf) for leaf in saved.states]), collector

    def run(self, states: Any, collector: RowCollector, pass_step: Callable[..., tuple[Any, Any]], draws: int) -> Any:
        """Pass all batches that are left; return the states."""
        plan, now = self._plan, self._position
        for window in plan.windows(now):
            placed = _place(window, plan.devices)
            rows = []
            for draw in range(0, draws, plan.step.draws):
                states, found = pass_step(states, placed, window.number, draw)
                rows.append(found)
            collector.add(window, rows)
            counted = window.counted[: window.number]
            images = window.images[: window.number]
            digest = extend_digest(now.digest, images, counted) if self._checkpoint else 0
            now = Position(now.batches + window.number, now.images + int(counted.sum()), digest)
            if self._checkpoint and agree(self._checkpoint.is_due(), max, plan.devices):
                source = plan.source.position(now.images) if isinstance(plan.source, StreamSource) else None
                position = Position(now.batches, now.images, now.digest, source)
                rows, positions = collector.take_new()
                self._checkpoint.save(position, plan.devices.local(states), rows, positions)
            if isinstance(plan.source, StreamSource):
                plan.source.forget(now.images)
            self._show(now.images)
        return states


def _place(window: Window, devices: Devices) -> Placed:
    """Put the images of a window, their positions and whether they count on the devices."""
    images, positions, counted = (devices.put(x, BATCHES) for x in window[:3])
    return images, positions, counted


def _perturb(
    placed: Placed,
    *,
    key: Any,
    deformation: Any,
    noise: Any,
    draw: Any,
    step: Step,
    normalization: Any,
    devices: Devices,
) -> Any:
    options = {"step": step, "normalization": normalization, "devices": devices}
    return perturb_window(*placed, draw, key, deformation, noise, **options)


def _mean_size(plan: Plan, perturbed: Callable[..., Any], draws: int) -> float:
    """Average ``|tau x - x|`` over finite images and draws, by a pass that deforms and runs no network."""
    totals = np.zeros(2)
    for window in plan.windows():
        placed = _place(window, plan.devices)
        for draw in range(0, draws, plan.step.draws):
            found = perturbed(placed, noise=None, draw=np.int32(draw))
            # Sums over the images of all devices and processes.
            totals += np.asarray(jax.device_get(sum_window_sizes(found)))
    if totals[1] == 0:
        raise ValueError("expected images with finite pixels for radius='mean', got none: there is no size to average")
    return float(totals[0] / totals[1])


def _merge(request: Request, states: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the states of all devices into one."""
    return {
        name: reduce(value_of(measurement).merge, [state[name] for state in states])
        for name, measurement in request.measurements.items()
    }


def _description(request: Request, traced: features.Traced, plan: Plan) -> dict[str, Any]:
    """Return all that decides the numbers but the images, as JSON has it."""
    return {
        "network": describe_network(traced),
        "measurements": {name: describe(value_of(each)) for name, each in request.measurements.items()},
        "key": describe(request.key),
        "deformation": describe(request.deformation),
        "noise": describe(request.noise),
        "radius": request.radius,
        "draws": request.draws,
        "select": describe(request.select),
        "normalization": describe(request.normalization),
        **plan.describe(),
    }
