"""Random perturbations of one image: ``(key, image) -> image`` of the same shape and dtype.

Every perturbation is a pytree whose strengths are leaves: a sweep over strengths compiles once, and strengths may be
traced, stacked under `jax.vmap` or differentiated. Zero strength is the identity, and the same key gives the same
output. Batches are `jax.vmap` over keys and images. Narrow dtypes are computed in float32 and kept.
"""

from stabjax.perturb._additive import GaussianNoise, SphericalNoise, Toward, noise_like, toward
from stabjax.perturb._deform import Affine, Diffeomorphism, RandomDiffeomorphism, Translation
from stabjax.perturb._pytree import with_spatial

__all__ = [
    "Affine",
    "Diffeomorphism",
    "GaussianNoise",
    "RandomDiffeomorphism",
    "SphericalNoise",
    "Toward",
    "Translation",
    "noise_like",
    "toward",
    "with_spatial",
]
