"""`Measured`: a result, and all that is said beside it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stabjax.report._images import Examples
from stabjax.stability import Stability


@dataclass(frozen=True, eq=False)
class Measured:
    """Hold the stability of one network, and how it was measured.

    Attributes:
        label: what the network is called in figures and tables.
        result: the numbers, of one network.
        settings: how it was measured, as text by term: ``{"images": "photos, 20 images of 224 x 224 x 3", ...}``.
        command: the command that measures it again.
        versions: of the software and the device, by name.
        hidden: operations that could not be looked at, each with the reason.
        examples: some of the images, clean, deformed and with noise, ``(k, h, w, channels)`` each, in [0, 1]. They are
            on the page alone: a folder that is read again has none.
    """

    label: str
    result: Stability
    settings: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hidden: Sequence[tuple[str, str]] = ()
    examples: tuple[Examples, Examples, Examples] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of each layer and how they were measured, as JSON has them."""
        return {
            "label": self.label,
            "command": self.command,
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "hidden": [list(pair) for pair in self.hidden],
            "result": self.result.to_json(),
        }


Several: TypeAlias = Measured | Iterable[Measured]


def as_several(measured: Several) -> list[Measured]:
    """Return one or several as a list.

    Raises:
        ValueError: if there are none, or two of one label.
        TypeError: for anything else.
    """
    several = [measured] if isinstance(measured, Measured) else list(measured)
    for each in several:
        if not isinstance(each, Measured):
            raise TypeError(f"expected report.Measured, got {type(each).__name__}: give report.Measured(label, result)")
    labels = [each.label for each in several]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"expected networks with a label of their own each, got {labels}")
    return several


def have_same_layers(several: Sequence[Measured]) -> bool:
    """Tell whether all networks have the layers of the first."""
    return all(each.result.layers == several[0].result.layers for each in several)
