"""Every entrance of the library times every wrong batch of images: a refusal that helps, or the right number.

The table of outcomes stands in ``docs/inputs.md``; ``python -m tests.test_inputs`` writes it anew.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from stabjax import data, features, fields, lipschitz, perturb, probe, receptive, train, warp

PAGE = Path(__file__).parent.parent / "docs" / "inputs.md"
IMAGES = np.random.default_rng(3).random((6, 8, 10, 3), np.float32)
LABELS = np.arange(6) % 2
KEY = jax.random.key(3)
DEFORMATION = perturb.Diffeomorphism.of_displacement(1.0, 3, (8, 10))
MODEL = nnx.Sequential(
    nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)),
    nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
    nnx.relu,
    lambda x: jnp.mean(x, (1, 2)),
    nnx.Linear(4, 2, rngs=nnx.Rngs(1)),
)
EVALUATED = nnx.view(MODEL, use_running_average=True)
RECIPE = train.Recipe(epochs=1, batch_size=6, crop=0, flip=False)


class Tensor:
    """An array of another framework: it has a shape and a dtype, and JAX does not know it."""

    shape, ndim, dtype = IMAGES.shape, 4, "torch.float32"

    def __len__(self):
        return 6


@dataclass
class Column:
    """A wrong input, as a batch and as one image; and what gives the right number where it is taken."""

    batch: Any
    image: Any
    right: Any = None

    @property
    def right_image(self):
        """Of the right batch, the image that stands where the wrong one does."""
        return None if self.right is None else self.right[0]


def _spoiled(images):
    images = images.copy()
    images[-1, 0, 0, 0] = np.nan
    return images


BYTES = np.round(255 * IMAGES).astype(np.uint8)
MASKED = np.ma.masked_greater(IMAGES, 0.9)
COLUMNS = {
    "channels first": Column(np.moveaxis(IMAGES, -1, 1), np.moveaxis(IMAGES[0], -1, 0)),
    "gray, channels first": Column(IMAGES[:, None, :, :, 0], IMAGES[:1, :, :, 0]),
    "gray, no channels": Column(IMAGES[..., 0], IMAGES[0, ..., 0]),
    "one axis too few or many": Column(IMAGES[0], IMAGES),
    "two axes too few or many": Column(IMAGES[0, ..., 0], IMAGES[None]),
    "another size": Column(IMAGES[:, :7], IMAGES[0, :7], IMAGES[:, :7]),
    "no image": Column(IMAGES[:0], IMAGES[0, :0]),
    "no pixels": Column(IMAGES[:, :, :0], IMAGES[0, :, :0]),
    "bytes": Column(BYTES, BYTES[0], BYTES.astype(np.float32) / 255),
    "integers": Column(BYTES.astype(np.int32), BYTES[0].astype(np.int32), BYTES.astype(np.float32) / 255),
    "true and false": Column(IMAGES > 0.5, IMAGES[0] > 0.5),
    "complex": Column(IMAGES + 1j, IMAGES[0] + 1j),
    "a list": Column(IMAGES.tolist(), IMAGES[0].tolist(), IMAGES),
    "objects": Column(IMAGES.astype(object), IMAGES[0].astype(object)),
    "a foreign tensor": Column(Tensor(), Tensor()),
    "None": Column(None, None),
    "floats to 255": Column(255 * IMAGES, 255 * IMAGES[0], 255 * IMAGES),
    "double precision": Column(IMAGES.astype(np.float64), IMAGES[0].astype(np.float64), IMAGES),
    "a masked array": Column(MASKED, MASKED[0]),
    "another byte order": Column(IMAGES.astype(">f4"), IMAGES[0].astype(">f4"), IMAGES),
    "8-bit floats": Column(IMAGES.astype(jnp.float8_e4m3fn), IMAGES[0].astype(jnp.float8_e4m3fn)),
    "an image with NaN": Column(_spoiled(IMAGES), _spoiled(IMAGES)[-1], IMAGES[:-1]),
}


@dataclass
class Entrance:
    """A call; whether it takes one image; and another way to the right number, where it takes more than images."""

    call: Any
    single: bool = False
    other_way: Any = None

    def expected(self, given, right):
        """The right number, or None where there is none."""
        if self.other_way is not None:
            return self.other_way(given)
        return None if right is None else self.call(right)


def batch_entrance(call, other_way=None):
    return Entrance(call, other_way=other_way)


def image_entrance(call):
    return Entrance(call, single=True)


def labels_of(images):
    return LABELS[: np.shape(images)[0] if np.ndim(images) else None]


def normalized(images):
    """Of images of any shape with three channels last."""
    unit = 255 if np.asarray(images).dtype == np.uint8 else 1
    stats = data.STATISTICS["cifar10"]
    return (np.asarray(images) / unit - np.array(stats.mean)) / np.array(stats.deviation)


ENTRANCES = {
    "data.arrays": batch_entrance(lambda x: data.arrays(x, labels_of(x))[0]),
    "data.statistics": batch_entrance(lambda x: data.statistics(x).mean),
    "data.normalize": batch_entrance(lambda x: data.normalize(x, "cifar10"), normalized),
    "train.fit": batch_entrance(lambda x: train.fit(MODEL, (x, LABELS), key=KEY, recipe=RECIPE).last),
    "train.evaluate": batch_entrance(lambda x: train.evaluate(MODEL, x, LABELS).loss),
    "train.calibrate": batch_entrance(lambda x: nnx.state(train.calibrate(MODEL, x), nnx.BatchStat)),
    "perturb.Diffeomorphism": image_entrance(lambda x: DEFORMATION(KEY, x)),
    "perturb.RandomDiffeomorphism": image_entrance(lambda x: perturb.RandomDiffeomorphism()(KEY, x)),
    "perturb.Translation": image_entrance(lambda x: perturb.Translation(1.0)(KEY, x)),
    "perturb.Affine": image_entrance(lambda x: perturb.Affine(rotation=0.1)(KEY, x)),
    "perturb.SphericalNoise": image_entrance(lambda x: perturb.SphericalNoise(1.0)(KEY, x)),
    "perturb.Toward": image_entrance(lambda x: perturb.Toward(1 - IMAGES, 1.0)(KEY, x)),
    "perturb.noise_like": image_entrance(lambda x: perturb.noise_like(KEY, x, x)),
    "warp.pull_back": image_entrance(lambda x: warp.pull_back(x, fields.affine((8, 10), rotation=0.1))),
    "probe.stability": batch_entrance(
        lambda x: probe.stability(MODEL, x, key=KEY, deformation=DEFORMATION, select="output").deformation
    ),
    "probe.perturbed": batch_entrance(lambda x: probe.perturbed(x, key=KEY, deformation=DEFORMATION)[0][0]),
    "probe.similarity": batch_entrance(lambda x: probe.similarity(MODEL, MODEL, x, select="output").matrix),
    "features.capture": batch_entrance(lambda x: features.capture(MODEL)(x)[0], lambda x: EVALUATED(x)),
    "receptive.extent": batch_entrance(lambda x: [extent.size for extent in receptive.extent(MODEL, x).values()][:2]),
    "receptive.effective": batch_entrance(lambda x: receptive.effective(MODEL, x, tap="layers/0")),
    "receptive.constant_weight": batch_entrance(lambda x: receptive.constant_weight(MODEL, x, tap="layers/0")),
    "lipschitz.network": batch_entrance(lambda x: lipschitz.network(MODEL, x).value),
    "lipschitz.local": batch_entrance(lambda x: lipschitz.local(MODEL, x, key=KEY).value),
}


def outcome(entrance, column):
    """One word for what happens: refused, right, NaN; or a text that says what is wrong."""
    call, column = ENTRANCES[entrance], COLUMNS[column]
    given, right = (column.image, column.right_image) if call.single else (column.batch, column.right)
    try:
        found = call.call(given)
    except (ValueError, TypeError) as error:
        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        helpful = re.search(r"expected .*got .*([:;]|\buse\b) ?.+", message, re.DOTALL)
        return "refused" if helpful else f"refused without help: {type(error).__name__}: {message}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    found = [np.asarray(leaf, np.complex128) for leaf in jax.tree.leaves(found)]
    expected = call.expected(given, right)
    if expected is None:
        return f"taken, though there is no right number: {[leaf.shape for leaf in found]}"
    expected = [np.asarray(leaf, np.complex128) for leaf in jax.tree.leaves(expected)]
    missing = any(np.isnan(leaf).any() for leaf in found)
    if column is COLUMNS["an image with NaN"]:
        if missing:
            return "NaN"
        found = [leaf[: len(other)] if leaf.ndim else leaf for leaf, other in zip(found, expected)]
    same = len(found) == len(expected) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(found, expected)
    )
    return ("NaN" if missing else "right") if same else f"wrong: {found} for {expected}"


HEAD = """# Wrong input, entrance by entrance

