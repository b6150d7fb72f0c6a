"""Taps of a network, and a function that returns them beside the outputs."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax

from stabjax import _jaxpr
from stabjax.features._network import Guest, taken

KINDS = ("conv", "norm", "activation", "pool", "dense", "residual", "other", "output")


@dataclass(frozen=True)
class Tap:
    """One operation of a network whose value can be looked at.

    Attributes:
        name: where it stands: the path of its parameters (``blocks/2/conv``), or the named scope and what it is
            (``relu_3``) if it has none. Inside a scan the iteration stands behind the module that is stacked, the
            outermost one all of whose parameters the scan takes apart (``layers/0/conv``). A module used again adds
            ``:1``.
        kind: ``conv`` or ``dense`` (with bias), ``norm`` (with scale and bias), ``activation``, ``pool``,
            ``residual``, ``other`` (gates, layer scales, softmax, products of activations), or ``output``.
        shape: of the activation as `capture` hands it out: batch first, and channels last wherever they are known,
            whatever the layout of the network.
        dtype: of the activation.
        channel_axis: position of the channels in ``shape``, the last, or None where they cannot be known (a product of
            activations, as in attention; heads that share the channels); the axes behind the batch then stand in the
            order of the network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: Any
    channel_axis: int | None


Select: TypeAlias = str | Iterable[str] | Callable[[Tap], bool] | None
"""Kinds, names or name patterns (``blocks/*/conv``), or a predicate; None is everything."""


@dataclass(frozen=True, eq=False)
class Capture:
    """``x -> (f(x), {name: activation})``, made by `capture`."""

    network: Guest
    select: Select
    reduce: Callable[[Tap, Any], Any] | None

    def __call__(self, x: Any, /) -> tuple[Any, Mapping[str, Any]]:
        """Outputs of the network, and its selected activations (reduced, if asked) in order of execution."""
        reading = _read(self.network, x)
        sites = _selected(reading, self.select)
        first: dict[int, _jaxpr.Site] = {}
        for site in sites:
            first.setdefault(site.operation, site)

        def visit(operation: int, value: Any) -> Any:
            value = first[operation].arranged(value)
            return value if self.reduce is None else self.reduce(_tap(first[operation]), value)

        leaves = [*jax.tree_util.tree_leaves(self.network.variables), x]
        outputs, found = _jaxpr.evaluate(reading.plan, leaves, set(first), visit)
        for site in sites:
            if site.kind == "output":
                found[site.operation] = visit(site.operation, outputs[site.operation - reading.operations])
        activations = OrderedDict(
            (
                site.name,
                jax.tree_util.tree_map(lambda value, k=site.iteration: value[k] if k else value, found[site.operation]),
            )
            for site in sites
        )
        return jax.tree_util.tree_unflatten(reading.program.out_tree, outputs), activations


def capture(f: Any, *, select: Select = None, reduce: Callable[[Tap, Any], Any] | None = None) -> Capture:
    """A function that returns the activations of a network beside its outputs.

    The network runs as it is: the outputs and their derivatives are those of ``f``. Activations have their batch in
    front and their channels last, also those of networks that compute with channels first; see `Tap`. Inside ``jit``,
    pass the network as an argument: ``jax.jit(lambda f, x: features.capture(f)(x))(f, x)``.

    Args:
        f: a network from `of`, or a plain function of a batch.
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
    return Capture(_network(f), select if select is None or callable(select) else _listed(select), reduce)


def taps(f: Any, x: Any) -> tuple[Tap, ...]:
    """The operations of a network in order of execution; nothing is computed.

    They are told from the program alone, so what is written alike is named alike: in a plain function every array that
    does not depend on the images counts as a parameter, pairwise sums of slices over space count as pools, and a
    learned gain or offset that follows no layer is ``other``. What `hidden` lists cannot be tapped.

    Args:
        f: a network from `of`, or a plain function of a batch.
        x: a batch, ``(batch, *spatial, channels)``, or its `jax.ShapeDtypeStruct`.

    Returns:
        one tap per operation; the last is the output.

    Raises:
        TypeError: if JAX cannot trace the network.
    """
    return tuple(_tap(site) for site in _read(_network(f), x).sites)


def hidden(f: Any, x: Any) -> tuple[_jaxpr.Hidden, ...]:
    """What `taps` cannot reach, by kind and with the reason.

    Operations inside ``cond``, ``while``, derivative rules that wrap more than one operation, and loops over the images
    (`jax.lax.map`) run as they are, unseen; and a value that mixes the images up, or holds them in several axes, has no
    batch to put in front.
    """
    return _read(_network(f), x).hidden


def mixed_rows(f: Any, x: Any) -> tuple[str, ...]:
    """Operations that sum over the batch, such as batch statistics: with them a row depends on its company.

    Args:
        f: a network from `of`, or a plain function of a batch.
        x: a batch or its shape, of at least two images.

    Returns:
        where they stand; empty for a network whose rows are independent, as far as its program tells.
    """
    return _read(_network(f), x).mixed_rows


def _network(f: Any) -> Guest:
    return f if isinstance(f, Guest) else taken(f)


def _listed(select: Any) -> tuple[str, ...]:
    entries = (select,) if isinstance(select, str) else tuple(select)
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(f"expected select to hold kinds and names, got {entry!r}; a predicate is passed alone")
    return entries


def _read(network: Guest, x: Any) -> _jaxpr.Reading:
    reading = _jaxpr.read_network(network.variables, network.adapter, x)
    for site in reading.sites:
        if site.kind == "output" and site.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"expected a network with one output row per image, ({x.shape[0]}, ...), got {site.name} of shape "
                f"{site.shape}; a network of single examples comes in by features.of(model, single=True)"
            )
    return reading


def _tap(site: _jaxpr.Site) -> Tap:
    return Tap(site.name, site.kind, site.shape, site.dtype, site.channel_axis)


def _selected(reading: _jaxpr.Reading, select: Any) -> list[_jaxpr.Site]:
    sites = list(reading.sites)
    if select is None:
        return sites
    if callable(select):
        return [site for site in sites if select(_tap(site))]
    for entry in select:
        if not any(_matches(site, entry) for site in sites):
            names = ", ".join(site.name for site in sites)
            lost = "; ".join(f"{', '.join(item.operations)} {item.reason}" for item in reading.hidden)
            if entry in KINDS:
                continue
            raise ValueError(
                f"expected a kind ({', '.join(KINDS)}) or a name of an operation, got {entry!r}; the network has "
                f"{names}" + (f"; out of reach: {lost}" if lost else "")
            )
    return [site for site in sites if any(_matches(site, entry) for entry in select)]


def _matches(site: _jaxpr.Site, entry: str) -> bool:
    return entry == site.kind or entry == site.name or fnmatchcase(site.name, entry)
