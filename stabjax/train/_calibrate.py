"""Batch statistics set from given images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Num

from stabjax._types import AnyArray
from stabjax.train._layout import in_mode
from stabjax.train._prepare import normalise
from stabjax.train._recipe import Real


def calibrate(
    model: nnx.Module,
    images: Num[AnyArray, "n *spatial channels"],
    *,
    batch_size: int | None = None,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> nnx.Module:
    """A copy of ``model``, in evaluation mode, whose batch normalisations use the exact statistics of these images.

    Each normalisation gets the mean and the (biased) variance of its own input over all the images, those before it
    being calibrated already: on these images, evaluation then equals one training pass over them as a single batch.

    Args:
        model: any NNX module with `flax.nnx.BatchNorm` inside; without one, the copy is returned.
        images: as in `fit`.
        batch_size: None takes all images as one batch, in one pass. A number bounds the memory: as many passes as there
            are normalisations, each settling one more of them; the same result to rounding.
        mean: see `normalise`.
        deviation: see `normalise`.
    """
    if len(images) == 0:
        raise ValueError("expected at least one image to calibrate on, got none")
    model = in_mode(model, training=False)
    norms = [path for path, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm)]
    if not norms:
        return model

    @jax.jit
    def moments(state: Any, batch: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        probe = nnx.merge(graphdef, state, copy=True)
        probe(normalise(batch, mean=mean, deviation=deviation))
        return [(node.mean[...], node.var[...]) for node in (_at(probe, path) for path in norms)]

    size = len(images) if batch_size is None else min(batch_size, len(images))
    whole = size == len(images)
    probe = nnx.clone(model)
    for path in norms:
        if whole:
            _at(probe, path).set_attributes(use_running_average=False, momentum=0.0)
        else:
            _replace(probe, path, _Listener(_at(probe, path)))
    graphdef = nnx.graphdef(probe)

    for _ in range(1 if whole else len(norms)):
        if whole:
            settled = moments(nnx.state(probe), jnp.asarray(images))
        else:
            parts = [images[i : i + size] for i in range(0, len(images), size)]
            found = [moments(nnx.state(probe), jnp.asarray(part)) for part in parts]
            settled = [_pooled([f[k] for f in found], [len(p) for p in parts]) for k in range(len(norms))]
        for path, (centre, variance) in zip(norms, settled):
            for holder in (model, probe):
                node = _at(holder, path)
                norm = node.norm if isinstance(node, _Listener) else node
                norm.mean[...], norm.var[...] = centre, variance
    return model


class _Listener(nnx.Module):
    """A batch normalisation in evaluation mode, whose ``mean`` and ``var`` are those of its last input."""

    def __init__(self, norm: nnx.BatchNorm) -> None:
        self.norm = norm
        self.mean = nnx.BatchStat(norm.mean[...])
        self.var = nnx.BatchStat(norm.var[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = jnp.moveaxis(x, self.norm.axis, -1).reshape(-1, x.shape[self.norm.axis]).astype(self.mean.dtype)
        self.mean[...], self.var[...] = jnp.mean(rows, axis=0), jnp.var(rows, axis=0)
        return self.norm(x)


def _pooled(parts: list[tuple[jax.Array, jax.Array]], counts: list[int]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the union of groups, summed in double precision."""
    share = np.array(counts, np.float64)[:, None] / sum(counts)
    means, variances = (np.array([np.asarray(p[i], np.float64) for p in parts]) for i in (0, 1))
    mean = np.sum(share * means, axis=0)
    variance = np.sum(share * (variances + (means - mean) ** 2), axis=0)
    dtype = parts[0][0].dtype
    return jnp.asarray(mean.astype(dtype)), jnp.asarray(variance.astype(dtype))


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        node = node[name] if isinstance(name, int) else getattr(node, name)
    return node


def _replace(root: Any, path: tuple[Any, ...], new: nnx.Module) -> None:
    parent = _at(root, path[:-1])
    if isinstance(path[-1], int):
        parent[path[-1]] = new
    else:
        setattr(parent, path[-1], new)
