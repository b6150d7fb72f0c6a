"""What a training consists of, besides model, data and key: loss, optimizer, learning rate, augmentation."""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from stabjax._pixels import Statistics
from stabjax._types import AnyArray, Scalar

Loss = Literal["cross-entropy", "hinge"]
Real: TypeAlias = float | int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. Hashable, typed for command lines (`tyro`), saved as JSON beside the checkpoints.

    The defaults are the recipe of Petrini et al. 2021 (without its augmentation): SGD, rate 0.1, momentum 0.9, decay of
    the matrices, batches of 128, a cosine that reaches zero at 80 % of the epochs. `published` gives all of it, `fast`
    what does better in short runs on natural images.

    Numbers of NumPy or JAX, whole numbers as floats and lists become what JSON brings back. What is of another type
    raises ``TypeError``, what is out of range ``ValueError``, both with the name of the field.
    """

    # The default of a field that is new is what was done before there was such a field: saved runs lack it.

    epochs: Real = 30
    """Passes through the training images; a fraction gives a part of an epoch."""
    batch_size: int = 128
    """Images in one step. The images left over at the end of an epoch are dropped, others in each epoch."""
    loss: Loss = "cross-entropy"
    """``cross-entropy`` (labels 0, 1, ...), or ``hinge``: ``mean relu(1 - y o)`` (labels -1 and +1, one output)."""
    smoothing: Real = 0.0
    """Label smoothing of the cross-entropy: this share of each target is spread evenly over the classes."""
    optimizer: Literal["sgd", "adam", "muon"] = "sgd"
    """``muon``: orthogonalized momentum for the matrices and kernels, Adam for the rest; see `optimizer`."""
    rate: Real = 0.1
    """Peak learning rate. That of Muon is as small as that of Adam."""
    schedule: Literal["constant", "cosine", "triangular"] = "cosine"
    turn: Real = 0.8
    """``cosine``: share of the epochs at which the rate reaches zero; after that the cosine rises again."""
    warmup: Real = 0.2
    """``triangular``: share of the steps on the way up; then straight down to zero at the end."""
    momentum: Real = 0.9
    """Of SGD and Muon."""
    nesterov: bool = False
    """Of SGD and Muon."""
    decay: Real = 5e-4
    """Weight decay, added to the gradient before momentum or Adam (so it counts ``decay * weight``); with Muon added
    to the finished update of all parameters alike, as in AdamW, where 0.1 is a usual number."""
    decay_on: Literal["matrices", "all"] = "matrices"
    """``matrices``: parameters of two axes or more, so neither biases nor the scales of normalizations."""
    crop: int = 0
    """Random crop after padding with so many zero pixels on each side; 0: none."""
    flip: bool = False
    """Random horizontal flip."""
    mean: tuple[Real, ...] = ()
    """Channel means (of images in [0, 1]) taken off every image, in training and evaluation; empty: none."""
    deviation: tuple[Real, ...] = ()
    """Channel deviations each image is divided by, likewise."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """``bfloat16``: the network's forward and backward pass in training are computed in it, faster on accelerators.
    Weights, batch statistics, the loss, the optimizer and all scores stay as they are without."""
    averaging: Real = 0.0
    """Decay of the moving average of weights and batch statistics over the steps, which then takes their place in test
    scores and in everything that is given back or kept; 0: none. After ``t`` steps the decay is at most
    ``t / (9 + t)``, so that the first steps are soon forgotten."""
    test_flip: bool = False
    """Test scores from the mean of the outputs for an image and its mirror image."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            # A field becomes what JSON brings back, so that a recipe equals its saved copy. Frozen: set past the class.
            object.__setattr__(self, f.name, _as_json_type(f.name, getattr(self, f.name), f.type))

        def require(good: bool, name: str, expected: str) -> None:
            if not good:
                raise ValueError(f"expected {name} {expected}, got {getattr(self, name)!r}")

        for name in ("epochs", "rate"):
            require(0 < getattr(self, name) < np.inf, name, "positive and finite")
        require(self.batch_size >= 1, "batch_size", "of at least 1")
        require(self.crop >= 0, "crop", "of at least 0 pixels")
        require(0 <= self.smoothing < 1, "smoothing", "in [0, 1)")
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        require(0 <= self.averaging < 1, "averaging", "in [0, 1)")
        require(0 <= self.decay < np.inf, "decay", "of at least 0")
        require(0 < self.turn <= 1, "turn", "in (0, 1]")
        require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        require(all(np.isfinite(m) for m in self.mean), "mean", "finite")
        require(all(0 < d < np.inf for d in self.deviation), "deviation", "positive and finite")
        for field, allowed in _CHOICES.items():
            require(getattr(self, field) in allowed, field, f"one of {allowed}")
        if self.smoothing and self.loss == "hinge":
            raise ValueError(f"expected smoothing 0 with the hinge loss, got {self.smoothing}")

    @property
    def statistics(self) -> Statistics | None:
        """Return ``mean`` and ``deviation`` as `stabjax.data.normalize` takes them; None where both are empty."""
        if not self.mean and not self.deviation:
            return None
        mean, deviation = self.mean or (0.0,), self.deviation or (1.0,)
        # One number stands for all channels.
        channels = max(len(mean), len(deviation))
        return Statistics(*(values * channels if len(values) == 1 else values for values in (mean, deviation)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Read what `to_json` wrote; a missing field has its default; raise ``ValueError`` for an unknown one."""
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(
                f"expected the fields of a Recipe, got also {sorted(unknown)}: written by another version?"
            )
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def _as_json_type(name: str, value: Any, kind: Any) -> Any:
    """Convert the value of a field to the type that it has when it comes back from JSON."""
    if kind == tuple[Real, ...]:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise TypeError(f"expected {name} as a tuple of numbers, got {value!r}")
        return tuple(_as_json_type(name, each, Real) for each in value)
    # Scalars of NumPy and JAX as Python numbers. A bool is an int for Python, so it is refused by name below.
    given = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
    if kind is bool:
        if not isinstance(given, bool):
            raise TypeError(f"expected {name} True or False, got {value!r}")
    elif kind in (Real, int):
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise TypeError(f"expected {name} as a number, got {value!r}")
        if kind is int and given % 1 != 0:
            raise ValueError(f"expected {name} as a whole number, got {value!r}")
        return int(given) if kind is int else float(given)
    return given


_CHOICES = {
    "loss": ("cross-entropy", "hinge"),
    "optimizer": ("sgd", "adam", "muon"),
    "schedule": ("constant", "cosine", "triangular"),
    "decay_on": ("matrices", "all"),
    "precision": ("float32", "bfloat16"),
}


def as_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return a number of images or networks, checked: whole, and so many at least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"expected {name} as a whole number of at least {least}, got {value!r}")
    return int(value)


def count_steps(recipe: Recipe, images: int) -> tuple[int, int]:
    """Return steps per epoch and in all, for so many training images."""
    per_epoch = images // recipe.batch_size
    if per_epoch == 0:
        raise ValueError(f"expected at least one batch of {recipe.batch_size} images, got {images}: lower batch_size")
    return per_epoch, max(1, round(recipe.epochs * per_epoch))


def schedule(recipe: Recipe, steps_per_epoch: int) -> Callable[[Scalar], Float[Array, ""]]:
    """Return the learning rate as a function of the step, counted from 0.

    ``cosine``: ``rate/2 (1 + cos(pi e / (turn epochs)))``, constant within epoch ``e``: with the published turn of 0.8
    it is zero at 80 % of the epochs and has risen to 0.146 times the peak at the end. ``triangular``: straight up over
    ``warmup`` of the steps, then straight down, zero right after the last.

    Args:
        recipe: its ``schedule``, ``rate``, ``epochs``, ``turn`` and ``warmup`` are used.
        steps_per_epoch: batches in one epoch.
    """
    total = max(1, round(recipe.epochs * steps_per_epoch))

    def rate(step: Scalar) -> Float[Array, ""]:
        s = jnp.asarray(step, jnp.float32)
        if recipe.schedule == "cosine":
            # rate/2 (1 + cos(pi e / (turn epochs))) at epoch e = floor(step / steps_per_epoch).
            shape = 0.5 * (1 + jnp.cos(jnp.pi * jnp.floor(s / steps_per_epoch) / (recipe.turn * recipe.epochs)))
        elif recipe.schedule == "triangular":
            # Steps count from 0: the way up is not zero in the first one, the way down is zero right after the last.
            peak = recipe.warmup * total
            up = (s + 1) / peak if peak else jnp.ones(())
            shape = jnp.clip(jnp.minimum(up, (total - s) / (total - peak)), 0, 1)
        else:
            shape = jnp.ones((), jnp.float32)
        return (recipe.rate * shape).astype(jnp.float32)

    return rate


def optimizer(
    recipe: Recipe, steps_per_epoch: int, *, outputs: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Return the Optax transformation of a recipe: decay, then momentum or Adam's moments, then the factor ``-rate``.

    It is what `fit` uses, and may be a link of another chain: ``optax.chain(train.optimizer(recipe, steps),
    lipschitz.keep(1.0))``.

    ``muon`` (Jordan et al. 2024): the momentum of a parameter of two axes or more, as a matrix of fan-in (all axes but
    the last) times out, is replaced by a nearly orthogonal matrix with the same singular vectors, times
    ``0.2 sqrt(max(fan-in, out))``. Its elements are then as large as in an update of Adam (Liu et al. 2025,
    arXiv:2502.16982), so that one rate serves it and the biases, scales and output layer, which are left to Adam. The
    decay comes last, untouched by either.

    Args:
        recipe: its ``optimizer``, ``momentum``, ``nesterov``, ``decay`` and ``decay_on`` are used, and what `schedule`
            takes.
        steps_per_epoch: batches in one epoch, ``len(images) // recipe.batch_size``.
        outputs: number of outputs of the network: for Muon, a parameter with so many columns is of the output layer.
            None: there is no such layer among the parameters.
    """
    rate: Any = schedule(recipe, steps_per_epoch)
    return optax.chain(_direction(recipe, outputs), optax.scale_by_learning_rate(rate))


def _direction(recipe: Recipe, outputs: int | None) -> optax.GradientTransformation:
    """Return the transformation before the factor ``-rate``."""
    matrices = recipe.decay_on == "matrices"
    mask = (lambda params: jax.tree.map(lambda p: p.ndim > 1, params)) if matrices else None
    # Masked by the number of axes, so that biases and scales of normalizations are left out.
    decay = optax.add_decayed_weights(recipe.decay, mask=mask) if recipe.decay else optax.identity()
    if recipe.optimizer == "muon":
        muon = optax.contrib.scale_by_muon(
            beta=recipe.momentum, nesterov=recipe.nesterov, weight_dimension_numbers=_matrix_axes
        )
        rules: dict[Hashable, optax.GradientTransformation] = {
            "muon": optax.chain(muon, optax.stateless(_scale_to_adam)),
            "adam": optax.scale_by_adam(),
        }
        # The decay stands behind the partition, so it is added to the update of either rule; below it stands in front,
        # and goes through momentum or Adam as a part of the gradient.
        return _in_float32(optax.chain(optax.partition(rules, functools.partial(_label_rules, outputs=outputs)), decay))
    if recipe.optimizer == "adam":
        return _in_float32(optax.chain(decay, optax.scale_by_adam()))
    if recipe.momentum:
        return optax.chain(decay, optax.trace(recipe.momentum, nesterov=recipe.nesterov))
    return decay


def _in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep the moments of a rule in float32 at least: in float16 the ``epsilon`` that it divides by is zero."""

    def widened(tree: Any) -> Any:
        return jax.tree.map(lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float32)), tree)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide, state = rule.update(widened(updates), state, widened(params))
        return jax.tree.map(lambda w, u: w.astype(u.dtype), wide, updates), state

    return optax.GradientTransformation(lambda params: rule.init(widened(params)), update)


def _label_rules(params: Any, outputs: int | None) -> Any:
    return jax.tree.map(lambda p: "muon" if p.ndim > 1 and p.shape[-1] != outputs else "adam", params)


def _matrix_axes(params: Any) -> Any:
    # Axes that are summed over (fan-in: all but the last), then the axis of the outputs.
    return jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1), params)


def _scale_to_adam(updates: Any, params: Any) -> Any:
    del params
    # An (m, n) matrix whose singular values are 1 has the square norm min(m, n), so its elements have the rms value
    # 1 / sqrt(max(m, n)). The factor makes 0.2 of it, about that of an update of Adam.
    return jax.tree.map(lambda u: 0.2 * max(math.prod(u.shape[:-1]), u.shape[-1]) ** 0.5 * u, updates)


def loss(
    outputs: Float[AnyArray, "n ..."],
    labels: Int[AnyArray, " n"],
    *,
    kind: Loss = "cross-entropy",
    smoothing: Real = 0.0,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Return loss and hit (1 or 0) of each example.

    ``cross-entropy``: ``outputs`` are logits, ``(n, classes)``; the target is ``1 - smoothing`` on the label plus
    ``smoothing / classes`` everywhere. ``hinge``: ``outputs`` are ``(n,)`` or ``(n, 1)``, labels -1 or +1, and the loss
    ``relu(1 - y o)``; a hit is ``y o > 0``.

    Returns:
        loss: ``(n,)``.
        hit: ``(n,)``, zero or one.
    """
    outputs = jnp.asarray(outputs)
    n = outputs.shape[0]
    if kind == "hinge":
        if outputs.shape not in ((n,), (n, 1)):
            raise ValueError(f"expected one output per image for the hinge loss, got {outputs.shape[1:]} per image")
        margin = jnp.asarray(labels).astype(outputs.dtype) * outputs.reshape(n)
        return jax.nn.relu(1 - margin), (margin > 0).astype(outputs.dtype)
    if outputs.ndim != 2:
        raise ValueError(f"expected logits (n, classes) for the cross-entropy, got {outputs.shape}")
    log_p = jax.nn.log_softmax(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))
    labels = jnp.asarray(labels).astype(jnp.int32)
    # log p of the label, (n,).
    picked = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    # -sum_c t_c log p_c with the target t: (1 - smoothing) on the label, and smoothing / classes on each class.
    value = -(1 - smoothing) * picked - smoothing * jnp.mean(log_p, axis=1)
    return value, (jnp.argmax(outputs, axis=1).astype(jnp.int32) == labels).astype(value.dtype)


def log_spaced(epochs: Real, *, count: int = 30) -> tuple[int, ...]:
    """Return epochs ``int(10^linspace(-1, log10(epochs), count))``, without duplicates, and 0 and the last."""
    if epochs < 1:
        return (0,)
    # The small excess keeps int() from cutting 10^log10(250) = 249.99999999999997 to 249.
    times = np.floor(10 ** np.linspace(-1, np.log10(epochs), count) * (1 + 1e-12)).astype(int)
    return tuple(sorted({0, int(epochs), *times.tolist()}))
