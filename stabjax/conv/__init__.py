"""Convolution for the networks of this library: the fastest correct route of the device, forwards and backwards.

On a CPU, XLA is fast at matrix products and slow at many convolutions, at their gradients most of all. Each route here
turns one family of convolutions into matrix products (or, for depthwise ones, into sums of shifted products). What no
route covers, and everything on an accelerator, is `jax.lax.conv_general_dilated` itself.
"""

from stabjax.conv._face import conv_general_dilated

__all__ = ["conv_general_dilated"]
