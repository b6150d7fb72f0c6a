"""Vision transformers for small images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import LayerNorm, check_size, convolution, dense


class Attention(nnx.Module):
    """``softmax(q k' / sqrt(d)) v`` in each head of ``d`` channels, and a dense layer over all heads."""

    def __init__(self, width: int, heads: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.joined = dense(width, 3 * width, param_dtype=param_dtype, rngs=rngs)
        self.out = dense(width, width, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the response, in the shape of ``x``."""
        batch, tokens, width = x.shape
        size = width // self.heads
        # (b, tokens, 3 width) -> (b, tokens, 3, heads, size): query, key and value in front of the heads.
        qkv = jnp.reshape(self.joined(x), (batch, tokens, 3, self.heads, size))
        query, key, value = (qkv[:, :, k] for k in range(3))
        # (b, heads, queries, keys), each query's row of keys adding up to one.
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(size))
        # (b, queries, heads, size) -> (b, queries, width): the heads lie side by side in the channels.
        return self.out(jnp.reshape(jnp.einsum("bhqk,bkhd->bqhd", weights, value), x.shape))


class TransformerBlock(nnx.Module):
    """Attention, then two dense layers with GELU between them, each behind a layer normalization and beside a skip."""

    def __init__(self, width: int, heads: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.first_norm = LayerNorm(width, **options)
        self.attention = Attention(width, heads, **options)
        self.second_norm = LayerNorm(width, **options)
        self.widen = dense(width, 4 * width, **options)
        self.narrow = dense(4 * width, width, **options)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the sum, in the shape of ``x``."""
        x = x + self.attention(self.first_norm(x))
        return x + self.narrow(jax.nn.gelu(self.widen(self.second_norm(x)), approximate=False))


class VisionTransformer(nnx.Module):
    """A small vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929): 2,693,194 parameters for 32 x 32 x 3.

    Patches are embedded by one convolution, learned positions added; blocks normalize before attention and before their
    dense layers; the last tokens are normalized, averaged and read by one dense layer.

    Args:
        size: side of the square images, a multiple of ``patch``.
        patch: side of the patches.
        width: channels of a token, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads of a block.
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when the patches do not fill the image, the heads do not share the width, or there is no block.
    """

    def __init__(
        self,
        size: int,
        *,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        num_classes: int = 10,
        in_channels: int = 3,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if size <= 0 or size % patch:
            raise ValueError(
                f"VisionTransformer: expected a size that is a positive multiple of patch = {patch}, got {size}; "
                "change the size or the patch"
            )
        if width <= 0 or width % heads:
            raise ValueError(
                f"VisionTransformer: expected a width that is a positive multiple of heads = {heads}, got {width}"
            )
        if depth < 1:
            raise ValueError(f"VisionTransformer: expected at least one block, got depth {depth}")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        tokens = (size // patch) ** 2
        self.size, self.in_channels = size, in_channels
        self.patches = convolution(in_channels, width, (patch, patch), stride=patch, padding=0, **options)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width), param_dtype))
        self.blocks = nnx.List([TransformerBlock(width, heads, **options) for _ in range(depth)])
        self.norm = LayerNorm(width, **options)
        self.classifier = dense(width, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, size, size, in_channels)``."""
        y = self.patches(check_size("VisionTransformer", x, self.size, channels=self.in_channels))
        # (b, size / patch, size / patch, width) -> (b, tokens, width), row by row; 8 x 8 patches are 64 tokens.
        y = jnp.reshape(y, (len(y), -1, y.shape[-1])) + self.positions[...][None]
        for block in self.blocks:
            y = block(y)
        return self.classifier(jnp.mean(self.norm(y), 1))
