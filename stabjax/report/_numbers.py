"""Numbers as readers see them, and as JavaScript sorts them."""

import numpy as np

UNDEFINED = "–"
"""Stands where a number is not finite."""


def show(value: float, *, digits: int = 3) -> str:
    """Return a number with so many digits, a dash where it is not finite."""
    if not np.isfinite(value):
        return UNDEFINED
    text = f"{value:.{digits}g}"
    # "1.2e-05" reads as a product.
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}·10{_raised(int(exponent))}" if e else text


def show_interval(low: float, high: float) -> str:
    """Return both ends of an interval, or nothing where one is not finite."""
    return f"[{show(low, digits=2)}, {show(high, digits=2)}]" if np.isfinite([low, high]).all() else ""


def sort_value(value: float) -> str:
    """Return a number for the script of the page, which puts what is empty last."""
    return f"{value:.9g}" if np.isfinite(value) else ""


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
