"""Variables that a library's context function has made."""

from __future__ import annotations

from typing import Any

context_variables: dict[str, Any] = {}
MISSING = object()
registered: dict[str, dict[Any, Any]] = {}
"""What was in registries of packages before something of the program's was put there, by kind; `MISSING` where there was nothing."""
registered_ns = [0]
"""When the program had registered that, by its clock."""


def load_variable_from_library(name: str) -> Any:
    """Return a variable that the context function of this library has made.

    It works inside of functions of a library only.

    Parameters
    ----------
    name : str
        The name of the variable.

    Returns
    -------
    object
        The variable, shared by all calls of the process.

    Raises
    ------
    KeyError
        The context has no such variable.
    """
    try:
        return context_variables[name]
    except KeyError:
        msg = f"the library's context has no variable {name!r}; it has: {', '.join(sorted(context_variables)) or 'none'}"
        raise KeyError(msg) from None
