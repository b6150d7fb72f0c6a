"""Random displacement fields, in pixels.

A field is ``(ndim, *spatial)``; component ``i`` moves along array axis ``i``, so ``field[0]`` is dy and ``field[1]`` is
dx. An image is pulled back along it, ``(tau x)(s) = x(s - tau(s))``. On the unit box, ``u`` running from 0 at the first
pixel of an axis to 1 at its last::

    tau_a(u) = n sqrt(T) sum_i C^a_i prod_k sin(i_k pi u_k)        C^a_i ~ N(0, 1/|i|^2) where |i|^2 < (c + 1/2)^2

with ``n`` the geometric mean of the sides, so that a field is isotropic in pixels; the border does not move (Petrini,
Favero, Geiger, Wyart 2021, eq. 2). One to three axes. ``T`` is the temperature and ``c`` the cutoff.
"""

from stabjax.fields._affine import affine
from stabjax.fields._calibration import Convention, displacement, temperature, temperature_range
from stabjax.fields._flow import Inverse, exponential, invert
from stabjax.fields._jacobian import FoldProbability, fold_probability, jacobian_determinant
from stabjax.fields._modes import coefficients, sample, synthesize

__all__ = [
    "Convention",
    "FoldProbability",
    "Inverse",
    "affine",
    "coefficients",
    "displacement",
    "exponential",
    "fold_probability",
    "invert",
    "jacobian_determinant",
    "sample",
    "synthesize",
    "temperature",
    "temperature_range",
]