What every entrance of the library does with images that are not what it takes, `(n, h, w, channels)`, or `(h, w,
channels)` for what takes one image. **no**: refused, by a `ValueError` or `TypeError` that says what was expected, what
came and what to do. **ok**: taken, and the number is that of the right input. **NaN**: taken, and the number is NaN.
There is nothing else. The table is made and held by `tests/test_inputs.py`; `python -m tests.test_inputs` writes it.

"""
WORDS = {"refused": "no", "right": "ok", "NaN": "NaN"}


def row(entrance, outcomes):
    """One line of the table."""
    return f"| `{entrance}` | {' | '.join(WORDS.get(text, text) for text in outcomes.values())} |"


@pytest.mark.usefixtures("unchecked", "relaxed_promotion")
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_wrong_batch_is_refused_or_gives_the_right_number(entrance):
    outcomes = {column: outcome(entrance, column) for column in COLUMNS}
    assert {column: text for column, text in outcomes.items() if text not in WORDS} == {}
    assert row(entrance, outcomes) in PAGE.read_text().splitlines(), "write it anew: python -m tests.test_inputs"


def main():
    """Write the table."""
    jaxtyping.config.update("jaxtyping_disable", True)
    lines = [
        f"| | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    lines += [row(entrance, {column: outcome(entrance, column) for column in COLUMNS}) for entrance in ENTRANCES]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
