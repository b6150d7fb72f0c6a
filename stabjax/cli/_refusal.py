"""`Refusal`: what a person has to change, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 700
"""Letters of a message; what comes behind is cut off."""


class Refusal(Exception):
    """The command cannot go on: what was expected, what came, what to do."""


@contextmanager
def refusing(what: str = "", *, remedy: str = "", kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn an error of the block into a `Refusal` of one line.

    Args:
        what: said in front of the error.
        remedy: what to do, said behind it.
        kinds: the errors that are turned; others pass.
    """
    try:
        yield
    except Refusal:
        raise
    except kinds as error:
        raise Refusal(
            ": ".join(filter(None, (what, in_one_line(error)))) + (f". {remedy}" if remedy else "")
        ) from error


def in_one_line(error: Exception) -> str:
    """Return the message of an error in one line, with its type where the message alone says little."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, ValueError | TypeError | FileNotFoundError | ImportError) and text:
        shown = text
    else:
        shown = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."
