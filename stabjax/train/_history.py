"""What happened epoch by epoch."""

import dataclasses
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from stabjax.train import _files

Rows = Float[np.ndarray, " epochs"]
Table = Float[np.ndarray, "epochs seeds"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """One row per finished epoch; the last may be a part of one. NaN where a seed diverged or nothing was measured."""

    epoch: Rows
    """``(epochs,)``: epochs done, a whole number but for the last."""
    step: Int[np.ndarray, " epochs"]
    """``(epochs,)``: steps done."""
    rate: Rows
    """``(epochs,)``: learning rate of the epoch's last step; NaN where `fit` was given an ``optimizer``."""
    seconds: Rows
    """``(epochs,)``: seconds since the start, compilation and evaluation included, the pauses of a killed run not."""
    train_loss: Table
    """``(epochs, seeds)``: mean loss of the epoch's batches, as they were trained on (augmented, smoothed)."""
    train_accuracy: Table
    """``(epochs, seeds)``: share of hits among them."""
    test_loss: Table
    """``(epochs, seeds)``: mean loss over the test images at the end of the epoch."""
    test_accuracy: Table
    """``(epochs, seeds)``: share of hits over the test images."""

    def to_xarray(self) -> xr.Dataset:
        """Return a dataset over ``epoch`` and ``seed``."""
        table = ("epoch", "seed")
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        coords = {"epoch": fields.pop("epoch"), "seed": np.arange(self.train_loss.shape[1])}
        return xr.Dataset({k: (table[: v.ndim], v) for k, v in fields.items()}, coords=coords)

    def to_json(self) -> dict[str, Any]:
        """Return lists of numbers, null where NaN or infinite."""

        def plain(x: np.ndarray) -> list[Any]:
            return [plain(v) if np.ndim(v) else v.item() if np.isfinite(v) else None for v in x]

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any], *, seeds: int) -> "History":
        """Return the history written by `to_json`."""
        rows = len(values["epoch"])
        arrays = {k: np.array(v, np.int64 if k == "step" else np.float64) for k, v in values.items()}
        # Tables keep their axis of seeds even without a row: an empty list does not show it.
        wide = {k: v.reshape(rows, seeds) if k.startswith(("train", "test")) else v for k, v in arrays.items()}
        return cls(**wide)

    @classmethod
    def empty(cls, seeds: int) -> "History":
        """Return a history without an epoch."""
        return cls.from_json({f.name: [] for f in dataclasses.fields(cls)}, seeds=seeds)

    def with_row(self, **row: Any) -> "History":
        """Append one epoch."""
        grown = {}
        for f in dataclasses.fields(self):
            old = getattr(self, f.name)
            grown[f.name] = np.concatenate([old, np.asarray(row[f.name], old.dtype).reshape(1, *old.shape[1:])])
        return History(**grown)

    def __str__(self) -> str:
        names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
        lines = ["   epoch       rate   seconds" + "".join(f"{n.replace('_', ' '):>16}" for n in names)]
        for i, (epoch, rate, seconds) in enumerate(zip(self.epoch, self.rate, self.seconds)):
            means = "".join(f"{mean_over_seeds(getattr(self, n)[i]):16.4f}" for n in names)
            lines.append(f"{epoch:8g} {rate:10.3g} {seconds:9.1f}{means}{seeds_left(self.train_loss[i])}")
        if self.train_loss.shape[1] > 1:
            lines.append(f"(means over {self.train_loss.shape[1]} seeds)")
        return "\n".join(lines)


def seeds_left(train_loss: Float[np.ndarray, " seeds"]) -> str:
    """Say how many seeds the means of an epoch are over; nothing where it is all of them."""
    count = int(np.sum(~np.isnan(train_loss)))
    return "" if count == len(train_loss) else f"  ({count} of {len(train_loss)} seeds)"


def mean_over_seeds(values: Float[np.ndarray, " seeds"]) -> float:
    """Return the mean over the seeds that have not diverged; NaN where there is none, or nothing was measured."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else float("nan")


def history(path: str | PathLike[str]) -> History:
    """Return the history of the run in the folder ``path``, finished or not.

    Raises:
        FileNotFoundError: no run there, or no epoch of it finished.
        OSError: the file is damaged.
    """
    manifest = _files.manifest(path)
    return History.from_json(_files.read_json(Path(path) / "history.json"), seeds=manifest["seeds"])
