"""What belongs beside every number: the software that computed it, the device, and the command that does it again."""

import importlib.metadata
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from stabjax._version import version


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of stabjax and of these packages, by name; ``"python"`` is that of the language."""
    known = {"stabjax": version, "python": platform.python_version()}
    return {name: known.get(name) or importlib.metadata.version(name) for name in ("stabjax", *packages)}


def versions() -> dict[str, str]:
    """Versions of stabjax and what it stands on, and the device: what belongs beside every number."""
    device = jax.devices()[0]
    found = versions_of("jax", "flax", "optax", "numpy")
    return {**found, "device": f"{device.platform} ({device.device_kind}, {jax.device_count()})"}


def command(module: str, config: Any) -> str:
    """Write the command line that makes a result again: the options that differ from their defaults.

    Args:
        module: Of the script, ``experiments.layerwise``.
        config: Its settings, a dataclass with a default for each. Folders are left out.
    """
    words = ["python", "-m", module]
    for name, value in asdict(config).items():
        if value != getattr(type(config)(), name) and not isinstance(value, Path):
            given = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}"] if value is True else [f"--{name}", *map(str, given)]
    return " ".join(words)
