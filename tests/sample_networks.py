"""Networks of four kinds that the tests look into, each with the operations it is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

from stabjax import networks

IMAGES = (2, 8, 8, 3)

RATE = 1.0
"""What a network of another file reads by its name."""


@dataclass(frozen=True)
class Case:
    """A network, and the name and kind of each operation it should be found to have."""

    build: Callable[[], Any]
    expected: str
    relaxed: bool = True


def conv(x, kernel, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / shape[0], jnp.float32)


# Flax NNX


class NNXConvNormDense(nnx.Module):
    """A convolution, batch normalization, ReLU and a dense layer, for images of a side."""

    def __init__(self, side, *, rngs, channels=4):
        self.conv = nnx.Conv(3, channels, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dense = nnx.Linear(channels * (side // 2) ** 2, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.dense(jnp.reshape(x, (len(x), -1)))


class NNXBlock(nnx.Module):
    def __init__(self, channels, rngs):
        self.conv = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(x + self.norm(self.conv(x)))


class NNXResidual(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(4, rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.drop(x.mean((1, 2))))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.patch = nnx.Conv(3, 8, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.position = nnx.Param(normal(3, 1, 4, 8))
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, 8, decode=False, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
        self.scale = nnx.Param(jnp.full((8,), 0.5))
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = self.patch(x).reshape(x.shape[0], 4, 8) + self.position[...]
        x = x + self.attention(self.norm(x))
        x = x + self.scale[...] * self.down(jax.nn.gelu(self.up(x)))
        return self.head(x[:, 0])


class NNXSqueeze(nnx.Module):
    def __init__(self, rngs):
        self.depthwise = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.expand = nnx.Conv(3, 4, (1, 1), rngs=rngs)
        self.squeeze = nnx.Linear(4, 2, rngs=rngs)
        self.excite = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.hard_swish(self.norm(self.depthwise(nnx.relu6(self.expand(x)))))
        gate = jax.nn.sigmoid(self.excite(nnx.silu(self.squeeze(x.mean((1, 2))))))
        return (x * gate[:, None, None]).sum((1, 2))


class NNXWrapped(nnx.Module):
    """A weight norm, batch statistics inside a remat, and a module that is called as the output is."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.weight = nnx.WeightNorm(self.conv, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.output = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.remat(lambda self, x: nnx.relu(self.norm(self.weight(x))))(self, x)
        return self.output(x.mean((1, 2)))


class NNXTied(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(3, 5, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.conv(jnp.tanh(self.conv(x))))
        return self.dense(x.max((1, 2))), x


# Flax Linen


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(4, (3, 3))(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.relu(x)
        x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.Conv(6, (3, 3), use_bias=False)(x)
        x = linen.LayerNorm()(x)
        x = linen.silu(x)
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = linen.relu(linen.Dense(7)(x))
        return linen.Dense(10)(x)


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return x + linen.gelu(linen.RMSNorm()(linen.Dense(x.shape[-1])(x))), None


class LinenScanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3), name="stem")(x).mean((1, 2))
        layers = linen.scan(
            linen.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )(name="layers")
        x, _ = layers(x, None)
        return linen.Dense(10, name="head")(x)


class LinenDense(linen.Module):
    """Concatenation of features, and a rematerialized block."""

    @linen.compact
    def __call__(self, x):
        for _ in range(2):
            y = linen.remat(linen.Conv)(2, (3, 3))(linen.relu(linen.GroupNorm(num_groups=1)(x)))
            x = jnp.concatenate([x, y], -1)
        return linen.Dense(10)(x.mean((1, 2)))


def bound(module):
    return module.bind(module.init(jax.random.key(0), jnp.zeros(IMAGES)))


# Equinox


class Stack(eqx.Module):
    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def equinox_convolutional():
    keys = jax.random.split(jax.random.key(0), 2)
    return Stack(
        [
            eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
            eqx.nn.GroupNorm(2, 4),
            jax.nn.silu,
            eqx.nn.MaxPool2d(2, 2),
            jnp.ravel,
            eqx.nn.Linear(36, 10, key=keys[1]),
            jax.nn.log_softmax,
        ]
    )


def equinox_perceptron():
    mlp = eqx.nn.MLP(8 * 8 * 3, 10, 16, 2, activation=jax.nn.gelu, key=jax.random.key(0))
    return Stack([jnp.ravel, eqx.nn.Dropout(0.5), mlp])


# Plain functions


def plain_convolutional(x):
    x = jax.nn.relu(conv(x, normal(0, 3, 3, 3, 4)) + normal(1, 4).reshape(1, 1, 1, 4))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    return jnp.einsum("bhwc,hwcd->bd", x, normal(2, 4, 4, 4, 10))


def plain_sliced(x):
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    x = jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
    x = jnp.where(x > 0, x, 0.1 * x)
    return x.reshape(x.shape[0], -1) @ normal(2, 48, 10)


