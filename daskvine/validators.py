"""Checks of single values: each returns the canonical form of a value or raises with the reason.

The caller adds which option it was, what it takes and what was given; a message here only says what these do
not, for instance which known choice is nearest. An empty message is fine.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from vinecore import validators
from vinecore.manager.files import File
from vinecore.manager.sandbox_names import check_sandbox_name
from vinecore.validators import folded, suggest_name

Check = Callable[[Any], Any]


def single_spelling(values: list[Any]) -> Any:
    """Return the value of an option that has one spelling."""
    (value,) = values
    return value


def merge_spellings(values: list[tuple[str, ...] | None]) -> tuple[str, ...]:
    """Return the entries of several tuples in order, each once."""
    return tuple(dict.fromkeys(entry for value in values for entry in value or ()))


def boolean(value: object) -> bool:
    """Take True or False."""
    # the latter are NumPy's
    if not isinstance(value, bool) and type(value).__name__ not in (
        "bool_",
        "bool",
    ):
        raise TypeError
    return bool(value)


def boolean_or_function(value: object) -> object:
    """Take True, False or a function."""
    return value if callable(value) else boolean(value)


def integer(*, least: int) -> Check:
    """Make a check that takes an integer of at least ``least``."""

    def check(value: Any) -> int:
        number = _integer(value)
        if number < least:
            raise ValueError
        return number

    return check


def number(value: Any) -> float:
    """Take a finite number."""
    return float(validators.priority("value", value))


def positive_or_none(value: Any) -> int | None:
    """Take an integer; below 1 is no limit."""
    number = _integer(value)
    return number if number >= 1 else None


def text(value: object) -> str:
    """Take a text that is not empty."""
    if not isinstance(value, str):
        raise TypeError
    if not value:
        raise ValueError
    return validators.text("text", value)


def function(value: object) -> Callable[..., Any]:
    """Take anything that can be called."""
    if not callable(value):
        raise TypeError
    return value


def functions(value: object) -> tuple[Callable[..., Any], ...]:
    """Take a list of functions."""
    return tuple(function(entry) for entry in _entries(value))


def modules(value: object) -> tuple[str, ...]:
    """Take a list of modules and module names; return their names, each once."""
    return tuple(dict.fromkeys(_module_name(entry) for entry in _entries(value)))


def describe_choices(choices: tuple[str, ...]) -> str:
    """Return the choices in words."""
    *first, last = [repr(choice) for choice in choices]
    return f"{', '.join(first)} or {last}"


def one_of(choices: tuple[str, ...]) -> Check:
    """Make a check that takes one of the choices, whatever the case and with ``-``, ``_`` or a space."""
    spellings = {folded(choice): choice for choice in choices}

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise TypeError
        if folded(value) not in spellings:
            raise ValueError(suggest_name(value, choices).removeprefix("; "))
        return spellings[folded(value)]

    return check


def resources(names: tuple[str, ...]) -> Check:
    """Make a check that takes a dict of non-negative numbers under some of the names."""

    def check(value: object) -> dict[str, float]:
        return {name: _resource(name, amount, names) for name, amount in _mapping(value).items()}

    return check


def env_vars(value: object) -> dict[str, str | Callable[..., str]]:
    """Take a dict of names and texts, or functions that return a text."""
    variables = _mapping(value)
    for name, setting in variables.items():
        if not isinstance(name, str) or not (isinstance(setting, str) or callable(setting)):
            msg = f"the value of {name!r} has a wrong type"
            raise TypeError(msg)
        validators.variable(name, setting if isinstance(setting, str) else "")
    return variables


def extra_files(value: object) -> dict[Any, str]:
    """Take a dict of declared files and the names they get in a sandbox, which stay inside of it."""
    files = _mapping(value)
    for file in files:
        if not isinstance(file, File):
            msg = f"{file!r} is no File; declare it first, for instance with declare_file"
            raise TypeError(msg)
    return {file: check_sandbox_name(name) for file, name in files.items()}


def environment(value: object) -> Any:
    """Take a declared file, or a path."""
    if isinstance(value, File):
        return value
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return text(os.fspath(value))


def _integer(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError from None


def _entries(value: object) -> list[Any]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError
    return list(value)


def _mapping(value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return dict(value)


def _module_name(entry: object) -> str:
    name = entry.__name__ if isinstance(entry, ModuleType) else entry
    if not isinstance(name, str):
        msg = f"{entry!r} is neither a module nor a name"
        raise TypeError(msg)
    if not all(part.isidentifier() for part in name.split(".")):
        msg = f"{name!r} is not the name of a module"
        raise ValueError(msg)
    return name


def _resource(name: object, amount: object, names: tuple[str, ...]) -> float:
    if name not in names:
        hint = suggest_name(name, names) if isinstance(name, str) else ""
        msg = f"{name!r} is not known{hint}"
        raise ValueError(msg)
    check: Callable[..., Any] = _AMOUNTS.get(str(name), validators.number)
    return check(str(name), amount)  # type: ignore[no-any-return]


_AMOUNTS: dict[str, Callable[..., Any]] = {
    "memory": validators.megabytes,
    "disk": validators.megabytes,
    "slots": validators.slots,
}
