"""The images of the experiments: real sets or a task that is drawn, with the deformation and the recipe of training."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import stabjax as sj

Name: TypeAlias = Literal["cifar10", "mnist", "fashion-mnist", "svhn", "scale-detection"]
"""All but scale-detection are read from STABJAX_DATA or downloaded."""


@dataclass(frozen=True)
class Task:
    """Images to classify, how they are deformed, and how a network is trained on them."""

    training: tuple[Any, Any]
    """Images ``(n, h, w, channels)``, bytes or floats, and labels ``(n,)``."""
    test: tuple[Any, Any]
    """Likewise."""
    deformation: Any
    """``(key, image) -> image``."""
    recipe: sj.train.Recipe
    """With the channel statistics of the images."""
    note: str
    """What to say beside every number."""
    source: sj.data.Source | None = None
    """Where real images were read from."""

    @property
    def is_exact(self) -> bool:
        """Return whether the pixels are those of the publisher, or drawn here: no JPEG copies."""
        return self.source is None or self.source.exact

    @property
    def channels(self) -> int:
        """Return the number of channels of an image."""
        return self.training[0].shape[-1]

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return 2 if self.source is None else len(self.source.classes)

    def label(self, name: str) -> str:
        """Return a name of the images for titles, with the word that they are copies if they are."""
        return name if self.is_exact else f"{name} (JPEG copies)"

    def normalize(self, images: Any) -> jax.Array:
        """Return images less the mean and divided by the deviation of each channel."""
        return sj.data.normalize(jnp.asarray(images), self.recipe.statistics)

    def draw_test_images(self, count: int, *, seed: int) -> tuple[np.ndarray, jax.Array]:
        """Draw a fixed random choice of test images: ascending positions ``(count,)``, and the images, normalized."""
        chosen = sj.data.subset(len(self.test[0]), count, seed=seed)
        return chosen, self.normalize(self.test[0][chosen])


def load(
    name: Name,
    *,
    seed: int,
    epochs: float = 10.0,
    training: int | None = None,
    images: int = 500,
    cutoff: int = 3,
    displacement: float = 1.0,
    batch_size: int = 128,
) -> Task:
    """Load an image set, or draw the scale-detection task, with the deformation and the recipe of layerwise studies.

    Args:
        name: of the images.
        seed: of the choice of training images, or of the drawn task.
        epochs: passes through the training images.
        training: number of training images; all of them (of the drawn task 8192) if None.
        images: number of test images that will be used; the drawn task has at least so many.
        cutoff: highest frequency of the deformations of real images.
        displacement: their typical size in pixels, in the convention of the paper.
        batch_size: images in a step of training.
    """
    if name == "scale-detection":
        task = sj.data.ScaleTask.plane(size=28)
        count = training or 8192
        key = jax.random.key(seed)
        sets = [
            (drawn.images / task.value, (drawn.labels + 1) // 2)
            for drawn in (
                sj.data.scale_detection(key, count, task=task),
                sj.data.scale_detection(key, max(images, count // 4), task=task, skip=count),
            )
        ]
        return Task(
            *sets,
            deformation=sj.data.LocalTranslation(task, value=1.0),
            recipe=sj.train.Recipe(
                rate=0.05, epochs=epochs, batch_size=batch_size, schedule="triangular", nesterov=True
            ),
            note="two lit pixels, 28 x 28",
        )
    (pixels, labels), test = (sj.data.load_bytes(name, split) for split in ("train", "test"))
    if training is not None:
        chosen = sj.data.subset(len(pixels), training, seed=seed)
        pixels, labels = pixels[chosen], labels[chosen]
    statistics = sj.data.STATISTICS[name]
    source = sj.data.describe(name)
    return Task(
        training=(pixels, labels),
        test=test,
        deformation=sj.perturb.Diffeomorphism.of_displacement(
            displacement, cutoff, pixels.shape[1:3], convention="paper"
        ),
        recipe=sj.train.short(epochs=epochs, batch_size=batch_size, natural=name == "cifar10", **asdict(statistics)),
        note=source.note or name,
        source=source,
    )