def plain_odd(x):
    """Values that are not used, names for a remat policy, callbacks, stacked branches, an output of integers."""
    jax.nn.relu(x)
    x = checkpoint_name(conv(x, normal(0, 3, 3, 3, 4)), "stem") + normal(1, 4).reshape(1, 1, 1, 4)
    jax.debug.callback(lambda value: None, x[0, 0, 0, 0])
    x = jnp.stack([jnp.tanh(x), jax.nn.relu(x)]).sum(0).mean((1, 2))
    return {"class": jnp.argmax(x, -1), "scores": jax.nn.log_softmax(x), "stack": x}


@jax.custom_jvp
def blurred(x):
    return conv(x, jnp.ones((3, 3, 1, 3)) / 9, groups=3)


blurred.defjvp(lambda primals, tangents: (blurred(*primals), blurred(*tangents)))


def plain_nested(x):
    @jax.jit
    def block(x):
        @jax.checkpoint
        def inner(x):
            return jax.nn.relu(conv(x, normal(0, 3, 3, 3, 3)))

        return inner(x) + x

    x = blurred(block(x))
    half = jax.lax.platform_dependent(
        x, cpu=lambda x: conv(x, normal(4, 3, 3, 3, 5)), default=lambda x: conv(x, normal(4, 3, 3, 3, 5))
    )
    return jax.lax.cond(half.sum() > 0, lambda h: jax.nn.relu(h @ normal(5, 5, 2)), lambda h: h @ normal(6, 5, 2), half)


