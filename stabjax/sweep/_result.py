"""The rows of all cells as a labelled dataset."""

import json
import platform
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray

import stabjax
from stabjax.sweep._grid import Grid

Errors = list[tuple[str, str, str]]
"""First and last cell of each chunk that failed, and what was raised."""


def output_names(out: Any, axes: tuple[str, ...]) -> tuple[str, ...]:
    """A name for every array of the output, from its path."""
    leaves = jax.tree_util.tree_flatten_with_path(out)[0]
    # Files of labelled arrays keep "/" for groups.
    names = tuple(
        jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".") or "value" for path, _ in leaves
    )
    if not names:
        raise ValueError("expected a function that returns arrays, got one that returns none")
    taken = {"seed": "a sweep", "valid": "a sweep"} | dict.fromkeys(axes, "an axis")
    for k, name in enumerate(names):
        if name in taken or name in names[:k]:
            raise ValueError(
                f"expected every name once, got an output {name!r}, which is also the name of "
                f"{taken.get(name, 'another')}: return it under another name, such as {{'my_{name}': ...}}"
            )
    for name, (_, leaf) in zip(names, leaves):
        if clash := {*axes, *names} & set(_dimensions(name, leaf.ndim)):
            raise ValueError(
                f"expected no axis or output named like a dimension of the output {name!r}, got {sorted(clash)}: give "
                "it another name"
            )
    return names


def _dimensions(name: str, number: int) -> list[str]:
    return [f"{name}_dim_{k}" for k in range(number)]


def dataset(
    cells: Grid, rows: Mapping[str, np.ndarray], attributes: Mapping[str, Any], errors: Errors
) -> xarray.Dataset:
    """Label the rows of all cells, ``(cells, ...)``, by axes and seeds."""
    variables = {}
    for name, flat in rows.items():
        array = cells.unflatten(flat)
        own = _dimensions(name, array.ndim - len(cells.names) - 1)
        variables[name] = ([*cells.names, "seed", *own], array)
    attributes = {**versions(), **attributes, **({"errors": error_text(errors)} if errors else {})}
    return xarray.Dataset(variables, {**cells.labels, "seed": np.arange(cells.seeds)}, attributes)


def key_numbers(key: jax.Array) -> dict[str, Any]:
    """A key as what it can be made from again, by `jax.random.wrap_key_data`."""
    return {"impl": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()}


def as_json(config: Mapping[str, Any] | None) -> str:
    """A configuration as text, its arrays as lists."""
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"expected config as a mapping, got {type(config).__name__}")
    try:
        return json.dumps(config or {}, default=_plain)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected config to hold numbers, text, lists and mappings only: {error}") from error


def _plain(value: Any) -> Any:
    plain = np.asarray(value).tolist()
    if not isinstance(plain, bool | int | float | str | list):
        raise TypeError(f"got {value!r} of type {type(value).__name__}")
    return plain


def versions() -> dict[str, str]:
    """What computed."""
    return {
        "stabjax": stabjax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def error_text(errors: Errors) -> str:
    """What was raised in which cells. Kept short: an attribute of a netCDF file holds 64 kB."""
    cells: dict[str, list[str]] = {}
    for first, last, text in errors:
        short = text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"
        cells.setdefault(short, []).append(first if first == last else f"{first} to {last}")
    lines = [f"cells {', '.join(_at_most(10, places, ''))}: {text}" for text, places in cells.items()]
    return "\n".join(_at_most(10, lines, " kinds of errors"))


def _at_most(number: int, texts: list[str], what: str) -> list[str]:
    more = len(texts) - number
    return texts[:number] + ([f"and {more} more{what}"] if more > 0 else [])
