"""The main job: run a network on clean, deformed and noisy images, and reduce on the fly, in one jitted pass."""

from stabjax.probe._perturbed import perturbed
from stabjax.probe._stability import stability

__all__ = ["perturbed", "stability"]