def windowed(params, x):
    """A dense layer over windows that stand in front of the batch, then over windows behind it."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 4, 4, width // 4, 4, channels).transpose(1, 3, 0, 2, 4, 5).reshape(-1, 16, channels)
    x = jnp.tanh(x @ params["first"]["kernel"])
    x = x.reshape(height // 4, width // 4, batch, 4, 4, channels).transpose(2, 0, 1, 3, 4, 5).reshape(-1, 16, channels)
    x = jnp.tanh(x @ params["second"]["kernel"])
    return x.reshape(batch, -1, 16, channels).mean((1, 2))


def windowed_guest():
    params = {"first": {"kernel": normal(0, 3, 3)}, "second": {"kernel": normal(1, 3, 3)}}
    return jax.tree_util.Partial(windowed, params)


def scanned(params, x):
    x = conv(x, params["stem"]["kernel"]).mean((1, 2))

    def layer(h, weights):
        return h + jax.nn.gelu(h @ weights["dense"]["kernel"] + weights["dense"]["bias"] * weights["gain"]), None

    h, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"], reverse=True)
    return h @ params["head"]["kernel"]


def scanned_guest():
    layers = {"dense": {"kernel": normal(1, 3, 5, 5), "bias": normal(2, 3, 5)}, "gain": jnp.ones(3)}
    head = {"kernel": normal(4, 5, 10)}
    params = {"stem": {"kernel": normal(0, 3, 3, 3, 5)}, "layers": layers, "head": head}
    return jax.tree_util.Partial(scanned, params)


def with_parameters(params, x):
    """A learned slope, a weight norm, a norm written with a quotient, and a gated unit."""
    kernel = params["conv"]["direction"] * params["conv"]["gain"] / jnp.linalg.norm(params["conv"]["direction"])
    x = conv(x, kernel) * 0.5 + params["conv"]["bias"].reshape(1, 1, 1, -1)
    x = jnp.where(x > 0, x, params["slope"] * x)
    mean, variance = params["norm"]["mean"], params["norm"]["variance"]
    x = (x - mean.reshape(1, 1, 1, -1)) / jnp.sqrt(variance.reshape(1, 1, 1, -1) + 1e-5)
    value, gate = jnp.split(x, 2, axis=-1)
    return (value * jax.nn.sigmoid(gate)).mean((1, 2)) @ params["head"]


def parametrized_guest():
    params = {
        "conv": {"direction": normal(0, 3, 3, 3, 4), "gain": jnp.ones(4).reshape(1, 1, 1, 4), "bias": normal(1, 4)},
        "slope": jnp.full((1, 1, 1, 1), 0.2),
        "norm": {"mean": normal(2, 4), "variance": jnp.ones(4)},
        "head": normal(3, 2, 10),
    }
    return jax.tree_util.Partial(with_parameters, params)


single = partial(networks.wrap, single=True, layout="channels_first")

CASES = {
    "nnx residual": Case(
        lambda: networks.wrap(NNXResidual(nnx.Rngs(0))),
        "stem=conv blocks/0/conv=conv blocks/0/norm=norm add_0=residual relu_0=activation blocks/1/conv=conv "
        "blocks/1/norm=norm add_1=residual relu_1=activation avg_pool_0=pool head=dense output=output",
    ),
    "nnx transformer": Case(
        lambda: networks.wrap(NNXTransformer(nnx.Rngs(0))),
        "patch=conv position=other norm=norm attention/query=dense attention/key=dense attention/value=dense "
        "product_0=other softmax_0=other attention_0=attention attention/out=dense add_0=residual up=dense "
        "gelu_0=activation down=dense scale=other add_1=residual head=dense output=output",
    ),
    "nnx squeeze": Case(
        lambda: networks.wrap(NNXSqueeze(nnx.Rngs(0))),
        "expand=conv relu6_0=activation depthwise=conv norm=norm hard_silu_0=activation avg_pool_0=pool "
        "squeeze=dense silu_0=activation excite=dense sigmoid_0=activation gate_0=other sum_pool_0=pool "
        "output=output",
    ),
    "nnx wrapped": Case(
        lambda: networks.wrap(NNXWrapped(nnx.Rngs(0))),
        "conv=conv norm=norm relu_0=activation avg_pool_0=pool output=dense output:1=output",
    ),
    "nnx tied": Case(
        lambda: networks.wrap(NNXTied(nnx.Rngs(0))),
        "conv=conv tanh_0=activation conv:1=conv tanh_1=activation max_pool_0=pool dense=dense "
        "output/0=output output/1=output",
    ),
    "nnx batch statistics": Case(
        lambda: networks.wrap(NNXResidual(nnx.Rngs(0)), mode="batch_statistics"),
        "stem=conv blocks/0/conv=conv blocks/0/norm=norm add_0=residual relu_0=activation blocks/1/conv=conv "
        "blocks/1/norm=norm add_1=residual relu_1=activation avg_pool_0=pool head=dense output=output",
    ),
    "linen": Case(
        lambda: networks.wrap(bound(LinenNet())),
        "Conv_0=conv BatchNorm_0=norm relu_0=activation max_pool_0=pool Conv_1=conv LayerNorm_0=norm "
        "silu_0=activation avg_pool_0=pool Dense_0=dense relu_1=activation Dense_1=dense output=output",
    ),
    "linen batch statistics": Case(
        lambda: networks.wrap(bound(LinenNet()), train=True),
        "Conv_0=conv BatchNorm_0=norm relu_0=activation max_pool_0=pool Conv_1=conv LayerNorm_0=norm "
        "silu_0=activation avg_pool_0=pool Dense_0=dense relu_1=activation Dense_1=dense output=output",
    ),
    "linen scanned": Case(
        lambda: networks.wrap(bound(LinenScanned())),
        "stem=conv avg_pool_0=pool layers/0/Dense_0=dense layers/0/RMSNorm_0=norm layers/0/gelu_0=activation "
        "layers/0/add_0=residual layers/1/Dense_0=dense layers/1/RMSNorm_0=norm layers/1/gelu_0=activation "
        "layers/1/add_0=residual layers/2/Dense_0=dense layers/2/RMSNorm_0=norm layers/2/gelu_0=activation "
        "layers/2/add_0=residual head=dense output=output",
    ),
    "linen dense": Case(
        lambda: networks.wrap(bound(LinenDense())),
        "GroupNorm_0=norm relu_0=activation CheckpointConv_0=conv GroupNorm_1=norm relu_1=activation "
        "CheckpointConv_1=conv avg_pool_0=pool Dense_0=dense output=output",
    ),
    "equinox convolutional": Case(
        lambda: single(equinox_convolutional()),
        "layers/0=conv layers/1=norm silu_0=activation max_pool_0=pool layers/5=dense "
        "log_softmax_0=other output=output",
    ),
    "equinox perceptron": Case(
        lambda: single(equinox_perceptron()),
        "layers/2/layers/0=dense gelu_0=activation layers/2/layers/1=dense gelu_1=activation "
        "layers/2/layers/2=dense output=output",
    ),
    "plain convolutional": Case(
        lambda: networks.wrap(plain_convolutional),
        "conv_0=conv relu_0=activation max_pool_0=pool dense_0=dense output=output",
    ),
    "plain sliced": Case(
        lambda: networks.wrap(plain_sliced),
        "max_pool_0=pool max_pool_1=pool activation_0=activation dense_0=dense output=output",
    ),
    "plain odd": Case(
        lambda: networks.wrap(plain_odd),
        "conv_0=conv tanh_0=activation relu_0=activation reduce_sum_0=other avg_pool_0=pool "
        "log_softmax_0=other output/scores=output output/stack=output",
    ),
    "plain nested": Case(
        lambda: networks.wrap(plain_nested),
        "conv_0=conv relu_0=activation add_0=residual conv_1=conv conv_2=conv cond_0=other output=output",
    ),
    "partial windowed": Case(
        lambda: networks.wrap(windowed_guest()),
        "first=dense tanh_0=activation second=dense tanh_1=activation avg_pool_0=pool output=output",
    ),
    "partial scanned": Case(
        lambda: networks.wrap(scanned_guest()),
        "stem=conv avg_pool_0=pool layers/2/dense=dense layers/2/gelu_0=activation layers/2/add_0=residual "
        "layers/1/dense=dense layers/1/gelu_0=activation layers/1/add_0=residual layers/0/dense=dense "
        "layers/0/gelu_0=activation layers/0/add_0=residual head=dense output=output",
    ),
    "partial parameters": Case(
        lambda: networks.wrap(parametrized_guest()),
        "conv=conv slope=activation norm=norm sigmoid_0=activation gate_0=other avg_pool_0=pool head=dense "
        "output=output",
    ),
}
