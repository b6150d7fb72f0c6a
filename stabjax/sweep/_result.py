"""The rows of all cells as a labeled dataset."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xarray

from stabjax._provenance import versions_of
from stabjax.sweep._grid import Grid
from stabjax.sweep._outputs import Outputs

Errors = list[tuple[str, str, str]]
"""First and last cell of each chunk that failed, and what was raised."""


def dataset(
    cells: Grid, rows: Mapping[str, np.ndarray], outputs: Outputs, attributes: Mapping[str, Any], errors: Errors
) -> xarray.Dataset:
    """Label the rows of all cells, ``(cells, ...)``, by axes and seeds."""
    variables = {}
    for name, flat in rows.items():
        own, about = outputs.dimensions.get(name, ()), outputs.attributes.get(name, {})
        variables[name] = ([*cells.names, "seed", *own], cells.unflatten(flat), about)
    attributes = {**versions(), **attributes, **({"errors": error_text(errors)} if errors else {})}
    coordinates = {**cells.labels, "seed": np.arange(cells.seeds), **outputs.coordinates}
    return xarray.Dataset(variables, coordinates, attributes)


def key_numbers(key: jax.Array) -> dict[str, Any]:
    """Return a key as what it can be made from again, by `jax.random.wrap_key_data`."""
    return {"impl": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()}


def as_json(config: Mapping[str, Any] | None) -> str:
    """Return a configuration as text, its arrays as lists."""
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
    """Return versions of what computes a cell."""
    return versions_of("jax", "numpy", "python")


def error_text(errors: Errors) -> str:
    """Write down what was raised in which cells, shortly: an attribute of a netCDF file holds 64 kB."""
    cells: dict[str, list[str]] = {}
    for first, last, text in errors:
        short = text if len(text) <= 2000 else f"{text[:1000]} ... {text[-1000:]}"
        cells.setdefault(short, []).append(first if first == last else f"{first} to {last}")
    lines = [f"cells {', '.join(_truncate(10, places, ''))}: {text}" for text, places in cells.items()]
    return "\n".join(_truncate(10, lines, " kinds of errors"))


def _truncate(number: int, texts: list[str], what: str) -> list[str]:
    more = len(texts) - number
    return texts[:number] + ([f"and {more} more{what}"] if more > 0 else [])
