"""Batch statistics set from given images."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Num

from stabjax import _jaxpr, features, networks
from stabjax._images import Spatial, check_batch, explain_batch
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.train._augment import check_values, normalize
from stabjax.train._recipe import Real, as_count
from stabjax.train._state_dict import in_mode


def calibrate(
    model: Any,
    images: Num[AnyArray, "n *spatial channels"],
    *,
    batch_size: int | None = None,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
    spatial: Spatial = None,
) -> Any:
    """Copy a network, in evaluation mode, with the exact statistics of these images in its batch normalizations.

    Each normalization gets the mean and the (biased) variance of its own input over all the images, those before it
    being calibrated already: on these images, evaluation then equals one training pass over them as a single batch.

    Args:
        model: an NNX module, of which a module is made; or a network from `stabjax.networks.wrap`, or any other model
            that it takes, of which a network is made. Of one without batch normalizations a copy is returned.
        images: as in `fit`.
        batch_size: None takes all images as one batch, in one pass. A number bounds the memory: as many passes as there
            are normalizations, each settling one more of them; the same result to rounding.
        mean: see `Recipe`.
        deviation: see `Recipe`.
        spatial: number of spatial axes of the images, or their sides, as in `fit`.

    Returns:
        the module, or the `stabjax.networks.Network`.

    Raises:
        TypeError: if the model is none that `stabjax.networks.wrap` takes as it stands.
        ValueError: no images, or images that do not go with ``mean`` and ``deviation``; or a
            normalization is used more than once in a pass, with a mask, or holds its statistics out of sight.
    """
    check_batch(images, spatial=spatial, vectors=True, integers="any")
    images = without_explicit_axes(images)
    check_values(images, mean=mean, deviation=deviation)
    size = len(images) if batch_size is None else min(as_count("batch_size", batch_size), len(images))
    parts = [images[i : i + size] for i in range(0, len(images), size)]

    def prepare(part: Any) -> jax.Array:
        return normalize(jnp.asarray(part), mean=mean, deviation=deviation)

    with explain_batch(images):
        calibrated = _calibrate_module if isinstance(model, nnx.Module) else _calibrate_network
        return calibrated(model, parts, prepare)


def _calibrate_network(model: Any, parts: Sequence[Any], prepare: Callable[[Any], jax.Array]) -> networks.Network:
    """Calibrate a network of any framework, whose normalizations are found in its program."""
    network = model if isinstance(model, networks.Network) else networks.wrap(model)
    inputs, tree = jax.tree_util.tree_flatten(network.variables)
    found = {}
    for part in parts:
        # The program holds for one shape; the last batch may have another one.
        if len(part) not in found:
            traced = features.trace(network, jax.eval_shape(prepare, part))
            found[len(part)] = _jaxpr.find_running_norms(traced.program)
    norms = found[len(parts[0])]

    @partial(jax.jit, static_argnums=0)
    def moments(size: int, inputs: list[Any], part: Any) -> list[tuple[jax.Array, jax.Array]]:
        return found[size].moments([*inputs, prepare(part)], settle=len(parts) == 1)

    for _ in range(_passes(parts, len(norms.norms))):
        of_parts = [moments(len(part), inputs, jnp.asarray(part)) for part in parts]
        pooled = [_pool_moments(list(of_norm), list(map(len, parts))) for of_norm in zip(*of_parts)]
        inputs = norms.replace(inputs, pooled)
    return networks.Network(jax.tree_util.tree_unflatten(tree, inputs), network.adapter)


def _passes(parts: Sequence[Any], norms: int) -> int:
    """Return how many passes it takes.

    One batch has all images, so that each normalization can settle on the way. Of several, none has: the inputs of the
    next normalization are right only after the statistics of all parts are pooled, one normalization per pass.
    """
    return min(1, norms) if len(parts) == 1 else norms


def _calibrate_module(model: nnx.Module, parts: Sequence[Any], prepare: Callable[[Any], jax.Array]) -> nnx.Module:
    """Calibrate an NNX module, whose normalizations are modules of their own."""
    model = in_mode(model, training=False)
    norms = {path: node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm)}
    if not norms:
        return model

    @jax.jit
    def moments(state: Any, batch: jax.Array) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        probe = nnx.merge(graphdef, state, copy=True)
        probe(prepare(batch))
        return [(node.mean[...], node.var[...], node.calls[...]) for _, node in _find_listeners(probe)]

    probe = _insert_listeners(nnx.clone(model), list(norms), settle=len(parts) == 1)
    graphdef = nnx.graphdef(probe)
    names, listeners = zip(*_find_listeners(probe))

    # The statistics of layers run by one scan are stacked, and settle one after the other too.
    for _ in range(_passes(parts, sum(math.prod(norm.mean.shape[:-1]) for norm in norms.values()))):
        # found[part][k]: mean, variance and calls of normalization k. After pass p the first p in the order of
        # execution are exact, whatever the others hold; further passes leave them so.
        found = [moments(nnx.state(probe), jnp.asarray(part)) for part in parts]
        for k, (name, listener) in enumerate(zip(names, listeners)):
            calls = int(np.max(found[0][k][2]))
            if calls > 1:
                raise ValueError(
                    f"expected every batch normalization to be used once in a pass, got {name} used {calls} times: "
                    "its one mean and variance cannot be those of several inputs; give each place its own"
                )
            listener.norm.mean[...], listener.norm.var[...] = _pool_moments(
                [f[k][:2] for f in found], [len(p) for p in parts]
            )
    for norm, listener in zip(norms.values(), listeners):
        norm.mean[...], norm.var[...] = listener.norm.mean[...], listener.norm.var[...]
    return model


class _Listener(nnx.Module):
    """A batch normalization in evaluation mode, whose ``mean`` and ``var`` are those of its last input.

    One that is to ``settle`` normalizes by them at once.
    """

    def __init__(self, norm: nnx.BatchNorm, *, settle: bool) -> None:
        self.norm = norm
        self.settle = settle
        self.mean = nnx.BatchStat(norm.mean[...])
        self.var = nnx.BatchStat(norm.var[...])
        # An array like the statistics, which may be those of many layers in one scan.
        self.calls = nnx.BatchStat(jnp.zeros(norm.mean.shape, jnp.int32))

    def __call__(self, x: jax.Array, *arguments: Any, mask: jax.Array | None = None, **options: Any) -> jax.Array:
        if mask is not None:
            raise ValueError("expected batch normalizations without a mask to calibrate, got one with a mask")
        # (samples, channels): the channels are the axis that is normalized, every other position is a sample.
        rows = jnp.moveaxis(x, self.norm.axis, -1).reshape(-1, x.shape[self.norm.axis]).astype(self.mean.dtype)
        self.mean[...], self.var[...] = jnp.mean(rows, axis=0), jnp.var(rows, axis=0)
        self.calls[...] += 1
        if self.settle:
            self.norm.mean[...], self.norm.var[...] = self.mean[...], self.var[...]
        return self.norm(x, *arguments, **options)


def _insert_listeners(root: Any, paths: list[tuple[Any, ...]], *, settle: bool) -> Any:
    """Put a listener in every place of a normalization, the same for the same, and return the graph."""
    nodes, shared = dict(nnx.iter_graph(root)), nnx.find_duplicates(root)
    for path in paths:
        listener = _Listener(nodes[path], settle=settle)
        # A module that is used in several places is one node with several paths; each must lead to the one listener.
        for place in next((places for places in shared if path in places), [path]):
            root = _replace_node(root, place, listener)
    return root


def _find_listeners(probe: Any) -> list[tuple[str, _Listener]]:
    return [("/".join(map(str, path)), node) for path, node in nnx.iter_graph(probe) if isinstance(node, _Listener)]


def _replace_node(node: Any, path: tuple[Any, ...], new: nnx.Module) -> Any:
    """Put ``new`` at a path of a graph: changed in place, but for tuples, which are made anew."""
    if not path:
        return new
    name, item = path[0], isinstance(path[0], int) or isinstance(node, dict)
    old = node[name] if item else getattr(node, name)
    # Down to the node, then back up: only tuples, which cannot change in place, are made anew along the way.
    child = _replace_node(old, path[1:], new)
    if isinstance(node, tuple):
        named: Any = node
        return named._replace(**{name: child}) if isinstance(name, str) else (*node[:name], child, *node[name + 1 :])
    if child is not old:
        if item:
            node[name] = child
        else:
            setattr(node, name, child)
    return node


def _pool_moments(parts: list[tuple[jax.Array, ...]], counts: list[int]) -> tuple[jax.Array, jax.Array]:
    """Return the mean and variance of the union of groups, summed in double precision."""
    share = np.reshape(np.array(counts) / sum(counts), (-1,) + (1,) * parts[0][0].ndim)
    means, variances = (np.array([np.asarray(p[i], np.float64) for p in parts]) for i in (0, 1))
    with np.errstate(all="ignore"):  # what has not settled yet may be infinite further down
        mean = np.sum(share * means, axis=0)
        # var = sum_g n_g / n (var_g + (mean_g - mean)^2): nothing is subtracted but means.
        variance = np.sum(share * (variances + (means - mean) ** 2), axis=0)
    dtype = parts[0][0].dtype
    return jax.device_put(mean.astype(dtype)), jax.device_put(variance.astype(dtype))
