"""Every public name has a numpydoc docstring that agrees with its signature and its body.

Public are the names that `daskvine` and `vinecore` export, the classes of what their methods return, and
the public methods of all of these.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

import pytest

import daskvine
import vinecore
from vinecore import validators

PACKAGES = (daskvine, vinecore)
# numpydoc's order
SECTIONS = (
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "See Also",
    "Notes",
    "References",
    "Examples",
)
# Their functions raise errors about values that a user gives.
CHECKING_MODULES = (
    "vinecore.cache_level",
    "vinecore.manager.files",
    "vinecore.manager.libraries",
    "vinecore.manager.sandbox_names",
    "vinecore.manager.startup",
    "vinecore.resources.categories",
    "vinecore.validators",
)
HEADING = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)


def is_own(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith(("daskvine", "vinecore"))


@functools.cache
def find_classes() -> dict[str, list[type]]:
    """Return all classes of both packages by name, for annotations that are only text at run time."""
    found: dict[str, list[type]] = {}
    for package in PACKAGES:
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if info.name.startswith(("daskvine.demo", "daskvine.remote")) or info.name.endswith("__main__"):
                continue
            module = importlib.import_module(info.name)
            for name, value in vars(module).items():
                if inspect.isclass(value) and value.__module__ == module.__name__:
                    found.setdefault(name, []).append(value)
    return found


def find_methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class has from our packages, with their names."""
    for name in sorted(dir(kind)):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        value = vars(owner).get(name)
        if name.startswith("_") or not is_own(owner):
            continue
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        if inspect.isfunction(value) or isinstance(value, (property, functools.cached_property)):
            yield f"{owner.__qualname__}.{name}", value


def unwrap(member: Any) -> Any:
    """Return the function of a property or of a decorated function, or the class itself."""
    if isinstance(member, (property, functools.cached_property)):
        member = member.fget if isinstance(member, property) else member.func
    return inspect.unwrap(member)


def find_returned(function: Any) -> Iterator[type]:
    """Yield the classes of our packages that a return annotation names."""
    for name in re.findall(r"\w+", str(function.__annotations__.get("return", ""))):
        value = function.__globals__.get(name)
        yield from [value] if inspect.isclass(value) else find_classes().get(name, [])


def find_public() -> dict[str, Any]:
    """Return everything that needs a docstring, by its qualified name."""
    found: dict[str, Any] = {}
    waiting = [getattr(package, name) for package in PACKAGES for name in package.__all__]
    while waiting:
        value = waiting.pop()
        if not is_own(value) or value.__qualname__ in found:
            continue
        found[value.__qualname__] = value
        if inspect.isclass(value):
            for name, member in find_methods(value):
                found[name] = member
                waiting += find_returned(unwrap(member))
        else:
            waiting += find_returned(unwrap(value))
    return found


PUBLIC = find_public()


def split_sections(text: str) -> dict[str, str]:
    """Return the sections of a docstring in their order; the text before the first one has the name ""."""
    parts = HEADING.split(text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def parse_entries(section: str) -> dict[str, str]:
    """Return what a section says of each name: the text after the colon, or the name's whole line."""
    entries = {}
    for line in section.splitlines():
        if line and not line[0].isspace():
            names, _colon, kind = line.partition(" : ")
            entries.update({name.strip().lstrip("*"): kind.strip() for name in names.split(",")})
    return entries


def find_raised(function: Any, seen: frozenset[Any] = frozenset()) -> set[str]:
    """Return the names of the exceptions that a function raises itself or through functions that check values."""
    if function in seen:
        return set()
    raised = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            raised.add(ast.unparse(node.exc.func).rpartition(".")[2])
        elif isinstance(node, ast.Call):
            called = resolve(node.func, function)
            if called is validators.refuse:
                raised.add("TypeError" if "TypeError" in ast.unparse(node) else "ValueError")
            elif inspect.isfunction(called) and called.__module__ in CHECKING_MODULES:
                raised |= find_raised(called, seen | {function})
    # A function that makes an error is not one.
    return {name for name in raised if name[0].isupper()}


def resolve(node: ast.expr, function: Any) -> Any:
    """Return the function of our packages that is called by a global name, or as an attribute of a module."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return getattr(function.__globals__.get(node.value.id), node.attr, None)
    return None


def find_parameters(function: Any) -> list[str]:
    """Return the names of the parameters that a user gives."""
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def check_parameters(value: Any, entries: dict[str, str]) -> Iterator[str]:
    constructor = value.__init__ if inspect.isclass(value) else value
    expected = find_parameters(constructor) if inspect.isfunction(constructor) and is_own(constructor) else []
    for name in expected:
        if not entries.get(name):
            yield f"the parameter {name} is not described, or has no type"
    for name in entries.keys() - set(expected):
        yield f"there is no parameter {name}"


def check_results(function: Any, sections: dict[str, str]) -> Iterator[str]:
    returned = str(function.__annotations__["return"])
    if inspect.isgeneratorfunction(function):
        if "Yields" not in sections:
            yield "it has no section Yields"
    elif (returned not in ("None", "NoReturn")) != ("Returns" in sections):
        yield f"it returns {returned}, and the section Returns disagrees"


def check_errors(value: Any, described: Collection[str]) -> Iterator[str]:
    function = vars(value).get("__init__") if inspect.isclass(value) else value
    if inspect.isfunction(function):
        for name in sorted(find_raised(inspect.unwrap(function)) - set(described)):
            yield f"it does not say when it raises {name}"


def find_faults(value: Any) -> list[str]:
    """Return the faults of a docstring: sections that are missing, in disorder, or do not agree with the code."""
    sections = split_sections(inspect.cleandoc(value.__doc__ or ""))
    summary, names = sections.pop("").strip(), list(sections)
    faults = [] if summary else ["it has no summary"]
    if names != [name for name in SECTIONS if name in names]:
        faults.append(f"the order of its sections is not numpydoc's: {', '.join(names)}")
    # The fields of a record are documented where they are defined.
    if not hasattr(value, "_fields"):
        faults += check_parameters(value, parse_entries(sections.get("Parameters", "")))
        faults += check_errors(value, parse_entries(sections.get("Raises", "")))
    if inspect.isfunction(value):
        faults += check_results(unwrap(value), sections)
    return faults


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstring_is_complete(name: str) -> None:
    assert find_faults(PUBLIC[name]) == []
