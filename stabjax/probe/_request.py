"""What is asked of a pass over the images, checked."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxtyping import Array, Key

from stabjax import features, perturb
from stabjax._arguments import as_argument, value_of
from stabjax._types import Perturbation
from stabjax.probe._batching import Kinds
from stabjax.probe._context import Rows, Summary
from stabjax.probe._pass import Measurements, Normalization

Radius: TypeAlias = Literal["each", "mean"]


@dataclass(frozen=True)
class Request:
    """Hold the arguments of `stabjax.probe.run` that say what is to be done with each batch of images."""

    measurements: Measurements
    kinds: Kinds
    key: Key[Array, ""]
    deformation: Perturbation | None
    noise: Perturbation | None
    radius: Radius
    draws: int
    select: features.Select
    batch_size: int
    normalization: Normalization

    def perturbations(self, spatial: tuple[int, ...]) -> tuple[Any, Any]:
        """Return deformation and noise for images of these sides as arguments of jit."""
        return as_perturbation(self.deformation, spatial), as_perturbation(self.noise, spatial)

    def rows(self, images: int) -> int:
        """Return how many rows pass through the network: all versions of so many images."""
        return images * (1 + self.draws * len(self.kinds))

    def finish(self, states: Any, rows: dict[str, Rows], summary: Summary) -> dict[str, Any]:
        """Return the result of every measurement."""
        return {
            name: value_of(measurement).finish(states[name], rows[name], summary)
            for name, measurement in self.measurements.items()
        }


def as_perturbation(perturbation: Any, spatial: tuple[int, ...]) -> Any:
    """Make a perturbation of images of these sides an argument of jit.

    A plain function is static, and compiles again if what it holds changes.
    """
    return as_argument(perturb.with_spatial(perturbation, spatial))
