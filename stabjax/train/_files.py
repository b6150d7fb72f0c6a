"""The folder of a run, written so that a kill at any moment leaves nothing half-written under a good name.

    run.json            what was run: recipe, seeds, key, fingerprints of data and initial weights
    history.json        the history up to the last state
    steps/00000391/     weights at log-spaced epochs, step 0 being the initial ones
    state/00000782/     everything needed to go on; the two newest are kept
    .writing/           whatever is being written; emptied at the next start

Each checkpoint is an Orbax folder ``arrays`` beside a ``meta.json`` with a checksum of every array. Both are written
under ``.writing``, forced to disk and renamed in one step.
"""

import contextlib
import dataclasses
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from stabjax._files import check_empty, force_to_disk, locked, make_folder, read_json, refuse_difference, write_json
from stabjax._provenance import checksum, describe, leaves_by_path, without_addresses
from stabjax.train._more_epochs import check_more_epochs, differs_in_length
from stabjax.train._recipe import Recipe
from stabjax.train._state_dict import Layout, to_host

FORMAT = 1
KEPT = 2

Arrays = Mapping[str, np.ndarray]
Stage = Literal["initial", "best", "last"]


def load(
    path: str | PathLike[str],
    model: nnx.Module,
    *,
    step: SupportsIndex | Stage = "last",
    seed: SupportsIndex = 0,
) -> nnx.Module:
    """Copy ``model``, in evaluation mode, with the weights of the run in the folder ``path``.

    Args:
        path: the folder given to `fit`; the run may be unfinished.
        model: a model of the same architecture, whatever its weights.
        step: ``"last"`` or ``"best"`` (by test accuracy) as of the newest saved state, ``"initial"``, or one of the
            steps of `checkpoints`.
        seed: which of the seeds trained together.

    Raises:
        FileNotFoundError: no run there, or no such checkpoint.
        ValueError: the run is of another model, format or number of seeds.
        OSError: a file is damaged; the error names it.
    """
    path, step, seed = Path(path), as_stage(step), operator.index(seed)
    run = manifest(path)
    layout, template = Layout.of(model)
    refuse_difference({"model": run["weights"]}, {"model": layout.signature(template)}, f"the weights in {path}")
    if not 0 <= seed < run["seeds"]:
        raise ValueError(f"expected seed in 0..{run['seeds'] - 1}, got {seed}")
    if step in ("best", "last"):
        saved = states(path)
        if not saved:
            raise FileNotFoundError(f"no saved state in {path}: the run was killed before the first; start it again")
        arrays, _ = read_arrays(path / "state" / step_name(saved[-1]))
        # The first that has a name wins: averages before what they are averages of. A state without test images has no
        # "best/" and gives the last, as the run itself does.
        prefixes = ("best/",) * (step == "best") + ("average/", "params/", "rest/")
    else:
        wanted = step if isinstance(step, int) else 0
        arrays, _ = read_arrays(path / "steps" / step_name(wanted), known=checkpoints(path))
        prefixes = ("",)
    # (seeds, ...) each; None for variables without elements, which are not in the files.
    found = {k: next((arrays[p + k] for p in prefixes if p + k in arrays), None) for k in template}
    chosen = {k: v if (a := found[k]) is None else np.array(a[seed]) for k, v in to_host(template).items()}
    return layout.model(layout.to_device(chosen), training=False)


def as_stage(step: SupportsIndex | Stage) -> int | Stage:
    """Return a step as a whole number, or one of the three words."""
    if isinstance(step, str):
        if step not in ("initial", "best", "last"):
            raise ValueError(f"expected 'initial', 'best', 'last' or the number of a step, got {step!r}")
        return step
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(f"expected 'initial', 'best', 'last' or the number of a step, got {step!r}") from None


def checkpoints(path: str | PathLike[str]) -> dict[int, float]:
    """Return the step and epoch of the weights kept in the folder of a run, in order."""
    run = manifest(path)
    return {s: s / run["steps_per_epoch"] for s in list_steps(Path(path) / "steps")}


def recipe(path: str | PathLike[str]) -> Recipe:
    """Return the recipe of the run in the folder ``path``."""
    return Recipe.from_json(manifest(path)["recipe"])


