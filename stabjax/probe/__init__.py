"""The main job: run a network on clean, deformed and noisy images, and reduce on the fly, in one jitted pass.

`stability` compares a network with itself on perturbed images, layer by layer; `similarity` every layer with every
layer, of two networks or of one.
"""

from stabjax.probe._perturbed import perturbed
from stabjax.probe._similarity import similarity
from stabjax.probe._stability import stability

__all__ = ["perturbed", "similarity", "stability"]
