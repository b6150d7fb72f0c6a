"""Convolution: its arithmetic, three routes to one result, and the fast one that the models use.

On a CPU, XLA is fast at matrix products and slow at many convolutions, at their gradients most of all. Each route of
`conv_general_dilated` turns one family of convolutions into matrix products (or, for depthwise ones, into sums of
shifted products). What no route covers, and everything on an accelerator, is `jax.lax.conv_general_dilated` itself.

    output_size           how many positions a window has
    unfold, patches       windows as rows
    convolve              by the fast route, by one matrix product, by spectra
    apply_kernel          at one position
    conv_general_dilated  takes the place of JAX's in Flax layers
    quick_to_compile      for programs that run shortly
"""

from stabjax.conv._arithmetic import apply_kernel, convolve, edge_kernels, output_size, patches, unfold
from stabjax.conv._general_dilated import conv_general_dilated
from stabjax.conv._routes import quick_to_compile

__all__ = [
    "apply_kernel",
    "conv_general_dilated",
    "convolve",
    "edge_kernels",
    "output_size",
    "patches",
    "quick_to_compile",
    "unfold",
]
