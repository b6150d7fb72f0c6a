"""A bound on the Lipschitz constant of a whole network, layer by layer through its program."""

from dataclasses import dataclass, field
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax import _jaxpr, features
from stabjax._images import Spatial, as_batch
from stabjax._text import table
from stabjax.lipschitz._network._lipschitz_value import LipschitzValue, constant_value, input_value, l2_sum
from stabjax.lipschitz._network._rules import LipschitzDomain, depends_on_input, value_at_output


@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False, repr=False)
class NetworkBound:
    """Bounds on the Lipschitz constants of a network and its layers; a frozen pytree. Printed, it is a table.

    Attributes:
        layers: names of the layers, as in `stabjax.features.taps`.
        kinds: their kinds.
        factor: what each layer does to the bound of what it is made from, ``(layers,)``: its own constant, from above.
            Of a sum or a concatenation, 1.
        bound: from above, of each layer as a function of the image, ``(layers,)``: ``|f_k(x) - f_k(y)| <= bound_k |x -
            y|`` for all images. Infinite where there is none, as of the exponentials in a softmax written by hand.
        value: of the outputs, ``()``.
        certified: whether ``bound`` and ``value`` are never below the constants, their own rounding included.
    """

    layers: tuple[str, ...] = field(metadata={"static": True})
    kinds: tuple[str, ...] = field(metadata={"static": True})
    factor: Float[Array, "*nets layers"]
    bound: Float[Array, "*nets layers"]
    value: Float[Array, "*nets"]
    certified: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        if isinstance(self.bound, Tracer) or np.ndim(self.bound) != 1:
            return f"NetworkBound of {len(self.layers)} layers, stacked {np.shape(self.value)}"
        rows = [("layer", "kind", "factor", "bound")]
        rows += [
            (name, kind, f"{float(f):.4g}", f"{float(b):.4g}")
            for name, kind, f, b in zip(self.layers, self.kinds, self.factor, self.bound, strict=True)
        ]
        title = f"|f(x) - f(y)| <= {float(self.value):.6g} |x - y|{', certified' if self.certified else ''}"
        return table(title, rows)


def network(f: Any, x: Any, *, spatial: Spatial = None) -> NetworkBound:
    """Bound the Lipschitz constant of a network from above, in Euclidean norms of one image and one row of values.

    The program of the network is followed operation by operation, and the constants of the operations are multiplied
    along each path: of dense layers and convolutions the norm, as in `dense` and `conv`; of a convolution or dense
    layer with the normalization behind it that of both as one map; of activations the steepest slope, found by interval
    arithmetic, whatever they are written like, also with slopes of their own per channel; of softmax 1/2; of pools how
    often a pixel counts. Slices of one value that are joined again are one value: a roll or a channel shuffle is 1, a
    convolution behind circular or mirrored padding counts with it as one map (close to the norm where the axes with
    such a padding can be written out in ``2^35`` multiplications, and at most the root of how often a pixel counts
    above it elsewhere). Branches add up where they meet in a sum, and their squares where they stand side by side.
    Bounds of this kind grow with depth and are mostly far above what a network does, see `local`.

    It is a statement about the function that the parameters define, in exact arithmetic: rounding of the bound itself
    counts, that of the network when it runs does not. Functions of single entries are looked at up to ``2^128`` in
    size, where single precision ends.

    May stand inside `jit` and `vmap` over parameters.

    Args:
        f: a network from `networks.wrap`, or a plain function of a batch.
        x: a batch, ``(batch, *spatial, channels)``, its `jax.ShapeDtypeStruct`, or its shape alone.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        the bounds, from the first layer to the outputs.

    Raises:
        TypeError: if JAX cannot trace the network.
        ValueError: for an operation that cannot be bounded: the error names it and where it stands. Products of
            activations (attention, gates), normalization by statistics of the batch or the image at hand, functions
            steeper than any number (exponentials outside of a softmax, squares, steps). Also if rows of the batch are
            mixed, or ``x`` is no batch.

    Example:
        >>> lipschitz.network(networks.wrap(model), (1, 32, 32, 3)).value
    """
    x = as_batch(x, spatial=spatial, vectors=True)
    traced = features.trace(f, x)
    sites = traced.program.sites
    if not any(site.kind == "output" for site in sites):
        raise ValueError(f"expected a network with outputs that are real numbers, got {traced.program.program.outputs}")
    # A bound of the batch as a whole is one of each row only if rows do not mix; a single row has nothing to mix with.
    if x.shape[0] > 1:
        traced.check_rows()
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(x.dtype))
    # Bounds are never narrower than single precision: products of many factors would overflow.
    dtype = dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
    arrays = map(jnp.asarray, traced.arrays)
    tapped = _jaxpr.interpret(traced.program, LipschitzDomain(), [*arrays, input_value(dtype)])
    # A tap that does not depend on the images does not change with them.
    values = [value if depends_on_input(value) else constant_value(dtype) for value in tapped]
    values = [value_at_output(value) if site.kind == "output" else value for site, value in zip(sites, values)]
    known = [(site, value) for site, value in zip(sites, values) if isinstance(value, LipschitzValue)]
    bounds, factors = zip(*[value.tap for _, value in known])
    return NetworkBound(
        layers=tuple(site.name for site, _ in known),
        kinds=tuple(site.kind for site, _ in known),
        factor=jnp.stack(factors),
        bound=jnp.stack(bounds),
        # Several outputs count as one vector.
        value=l2_sum([value for site, value in known if site.kind == "output"]).bound,
        certified=True,
    )
