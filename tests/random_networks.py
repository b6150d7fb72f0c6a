"""Random networks that say, while they run by hand, which operation they are at and what its value is."""

import random

import jax
import jax.numpy as jnp

from tests.sample_networks import conv, normal

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "leaky": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "hard swish": jax.nn.hard_swish,
    "square": lambda x: jnp.square(x) * 0.5,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "shrink": lambda x: jnp.where(x > 0.1, x - 0.1, jnp.where(x < -0.1, x + 0.1, 0.0)),
}


CUTS = {
    "crop": lambda x: x[:, 1:, :-1],
    "mirror": lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)), mode="reflect"),
    "repeat": lambda x: jnp.repeat(x, 2, 1),
}
"""What changes the sides of a map and is no operation."""


def conv_of_rows(rows, kernel):
    """A convolution of signals."""
    return jax.lax.conv_general_dilated(rows, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))


def SILENT(record):
    """Record nothing."""


def run(network, params, x):
    """The network without its records."""
    return network.func(params, x, SILENT)


def draw(seed):
    """A network ``(params, x, record) -> outputs``, its parameters and a batch."""
    chance = random.Random(seed)
    params = {}
    stages = []
    channels = 3

    def parameter(name, part, *shape):
        params.setdefault(name, {})[part] = normal(len(params) * 7 + len(part), *shape) + (part in ("scale", "var"))

    def layer(name, kind, channels):
        if kind == "conv":
            out = chance.choice([2, 4, 6])
            parameter(name, "kernel", 3, 3, channels, out)
            bias = chance.random() < 0.6
            if bias:
                parameter(name, "bias", 1, 1, 1, out)
            stride = chance.choice([1, 1, 2])

            def apply(params, x, record):
                x = conv(x, params[name]["kernel"], stride)
                x = x + params[name]["bias"] if bias else x
                record(("conv", x))
                return x

            return apply, out
        if kind == "batch norm":
            for part in ("scale", "bias", "mean", "var"):
                parameter(name, part, 1, 1, 1, channels)

            def apply(params, x, record):
                own = params[name]
                x = (x - own["mean"]) * jax.lax.rsqrt(jnp.abs(own["var"]) + 1e-3) * own["scale"] + own["bias"]
                record(("norm", x))
                return x

            return apply, channels
        if kind == "layer norm":
            affine = chance.random() < 0.5
            if affine:
                parameter(name, "scale", 1, 1, 1, channels)
                parameter(name, "bias", 1, 1, 1, channels)

            def apply(params, x, record):
                mean = x.mean(-1, keepdims=True)
                x = (x - mean) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-3)
                x = x * params[name]["scale"] + params[name]["bias"] if affine else x
                record(("norm", x))
                return x

            return apply, channels
        if kind == "cut":
            cut = chance.choice(sorted(CUTS))
            return lambda params, x, record: CUTS[cut](x), channels
        if kind == "rows":
            out = chance.choice([2, 4])
            parameter(name, "kernel", 3, channels, out)

            def apply(params, x, record):
                rows = jax.vmap(lambda row: conv_of_rows(row, params[name]["kernel"]), 1, 1)
                x = rows(x)
                record(("conv", x))
                return x

            return apply, out
        if kind == "pool":
            reducer, start, label = chance.choice(
                [(jax.lax.max, -jnp.inf, "max"), (jax.lax.add, 0.0, "avg"), (None, None, "reshape")]
            )

            def apply(params, x, record):
                if reducer is None:
                    b, h, w, c = x.shape
                    x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
                else:
                    x = jax.lax.reduce_window(x, start, reducer, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
                    x = x / 4 if label == "avg" else x
                record(("pool", x))
                return x

            return apply, channels
        function = ACTIVATIONS[kind]

        def apply(params, x, record):
            x = function(x)
            record(("activation", x))
            return x

        return apply, channels

    def block(name, channels, depth):
        """A residual branch that keeps its shape."""
        parameter(name, "kernel", 3, 3, channels, channels)
        activation = ACTIVATIONS[chance.choice(sorted(ACTIVATIONS))]
        wrap = chance.choice(["plain", "jit", "remat"])

        def branch(params, x, record):
            h = conv(x, params[name]["kernel"])
            record(("conv", h))
            h = activation(h)
            record(("activation", h))
            return h

        def apply(params, x, record):
            def silent(params, x):
                return branch(params, x, SILENT)

            if record is not SILENT:
                branch(params, x, record)
            h = {"plain": silent, "jit": jax.jit(silent), "remat": jax.checkpoint(silent)}[wrap](params, x)
            x = x + h
            record(("residual", x))
            return x

        return apply, channels

    size = 8
    for k in range(chance.randint(2, 6)):
        name = f"stages/{k}"
        kinds = ["conv", "conv", "batch norm", "layer norm", "residual", "rows"]
        kinds += ["pool", "cut"] if size >= 4 else []
        kind = chance.choice(kinds)
        made, channels = block(name, channels, k) if kind == "residual" else layer(name, kind, channels)
        stages.append(made)
        size = size // 2 if kind in ("pool", "conv") else size - (kind == "cut")
        if chance.random() < 0.6 and kind not in ("residual", "cut"):
            stages.append(layer(name, chance.choice(sorted(ACTIVATIONS)), channels)[0])
    parameter("head", "kernel", channels, 5)
    parameter("head", "bias", 1, 5)

    def network(params, x, record):
        for stage in stages:
            x = stage(params, x, record)
        x = x.mean((1, 2))
        record(("pool", x))
        x = x @ params["head"]["kernel"] + params["head"]["bias"]
        record(("dense", x))
        return x

    return network, params, jax.random.normal(jax.random.key(seed), (3, 8, 8, 3))