def manifest(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the contents of ``run.json``, of this format."""
    file = Path(path) / "run.json"
    if not file.exists():
        raise FileNotFoundError(
            f"expected a run in {path}, found no run.json: give the path that was given to train.fit"
        )
    contents = read_json(file)
    if contents.get("format") != FORMAT:
        raise ValueError(
            f"expected format {FORMAT} in {file}, got {contents.get('format')}: it was written by stabjax "
            f"{contents.get('versions', {}).get('stabjax', 'unknown')}; read it with that version or train anew"
        )
    return contents


def states(path: Path) -> list[int]:
    """Return the steps of the complete states, oldest first."""
    return list_steps(path / "state")


def step_name(step: int) -> str:
    """Name of a step's folder; sorts like the numbers."""
    return f"{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Return the steps that have a folder here."""
    return sorted(int(f.name) for f in folder.iterdir() if f.name.isdecimal()) if folder.exists() else []


@contextlib.contextmanager
def open_run(path: Path, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Hold the folder of a run, its ``run.json`` written or in agreement with the given one."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder for the run at {path}, found a file: choose another path")
    make_folder(path)
    with locked(path):
        # Only with the lock is this what a killed process has left, not what a living one is writing.
        shutil.rmtree(path / ".writing", ignore_errors=True)
        file = path / "run.json"
        if file.exists():
            saved = manifest(path)
            # Runs of older versions lack the fields that a recipe had not yet, and may write 2 for 2.0.
            known = {f.name for f in dataclasses.fields(Recipe)}
            completed_recipe = Recipe.from_json({k: v for k, v in saved["recipe"].items() if k in known}).to_json()
            completed = {**saved, "recipe": {**saved["recipe"], **completed_recipe}}
            _check_same(path, completed, given)
            # The check has passed, so it is the number of epochs (or the turn) that differs: the run goes on with those
            # that are given.
            if completed["recipe"] != given["recipe"]:
                saved = {**saved, "recipe": given["recipe"]}
                write_json(file, saved)
        else:
            check_empty(path, "a run")
            saved = dict(given)
            write_json(file, saved)
        yield saved


def _check_same(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise unless a run is what is given, or the beginning of it."""
    old, new = ({k: v for k, v in d.items() if k != "versions"} for d in (saved, given))
    recipes = old["recipe"], new["recipe"]
    if not differs_in_length(*recipes):
        refuse_difference(old, new, f"the run in {path}")
        return
    refuse_difference({**old, "recipe": {}}, {**new, "recipe": {}}, f"the run in {path}")
    taken = next(reversed(states(path)), 0)
    begun, asked = map(Recipe.from_json, recipes)
    own = given["optimizer"] is None
    check_more_epochs(path, begun, asked, saved["steps_per_epoch"], taken, checkpoints(path), rate_of_recipe=own)


def save_weights(path: Path, step: int, weights: Arrays) -> None:
    """Keep the weights of a step."""
    # A folder under its good name is whole. A run that goes on comes to the same bits, so the old one stays.
    if not (path / "steps" / step_name(step)).exists():
        _write_arrays(path, "steps", step_name(step), weights, {"step": step})


def save_state(path: Path, step: int, arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Keep the state of a step, and drop all but the newest ones before it."""
    if not (path / "state" / step_name(step)).exists():
        _write_arrays(path, "state", step_name(step), arrays, {**meta, "step": step})
    # Behind the state, which has a copy of it: after a kill in between, the run that goes on writes it anew from there.
    write_json(path / "history.json", meta["history"])
    for old in states(path)[:-KEPT]:
        # Renamed first: a folder half-removed must not keep its good name.
        grave = path / ".writing" / f"old-{old}"
        grave.parent.mkdir(exist_ok=True)
        (path / "state" / step_name(old)).rename(grave)
        shutil.rmtree(grave)


def newest_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return the arrays and notes of the newest state, or None."""
    found = states(path)
    return read_arrays(path / "state" / step_name(found[-1])) if found else None


def _write_arrays(path: Path, folder: str, name: str, arrays: Arrays, meta: Mapping[str, Any]) -> None:
    # .writing/state-00000782/{arrays, meta.json}, all of it on disk, is renamed to state/00000782. A kill before that
    # leaves a draft that the next start removes, one after it a whole checkpoint.
    draft = path / ".writing" / f"{folder}-{name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    # Orbax refuses arrays without elements; they hold nothing to keep.
    kept = {k: np.ascontiguousarray(v).reshape(np.shape(v)) for k, v in arrays.items() if np.size(v)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(draft.absolute() / "arrays", args=ocp.args.PyTreeSave(kept))
    write_json(draft / "meta.json", {**meta, "format": FORMAT, "checksums": {k: checksum(v) for k, v in kept.items()}})
    # What is in the folder is on disk before the folder gets its name: the name never stands for less than all of it.
    for file in [*draft.rglob("*"), draft]:
        force_to_disk(file)
    make_folder(path / folder)
    draft.rename(path / folder / name)
    # The name itself is an entry of the folder above.
    force_to_disk(path / folder)


def read_arrays(
    folder: Path, *, known: Mapping[int, float] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and notes of one checkpoint, checked."""
    if not folder.exists():
        raise FileNotFoundError(f"no checkpoint {folder}: expected one of the steps {list(known or {})}")
    damaged = f"the checkpoint {folder} is damaged (%s): remove that folder and train again with the same path to go on"
    meta = read_json(folder / "meta.json")
    if meta["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT} in {folder}, got {meta['format']}: read it with its own version")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = {k: np.asarray(v) for k, v in checkpointer.restore((folder / "arrays").absolute()).items()}
    except Exception as error:
        raise OSError(damaged % f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    for name, written in meta["checksums"].items():
        # All names of the notes must be there; what Orbax refuses to hold is in neither.
        if name not in arrays or checksum(arrays[name]) != written:
            raise OSError(damaged % f"the array {name} is not what was written")
    return arrays, meta


def describe_perturbation(perturbation: Callable[..., Any] | None) -> Any:
    """Return what ``run.json`` says of a perturbation: of one that is a tree, its kind and its strengths by name."""
    # `all_leaves` of a list of one is True if that one is a leaf, so a plain function is no tree.
    tree = not isinstance(perturbation, jax.tree_util.Partial) and not jax.tree_util.all_leaves([perturbation])
    if perturbation is None or not tree:
        return None if perturbation is None else describe(perturbation)
    return {
        "kind": type(perturbation).__name__,
        "structure": without_addresses(str(jax.tree.structure(perturbation))),
        **{k: np.asarray(jnp.asarray(v)).tolist() for k, v in leaves_by_path(perturbation).items()},
    }
