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

Errors = list[tuple[int, int, str]]
"""First and last cell of each chunk that failed, and what was raised."""


def dataset(
    cells: Grid, rows: Mapping[str, np.ndarray], attributes: Mapping[str, Any], errors: Errors
) -> xarray.Dataset:
    """Label the rows of all cells, ``(cells, ...)``, by axes and seeds."""
    variables = {}
    for name, flat in rows.items():
        array = cells.unflatten(flat)
        own = [f"{name}_dim_{k}" for k in range(array.ndim - len(cells.names) - 1)]
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
        return json.dumps(config or {}, default=lambda value: np.asarray(value).tolist())
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected config to hold numbers, text, lists and mappings only: {error}") from error


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
        cells.setdefault(short, []).append(f"{first} to {last}")
    lines = [f"cells {', '.join(_at_most(10, places, ''))}: {text}" for text, places in cells.items()]
    return "\n".join(_at_most(10, lines, " kinds of errors"))


def _at_most(number: int, texts: list[str], what: str) -> list[str]:
    more = len(texts) - number
    return texts[:number] + ([f"and {more} more{what}"] if more > 0 else [])
