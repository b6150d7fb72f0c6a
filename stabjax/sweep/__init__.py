"""A function of a key and named parameters over a grid of strengths and seeds, as one compiled program."""

from stabjax.sweep._run import run

__all__ = ["run"]
