"""Read signatures as the source writes them: ``images: Images``, not the array type that the alias stands for."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LARGE_RESULT = 6
"""A dataclass with more fields than this and no default is a result: nobody builds it by hand."""


class Text:
    """Stand for an annotation or a default, printed as it is written."""

    def __init__(self, text: str) -> None:
        # Shapes of one name are written " n", with a space for the linter.
        text = re.sub(r"""(?<=['"]) (?=[\w*])""", "", text)
        # A name in quotes is one that is defined further down.
        self.text = re.sub(r"(?<![\w\[ ])'([A-Z]\w*)'", r"\1", text)

    def __repr__(self) -> str:
        return self.text


def of_function(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function with annotations and defaults as they stand in its source."""
    node = _parse(inspect.unwrap(function))
    assert isinstance(node, ast.FunctionDef)
    returns = Text(ast.unparse(node.returns)) if node.returns else inspect.Signature.empty
    return inspect.Signature(list(_parameters(node.args)), return_annotation=returns)


def of_class(cls: type) -> inspect.Signature | None:
    """Return how an object of a class is made, or None for what nobody makes by hand."""
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base) and not dataclasses.is_dataclass(base):
            signature = of_function(vars(base)["__init__"]) if base.__module__.startswith("stabjax") else None
            return signature and signature.replace(
                parameters=list(signature.parameters.values())[1:], return_annotation=inspect.Signature.empty
            )
    if not dataclasses.is_dataclass(cls):
        return None
    fields = [field for field in dataclasses.fields(cls) if field.init]
    written = of_fields(cls)
    optional = [field for field in fields if written[field.name][1] is not None]
    if len(fields) > LARGE_RESULT and not optional:
        return None
    kinds = {False: inspect.Parameter.POSITIONAL_OR_KEYWORD, True: inspect.Parameter.KEYWORD_ONLY}
    parameters = [
        inspect.Parameter(
            field.name,
            kinds[bool(field.kw_only)],
            annotation=Text(written[field.name][0]),
            default=inspect.Parameter.empty if field not in optional else Text(str(written[field.name][1])),
        )
        for field in fields
    ]
    return inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))


def of_fields(cls: type) -> dict[str, tuple[str, str | None]]:
    """Return annotation and default of the fields and properties of a dataclass or a named tuple; None without one."""
    written: dict[str, tuple[str, str | None]] = {}
    for base in reversed(cls.__mro__):
        if not (dataclasses.is_dataclass(base) or hasattr(base, "_fields")):
            continue
        node = _parse(base)
        assert isinstance(node, ast.ClassDef)
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                written[line.target.id] = ast.unparse(line.annotation), _default(line.value)
            elif isinstance(line, ast.FunctionDef) and line.returns and _is_property(line):
                written[line.name] = ast.unparse(line.returns), None
    return written


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)


def constants(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the value and the docstring of every constant at the top of the files of a room, as they are written."""
    found = {}
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    for file in files:
        body = ast.parse(file.read_text()).body
        for node, after in zip(body, [*body[1:], None]):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
                found[target.id] = ast.unparse(node.value), _docstring(after)
    return found


def _docstring(node: ast.stmt | None) -> str:
    """Return the text of a line that is nothing but a string."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def _parse(value: Any) -> ast.stmt:
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _parameters(arguments: ast.arguments) -> Iterator[inspect.Parameter]:
    def parameter(node: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
        return inspect.Parameter(
            node.arg,
            kind,
            annotation=Text(ast.unparse(node.annotation)) if node.annotation else inspect.Parameter.empty,
            default=Text(ast.unparse(default)) if default is not None else inspect.Parameter.empty,
        )

    positional = [*arguments.posonlyargs, *arguments.args]
    # Defaults belong to the last of the positional arguments.
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    for k, (node, default) in enumerate(zip(positional, [*missing, *arguments.defaults])):
        only = k < len(arguments.posonlyargs)
        kind = inspect.Parameter.POSITIONAL_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        yield parameter(node, kind, default)
    if arguments.vararg:
        yield parameter(arguments.vararg, inspect.Parameter.VAR_POSITIONAL)
    for node, default in zip(arguments.kwonlyargs, arguments.kw_defaults):
        yield parameter(node, inspect.Parameter.KEYWORD_ONLY, default)
    if arguments.kwarg:
        yield parameter(arguments.kwarg, inspect.Parameter.VAR_KEYWORD)


def _default(value: ast.expr | None) -> str | None:
    """Return the default of a field; that of ``field(default=1)`` is 1."""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] == "field"):
        return None if value is None else ast.unparse(value)
    for keyword in value.keywords:
        if keyword.arg in ("default", "default_factory"):
            return ast.unparse(keyword.value) + ("()" if keyword.arg == "default_factory" else "")
    return None
