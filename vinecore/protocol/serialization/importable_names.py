"""Functions and classes by their names: which of them another process can import."""

from __future__ import annotations

import sys
from typing import Any


def find_by_name(module: str, qualified_name: str) -> Any:
    """Return what a loaded module has under a name such as "Class.method"; None if there is nothing."""
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found


def is_pickled_by_value(module: str) -> bool:
    """Return whether a module, or a package that it is in, is registered to travel by value."""
    # they are registered with cloudpickle, so there is none where that is not loaded
    cloudpickle: Any = sys.modules.get("cloudpickle")
    if cloudpickle is None:
        return False
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(module == other or module.startswith(f"{other}.") for other in registered)


def is_found_by_name(value: Any) -> bool:
    """Return whether another process can import a function or class by its name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    return not is_pickled_by_value(module) and find_by_name(module, name) is value
