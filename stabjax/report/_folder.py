"""`write` and `read`: a measurement as a folder."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import jax
import numpy as np
import xarray

from stabjax import plot
from stabjax._files import write as write_file
from stabjax.report._figure import draw
from stabjax.report._measured import Measured, Several, as_several, have_same_layers
from stabjax.report._page import page
from stabjax.stability import Stability

FIGURE, NUMBERS, PAGE = "layers", "stability.nc", "index.html"
"""Names of the files: the figure (with .png, .pdf and .json), all numbers, the page."""
_FEW = 36
"""Operations: for no more of them, names have all the room that they want."""
_WIDEST = 24.0
"""Inches; names of more operations than fit are left out in part."""


def write(measured: Several, folder: str | PathLike[str], *, command: str = "") -> list[Path]:
    """Write the page, the figure and the numbers of one network, or of several side by side.

    * ``index.html``: the page, see `page`.
    * ``layers.png``, ``layers.pdf``: the figure, with the names of all operations.
    * ``layers.json``: how it was measured, and the numbers of each layer.
    * ``stability.nc`` (of one network): all numbers, those of each image too, as netCDF.

    Args:
        measured: one `Measured`, or several with a label of their own each.
        folder: made where it is missing; files of these names are replaced.
        command: that makes a comparison again.

    Returns:
        the files.

    Raises:
        ValueError: if there is none, or two have one label.
        OSError: if the folder cannot be written.
    """
    several, folder = as_several(measured), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = several[0].to_json()
    if len(several) > 1:
        record = {"command": command, "compared": [each.to_json() for each in several]}
    plot.save(draw(several, width=_width(several)), folder / FIGURE, record)
    files = [folder / f"{FIGURE}.{suffix}" for suffix in ("png", "pdf", "json")]
    if len(several) == 1:
        dataset = several[0].result.to_xarray()
        provenance = {name: value for name, value in record.items() if name != "result"}
        # netCDF has no nested attributes: what is a mapping or a list stands there as JSON.
        dataset.attrs |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in provenance.items()}
        dataset.to_netcdf(folder / NUMBERS, engine="h5netcdf")
        files.append(folder / NUMBERS)
    write_file(folder / PAGE, page(several, command=command).encode())
    return [folder / PAGE, *files]


def _width(several: Sequence[Measured]) -> float | None:
    """Return the width of the figure in inches: close names for many operations, so that the curves stay curves."""
    if not have_same_layers(several):
        return None
    count = len(several[0].result.layers)
    return None if count <= _FEW else min(1.5 + 0.135 * count, _WIDEST)


def read(folder: str | PathLike[str]) -> Measured:
    """Return what `write` has written of one network, without its examples.

    Raises:
        FileNotFoundError: if the folder holds no measurement.
        ValueError: if it holds a comparison, or its files are damaged or not those of `write`.
    """
    folder = Path(folder)
    files = folder / f"{FIGURE}.json", folder / NUMBERS
    try:
        record = json.loads(files[0].read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"{folder}: expected a folder that `stabjax measure --out` has written, got none with {files[0].name} in it"
        ) from error
    except ValueError as error:
        raise ValueError(f"{files[0]} is damaged ({error}): measure the network again") from error
    if isinstance(record, dict) and "compared" in record:
        raise ValueError(f"{folder}: expected the folder of one network, got a comparison: name the folders compared")
    try:
        with xarray.load_dataset(files[1], engine="h5netcdf") as dataset:
            result = _from_dataset(dataset)
        return Measured(
            label=record["label"],
            result=result,
            settings=record["settings"],
            command=record["command"],
            versions=record["versions"],
            hidden=tuple((name, reason) for name, reason in record["hidden"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[1]} or {files[0].name} is damaged ({error}): measure the network again") from error


def _from_dataset(dataset: xarray.Dataset) -> Stability:
    names = [str(name) for name in dataset.data_vars]
    numbers = {name: np.asarray(dataset[name].values) for name in names}
    flags = {name: numbers[name].astype(bool) for name in ("valid", "measured")}
    return Stability(
        layers=tuple(str(name) for name in dataset["layer"].values),
        kinds=tuple(str(kind) for kind in dataset["kind"].values),
        confidence=float(dataset.attrs["confidence"]),
        average=dataset.attrs["average"],
        **jax.tree.map(jax.numpy.asarray, {**numbers, **flags}),
    )
