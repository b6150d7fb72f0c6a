"""What several tests of models share: small networks by name, images for them, and their forward pass."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stabjax import models

SMALL = {
    "SmallCNN": {"channels": (4, 6)},
    "MinimalCNN": {},
    "MinimalLCN": {"channels": 8},
    "LeNet": {},
    "ViT": {"width": 24, "depth": 2},
    **{f"FCL{layers}": {} for layers in (2, 4, 6)},
    **{f"GAPConvNet{ndim}d": {"channels": 6} for ndim in (1, 2)},
}
WIDTH = {"AlexNet": 1 / 32, **{f"VGG{depth}{norm}": 1 / 32 for depth in (11, 13, 16, 19) for norm in ("", "bn")}}
SHAPES = {"GAPConvNet1d": (128, 1), "GAPConvNet2d": (28, 28, 1)}


def options(name):
    """Return options that make a network of that name small."""
    return SMALL.get(name, {"width": WIDTH.get(name, 1 / 16)})


@cache
def abstract(name, dtype=jnp.float32, in_channels=None):
    """Build a small network of that name, of shapes."""
    channels = {} if in_channels is None else {"in_channels": in_channels}
    return nnx.eval_shape(lambda: models.build(name, rngs=nnx.Rngs(0), param_dtype=dtype, **channels, **options(name)))


def filled(name, seed=0, **kinds):
    """Fill that network with numbers from NumPy: it starts in no time, and nothing in it is zero or one."""
    graph, state = nnx.split(abstract(name, **kinds))
    draw = np.random.default_rng(seed)

    def fill(path, leaf):
        last = path[-1] if path[-1] != "value" else path[-2]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if last == "count":
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        if last == "kernel":
            # no signal dies on its way: ReLU halves its square, swish and gates more
            gain = 4 if name == "EfficientNetB0" else 2
            numbers = draw.normal(0, (gain / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        else:
            center = 1 if last in ("scale", "var", "gamma") else 0
            numbers = center + 0.2 * draw.uniform(-1, 1, leaf.shape)
        return jax.device_put(numbers.astype(leaf.dtype))

    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    filling = [fill([getattr(k, "key", getattr(k, "name", k)) for k in path], leaf) for path, leaf in leaves]
    return nnx.merge(graph, jax.tree_util.tree_unflatten(tree, filling))


def images(name, batch=4, dtype=jnp.float32):
    """Draw images of the shape that the network takes."""
    shape = (batch, *SHAPES.get(name, (32, 32, 3)))
    return jax.device_put(np.random.default_rng(1).normal(size=shape).astype(np.float32).astype(dtype))


def forward(model, train=False):
    """Return a pure function of (state, x), jitted, and the state."""
    model.train() if train else model.eval()
    graph, state = nnx.split(model)

    def f(state, x):
        merged = nnx.merge(graph, state, copy=True)
        return merged(x), nnx.state(merged)

    return jax.jit(f), state
