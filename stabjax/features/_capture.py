"""What can be asked of a network and one batch, question by question."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stabjax import _jaxpr
from stabjax.features._traced import Select, Tap, as_select, trace, trace_in_place
from stabjax.networks import Network, as_network


@dataclass(frozen=True, eq=False)
class Capture:
    """``x -> (f(x), {name: activation})``, made by `capture`."""

    network: Network
    select: Select
    reduce: Callable[[Tap, Any], Any] | None

    def __call__(self, x: Any, /) -> tuple[Any, Mapping[str, Any]]:
        """Return the outputs of the network, and the activations (reduced, if asked) in order of execution."""
        return trace_in_place(self.network, x).capture(x, select=self.select, reduce=self.reduce)


def capture(f: Any, *, select: Select = None, reduce: Callable[[Tap, Any], Any] | None = None) -> Capture:
    """Make a function that returns the activations of a network beside its outputs.

    The network runs as it is: the outputs and their derivatives are those of ``f``. Activations have their batch in
    front and their channels last, also those of networks that compute with channels first; see `Tap`. Inside ``jit``,
    pass the network as an argument: ``jax.jit(lambda f, x: features.capture(f)(x))(f, x)``.

    Args:
        f: a network from `stabjax.networks.wrap`, or a plain function of a batch.
        select: which operations: a kind, a name, a pattern of names (``"blocks/*/conv"``), several of these, or a
            predicate of a `Tap`. None takes all.
        reduce: ``reduce(tap, activation)`` is called where the activation is made and its result, a pytree of arrays,
            is returned in its stead; nothing else is kept. Inside a scan it is called once for all iterations, with
            the tap of the first.

    Returns:
        ``g`` with ``g(x) == (f(x), {name: activation})``.

    Raises:
        TypeError: (when called) if JAX cannot trace the network.
        ValueError: (when called) for a name that is no operation of the network.
    """
    return Capture(as_network(f), as_select(select), reduce)


def taps(f: Any, x: Any) -> tuple[Tap, ...]:
    """List the operations of a network in order of execution; nothing is computed.

    They are read from the program alone, so what is written alike is named alike: in a plain function every array that
    does not depend on the images counts as a parameter, pairwise sums of slices over space count as pools, and a
    learned gain or offset that follows no layer is ``other``. What no output depends on is no operation of the network.
    What `hidden` lists cannot be tapped.

    Args:
        f: a network from `stabjax.networks.wrap`, or a plain function of a batch.
        x: a batch, ``(batch, *spatial, channels)``, or its `jax.ShapeDtypeStruct`.

    Returns:
        one tap per operation; the last is the output.

    Raises:
        TypeError: if JAX cannot trace the network.
    """
    return trace(f, x).taps


def hidden(f: Any, x: Any) -> tuple[_jaxpr.Hidden, ...]:
    """List what `taps` cannot reach, by kind and with the reason.

    Operations inside ``cond``, ``while``, derivative rules that wrap more than one operation, and loops over the images
    (`jax.lax.map`) run as they are, unseen; and a value that mixes the images up, or holds them in several axes, has no
    batch to put in front.
    """
    return trace(f, x).hidden


def mixed_rows(f: Any, x: Any) -> tuple[str, ...]:
    """List the operations that sum over the batch, such as batch statistics: with them a row depends on its company.

    Args:
        f: a network from `stabjax.networks.wrap`, or a plain function of a batch.
        x: a batch or its shape, of at least two images.

    Returns:
        where they stand; empty for a network whose rows are independent, as far as its program tells.
    """
    return trace(f, x).mixed_rows
