"""``module:function``: how a network comes in by name."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from flax import nnx

from stabjax.cli._refusal import Refusal, refusing

_EXTRAS = {
    "torch": "pip install 'stabjax[pytorch]'",
    "torchax": "pip install 'stabjax[pytorch]'",
    "torchvision": "pip install 'stabjax[pytorch]' torchvision",
    "timm": "pip install 'stabjax[pytorch]' timm",
    "transformers": "pip install 'stabjax[pytorch]' transformers",
    "keras": "pip install 'stabjax[keras]'",
    "haiku": "pip install 'stabjax[haiku]'",
}
"""How to install what networks come from."""
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def build(target: str, arguments: Sequence[str], seed: int) -> Any:
    """Import ``module:function`` or ``path/file.py:function``, and call it.

    A parameter ``rngs`` gets the random numbers of NNX, a parameter ``key`` a key of JAX; both, and the generators of
    PyTorch and Keras, start from the seed. What is no function and no class is taken for the network itself.

    Args:
        target: the place and the name, which may have dots (``module:Class.method``).
        arguments: ``name=value`` each, see `parse`.
        seed: of all that is drawn.

    Raises:
        Refusal: if there is no such module or function, or it cannot be called with these arguments.
    """
    place, colon, name = target.rpartition(":")
    if not (place and colon and name):
        raise Refusal(
            f"expected a network as module:function, got {target!r}: write, for example, torchvision.models:resnet18 "
            "or path/file.py:build"
        )
    function = _find(_import(place), place, name)
    given = parse(arguments)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        if given:
            raise Refusal(f"expected no --arguments for {target}, which is a network and no function: leave them out")
        return function
    given = _complete(function, target, given, seed)
    _seed(seed)
    with refusing(f"{target} raised an error", remedy="Run again with --traceback to see where"):
        model = function(**given)
    if model is None:
        raise Refusal(f"expected a network from {target}, got None: let the function return its network")
    return model


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return ``{"classes": 10}`` of ``["classes=10"]``: numbers, lists, True and None as Python writes them, else text.

    Raises:
        Refusal: for what has no name.
    """
    found = {}
    for word in arguments:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise Refusal(f"expected arguments as name=value, got {word!r}: write, for example, num_classes=10")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = _WORDS.get(text.lower(), text)
    return found


def _import(place: str) -> ModuleType:
    """Import a module by its name, from the current folder too, or by the path of its file."""
    if place.endswith(".py"):
        return _import_file(Path(place))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if not (place == missing or place.startswith(f"{missing}.")):
            raise _lacks(place, missing) from error
        remedy = _EXTRAS.get(missing.partition(".")[0], "install it, or run the command in the folder that it lies in")
        raise Refusal(
            f"expected a module that can be imported, got {place!r}, and there is no module {missing!r}: {remedy}"
        ) from error
    except Exception as error:
        with refusing(f"the module {place!r} cannot be imported", remedy="Run again with --traceback to see where"):
            raise error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Refusal(f"expected a Python file, got {str(path)!r}, which is not there: check the path")
    # A name of its own: the file may be called as a library is.
    name = f"stabjax_measured_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    # What lies beside the file is found as when the file is run.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise _lacks(str(path), error.name or "") from error
    except Exception as error:
        with refusing(f"the file {str(path)!r} cannot be run", remedy="Run again with --traceback to see where"):
            raise error
    return module


def _lacks(place: str, missing: str) -> Refusal:
    remedy = _EXTRAS.get(missing.partition(".")[0], f"install what has {missing!r}")
    return Refusal(f"{place!r} needs the module {missing!r}, which is not installed: {remedy}")


def _find(module: ModuleType, place: str, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [
                known for known in dir(value) if not known.startswith("_") and callable(getattr(value, known, None))
            ]
            near = difflib.get_close_matches(part, names, n=3) or names[:5]
            owner = place if value is module else f"{value.__name__} in {place}"
            raise Refusal(
                f"expected a function of {owner}, got {part!r}, which it does not have: "
                f"{'perhaps ' + ' or '.join(near) if near else 'it has no functions'}"
            )
        value = getattr(value, part)
    return value


def _complete(function: Callable[..., Any], target: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return the arguments of a call, with the random numbers that it needs."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a compiled function
        return dict(given)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    named = {
        name: each for name, each in parameters.items() if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    unknown = [name for name in given if name not in named and not takes_any]
    if unknown:
        raise Refusal(
            f"expected arguments of {target}, which has {', '.join(named) or 'none'}, got {', '.join(unknown)}: leave "
            "them out, or check their names"
        )
    needed = [name for name, each in parameters.items() if _is_needed(each) and name not in given]
    makers = {"rngs": nnx.Rngs, "key": jax.random.key}
    drawn = {name: makers[name](seed) for name in needed if name in makers}
    missing = [name for name in needed if name not in drawn]
    if missing:
        example = " ".join(f"{name}=..." for name in missing)
        raise Refusal(
            f"expected a function that needs no arguments, got {target}, which needs {', '.join(missing)}: give "
            f"--arguments {example}, or name a function that makes the network and returns it"
        )
    return {**given, **drawn}


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _seed(seed: int) -> None:
    """Start the generators of the frameworks that are loaded."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(seed)
