"""`fit`: train one seed of a network, or several."""

import contextlib
import dataclasses
import itertools
import operator
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Int

from stabjax import perturb
from stabjax._arguments import ComparedByContents, as_argument, as_key
from stabjax._images import Spatial
from stabjax._progress import progress_bar
from stabjax._provenance import describe, fingerprint, leaves_by_path, versions_of, without_addresses
from stabjax._types import AnyArray, PRNGKey
from stabjax.train import _files
from stabjax.train._evaluate import check_data, check_outputs
from stabjax.train._history import History, mean_over_seeds, seeds_left
from stabjax.train._loop import TrainLoop, stack_seeds
from stabjax.train._program import Program
from stabjax.train._recipe import Real, Recipe, as_count, count_steps, log_spaced
from stabjax.train._state_dict import Layout, Weights, to_host

Data = tuple[AnyArray, AnyArray]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What `fit` gives back: ``run.model()`` is the trained network, ``print(run.history)`` the table of its epochs."""

    initial: Weights
    """``{name: (seeds, ...)}``: every variable (parameters, batch statistics, keys as integers) at step 0."""
    best: Weights
    """Likewise (moving averages where the recipe asks for ``averaging``), at the end of each seed's epoch of best test
    accuracy (the first of equals); the last without test images. Chosen on the test images, so its accuracy is
    optimistic by a few tenths of a percent."""
    last: Weights
    """Likewise (moving averages likewise), at the end; of a seed that diverged, before the step that did it."""
    best_step: Int[np.ndarray, " seeds"]
    """``(seeds,)``: the number of steps taken by ``best``."""
    diverged: Int[np.ndarray, " seeds"]
    """``(seeds,)``: the step, counted from 0, whose loss or update was not finite; -1 where all went well."""
    history: History
    recipe: Recipe = dataclasses.field(metadata={"static": True})
    layout: Layout = dataclasses.field(metadata={"static": True}, repr=False)
    path: Path | None = dataclasses.field(metadata={"static": True})
    """The folder of the checkpoints, for `load`."""

    def model(self, which: _files.Stage | SupportsIndex = "last", *, seed: SupportsIndex = 0) -> nnx.Module:
        """Return the network of one seed, evaluating: ``"initial"``, ``"best"``, ``"last"`` or a step in ``path``."""
        seed = operator.index(seed)
        if not 0 <= seed < len(self.diverged):
            raise ValueError(f"expected seed in 0..{len(self.diverged) - 1}, got {seed}")
        which = _files.as_stage(which)
        if isinstance(which, int):
            if self.path is None:
                raise ValueError(f"expected 'initial', 'best' or 'last', got {which}: only fit(path=...) keeps steps")
            return _files.load(self.path, self.model("initial"), step=which, seed=seed)
        # Copies, so that a model shares no memory with the run.
        weights = {k: np.array(v[seed]) for k, v in getattr(self, which).items()}
        return self.layout.model(self.layout.to_device(weights), training=False)


def fit(
    build: nnx.Module | Callable[..., nnx.Module],
    data: Data,
    *,
    key: PRNGKey,
    recipe: Recipe | None = None,
    test: Data | None = None,
    path: str | PathLike[str] | None = None,
    seeds: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    perturbation: Callable[..., Any] | None = None,
    trainable: Any = nnx.Param,
    vectorized: bool = False,
    checkpoints: tuple[int, ...] | None = None,
    save_every: Real = 30.0,
    progress: bool = False,
    spatial: Spatial = None,
) -> Run:
    """Train a network, or several seeds of it together.

    In every step the images are cropped and flipped, normalized, then perturbed, on the device. All randomness comes
    from ``fold_in(key, seed)`` and the step: a seed does not depend on how many others there are, and a run that was
    killed and is started again with the same arguments ends with the same bits as one that was not (on a GPU, only
    under ``XLA_FLAGS=--xla_gpu_deterministic_ops=true``).

    A step whose loss or update is not finite is not taken and ends the training of its seed: a ``RuntimeWarning`` names
    it, ``Run.diverged`` holds it, the weights before it are kept, and the other seeds go on.

    With ``averaging`` in the recipe, it is the moving averages that are scored, given back and kept as the weights of
    an epoch; a state holds both, and the training goes on from the weights themselves.

    Args:
        build: called as ``build(rngs=nnx.Rngs(...))`` for each seed; or a module (one seed), which is copied.
        data: training images ``(n, *spatial, channels)``, integers 0..255 (kept as they are on the device) or floats,
            and integer labels ``(n,)``.
        key: all randomness, that of the initial weights included.
        recipe: how to train; ``Recipe()`` if None.
        test: test images and labels, scored in evaluation mode after every epoch.
        path: folder of this run. It keeps the weights at the epochs ``checkpoints``, the history and the newest state;
            where a run is there already, it goes on from its newest state, if all arguments are as they were. More
            epochs than before are trained if the rates of the steps taken do not depend on the number of epochs: with
            a constant rate (or a cosine with the same ``turn * epochs``), after whole epochs. The result is that of one
            run, to the bit, but for the epochs whose weights are kept. A cosine or triangular rate is another from the
            first step on: then, and for fewer epochs than were taken, an error says how to go on.
        seeds: number of networks, each with its own initial weights, order of images and augmentation.
        optimizer: any Optax transformation in place of the recipe's: ``optax.adamw(1e-3)``, or ``optax.chain(optax.sgd(
            schedule), lipschitz.keep(1.0))``, whose kernels are inside of the bound after every step, and so are their
            moving averages. The recipe's ``optimizer``, ``rate``, ``schedule``, ``turn``, ``warmup``, ``momentum``,
            ``nesterov``, ``decay`` and ``decay_on`` then say nothing: schedule, weight decay and clipping are links of
            the chain (`train.optimizer` makes those of a recipe into one), and the ``rate`` of the history is NaN. The
            parameters that it sees are ``{"blocks/0/conv/kernel": array}``, without those that are not trained, and
            ``update`` gets the loss of the batch as ``value=``. With ``path``, its state is saved too, it is known
            again as a perturbation is, and a run may go on for more epochs after whole ones.
        perturbation: ``(key, image) -> image``, for example a `stabjax.perturb.Diffeomorphism`, put on every training
            image after normalization. With ``path``, a function of a module is known again by its name, a lambda by
            its code and what it holds, an object by its attributes.
        trainable: NNX filter of the variables to train; ``nnx.All(nnx.Param, nnx.PathContains("dense"))`` trains one
            layer.
        vectorized: one `jax.vmap` over the seeds instead of one after the other: for small networks on accelerators.
            On the CPU it turns convolutions into grouped ones, which are slow.
        checkpoints: epochs whose weights are kept in ``path``, beside the first and the last; ``log_spaced`` if None.
        save_every: seconds between two saved states; the end is always saved.
        progress: show a bar with the time left.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels. 0 for
            ``(n, units)``.

    Raises:
        TypeError: ``key`` is no key, or the data are no arrays.
        ValueError: model, data, labels and recipe do not fit together; or ``path`` holds another run, and the error
            names each difference.
        OSError: a saved file is damaged, and the error names it; or another process is training in ``path``.
    """
    key = as_key(key)
    recipe = recipe or Recipe()
    path = None if path is None else Path(path)
    if not isinstance(optimizer, optax.GradientTransformation | None):
        raise TypeError(
            f"expected optimizer as an optax.GradientTransformation, got {type(optimizer).__name__}: give "
            "optax.sgd(0.1), or None and name it in the recipe"
        )
    for name, pair in (("data", data), ("test", test)):
        if not isinstance(pair, tuple | list | None) or (pair is not None and len(pair) != 2):
            raise TypeError(f"expected {name} as a pair (images, labels), got {type(pair).__name__}: give both")
    if (seeds := as_count("seeds", seeds)) > 1 and isinstance(build, nnx.Module):
        raise ValueError(f"expected a function that builds the network where seeds > 1, got a module and {seeds} seeds")
    epochs = log_spaced(recipe.epochs) if checkpoints is None else checkpoints
    if any(e != int(e) or e < 0 for e in epochs):
        raise ValueError(
            f"expected checkpoints as whole numbers of epochs, got {epochs}: weights are kept at their ends"
        )
    made_for = {"perturbation": getattr(perturbation, "spatial", None)}
    images, labels = check_data(*data, recipe.loss, spatial=spatial, made_for=made_for)
    test_data = None if test is None else check_data(*test, recipe.loss, spatial=spatial, made_for=made_for)
    if images.ndim < 3 and (recipe.crop or recipe.flip or recipe.test_flip):
        raise ValueError(f"expected images with spatial axes for crop and flip, got shape {images.shape}")
    per_epoch, total = count_steps(recipe, len(images))

    # Three keys of each seed, from its number alone: initial weights, order of the images, steps.
    keys = [jax.random.split(jax.random.fold_in(key, seed), 3) for seed in range(seeds)]
    layouts, initial = zip(*(_build(build, k[0]) for k in keys))
    layout: Layout = layouts[0]
    for seed in range(1, seeds):
        _check_same_architecture(layouts, initial, seed)
    model = layout.model(initial[0], training=True)
    # Names of the variables by which the program tells them apart; a variable may be in several of the sets or in none.
    trained, parameters, statistics = (
        frozenset(leaves_by_path(nnx.state(model, chosen))) for chosen in (trainable, nnx.Param, nnx.BatchStat)
    )
    if not trained:
        raise ValueError(f"expected a filter that selects at least one variable to train, got {trainable}")
    others = {
        k: str(initial[0][k].dtype) for k in sorted(trained) if not jnp.issubdtype(initial[0][k].dtype, jnp.floating)
    }
    if others:
        raise ValueError(
            f"expected variables of real numbers to train, got {others}: make them an nnx.Variable, or leave them out "
            "by trainable=nnx.All(nnx.Param, nnx.Not(nnx.PathContains(...)))"
        )
    outputs = [
        check_outputs(layout, initial[0], *known, recipe.loss, recipe.mean, recipe.deviation)
        for known in ((images, labels), *([] if test_data is None else [test_data]))
    ]

    host_initial = stack_seeds([to_host(w) for w in initial])
    # All that the bits of a run depend on, as JSON has it. Arrays are fingerprints: the data are not kept in the
    # folder.
    given = {
        "format": _files.FORMAT,
        "versions": versions_of("jax", "flax"),
        "recipe": recipe.to_json(),
        "seeds": seeds,
        "key": {"kind": str(jax.random.key_impl(key)), "data": np.asarray(jax.random.key_data(key)).tolist()},
        "images": fingerprint(images),
        "labels": fingerprint(labels),
        "test": None if test_data is None else [fingerprint(x) for x in test_data],
        "optimizer": None if optimizer is None else describe(optimizer),
        "perturbation": _files.describe_perturbation(perturbation),
        "weights": layout.signature(initial[0]),
        "trained": sorted(trained),
        "initial weights": fingerprint(np.frombuffer(b"".join(v.tobytes() for v in host_initial.values()), np.uint8)),
        "vectorized": vectorized,
        "steps_per_epoch": per_epoch,
    }
    program = Program(
        layout,
        trained,
        parameters,
        statistics,
        recipe,
        outputs[0],
        len(images),
        per_epoch,
        vectorized,
        None if optimizer is None else ComparedByContents.of(optimizer),
    )
    # Its strengths are arguments of the compiled step, so that other strengths compile nothing.
    perturbed = jax.tree.map(jnp.asarray, as_argument(perturb.with_spatial(perturbation, images.shape[1:-1])))
    loop = TrainLoop(program, initial, keys)

    with contextlib.ExitStack() as stack:
        if path is not None:
            saved = stack.enter_context(_files.open_run(path, given))
            if saved["versions"] != given["versions"]:
                text = (
                    f"{path} was begun with {saved['versions']} and goes on with {given['versions']}: bits may differ"
                )
                warnings.warn(text, UserWarning, stacklevel=2)
            # Nothing is done where step 0 is there already: it has the same bits, as the manifest has shown.
            _files.save_weights(path, 0, host_initial)
            state = _files.newest_state(path)
            if state is not None:
                loop.restore(*state)
                # A kill may have come between a state and its history; the state has the one that goes with it.
                _files.write_json(path / "history.json", loop.history.to_json())
        update = stack.enter_context(progress_bar(total, shown=progress, completed=loop.step))

        def report(step: int, history: History) -> None:
            if progress:
                update(step, _describe_progress(step, total / per_epoch, per_epoch, history))

        # Steps, not epochs: the end of a training may lie within an epoch.
        kept = {total} | {int(e) * per_epoch for e in epochs}
        loop.run(total, (images, labels), perturbed, test_data, path, kept, save_every, report)

    for seed, step in enumerate(loop.diverged):
        if step >= 0:
            text = (
                f"seed {seed} diverged in step {step} (epoch {step / per_epoch:.2f}): its loss or update was not "
                "finite; the weights before that step are kept. A lower rate, a warm-up or normalized images help."
            )
            warnings.warn(text, RuntimeWarning, stacklevel=2)
    last = loop.weights()
    if test is None:
        loop.best = last
        # Without scores the last is the best. If step k, counted from 0, was not taken, k steps were.
        loop.best_step = np.where(loop.diverged < 0, loop.step, loop.diverged)
    best = stack_seeds(loop.best)
    return Run(
        host_initial,
        best,
        stack_seeds(last),
        loop.best_step,
        loop.diverged,
        loop.history,
        recipe,
        layout,
        path,
    )


def _build(build: Any, key: jax.Array) -> tuple[Layout, dict[str, jax.Array]]:
    model = build if isinstance(build, nnx.Module) else build(rngs=nnx.Rngs(key))
    if not isinstance(model, nnx.Module):
        raise TypeError(f"expected a Flax NNX module or a function that builds one, got {type(model).__name__}")
    return Layout.of(model)


def _check_same_architecture(layouts: tuple[Layout, ...], weights: tuple[dict[str, jax.Array], ...], seed: int) -> None:
    """Raise ``ValueError`` unless a seed's network is that of the first, apart from functions made while building.

    Those differ from seed to seed, in their address alone.
    """
    first, other = ({**layouts[s].signature(weights[s]), "random keys": str(layouts[s].keys)} for s in (0, seed))
    differences = [
        f"{k}: {first.get(k)} in seed 0, {other.get(k)} in seed {seed}"
        for k in dict.fromkeys([*first, *other])
        if first.get(k) != other.get(k)
    ]
    # The same variables, but another graph: lines of its text that differ tell where.
    if not differences and layouts[0] != layouts[seed]:
        graphs = [without_addresses(repr(layouts[s].training)).splitlines() for s in (0, seed)]
        differences = [
            f"{a.strip()} in seed 0, {b.strip()} in seed {seed}"
            for a, b in itertools.zip_longest(*graphs, fillvalue="nothing")
            if a != b
        ]
    if differences:
        raise ValueError(
            f"expected networks of one architecture for all seeds, got different ones ({'; '.join(differences[:4])}): "
            "build the same for each, or train them one by one"
        )


def _describe_progress(step: int, epochs: float, per_epoch: int, history: History) -> str:
    """Return where a training is: its epoch, and the last entries of its history."""
    text = f"epoch {step / per_epoch:.1f} of {epochs:g}"
    if len(history.epoch):
        text += f"  loss {mean_over_seeds(history.train_loss[-1]):.3f}"
        text += f"  test {mean_over_seeds(history.test_accuracy[-1]):.3f}{seeds_left(history.train_loss[-1])}"
    return text
