"""Detect modules that were imported again: a reloaded function is another one of the same name."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from operator import attrgetter, is_not
from typing import Any, Protocol

from vinecore.protocol.serialization.importable_names import find_by_name
from vinecore.protocol.user_modules import find_own_modules

_spec = attrgetter("__spec__")


class NamedLibrary(Protocol):
    """A library, as far as its renewal uses it."""

    name: str


class ModuleWatcher:
    """Notices that one of the user's own modules has been imported again; cheap enough for each call.

    Each import, that of `importlib.reload` too, makes a spec of its own.
    """

    def __init__(self) -> None:
        self._loaded = 0
        self._names: list[str] = []
        self._modules: list[types.ModuleType] = []
        self._specs: list[Any] = []
        self.record_modules()

    def record_modules(self) -> None:
        """Record the own modules of this moment."""
        self._loaded = len(sys.modules)
        found = [
            (module.__name__, module, module.__spec__)
            for module in find_own_modules()
            if sys.modules.get(module.__name__) is module and hasattr(module, "__spec__")
        ]
        self._names, self._modules, self._specs = (
            (list(part) for part in zip(*found, strict=True)) if found else ([], [], [])
        )

    def has_changed(self) -> bool:
        """Return whether a known module was imported again; new modules are known from now on."""
        try:
            again = any(map(is_not, map(sys.modules.get, self._names), self._modules)) or any(
                map(is_not, map(_spec, self._modules), self._specs)
            )
        except AttributeError:
            again = True
        if not again and len(sys.modules) != self._loaded:
            self.record_modules()
        return again


class LibraryRenewals:
    """Has libraries installed again whose processes may have imported modules that are others now.

    Parameters
    ----------
    install
        Is called with each library.
    """

    def __init__(self, install: Callable[[Any], None]) -> None:
        self._install = install
        self._lock = threading.Lock()
        self._libraries: dict[str, NamedLibrary] = {}
        self._watch: ModuleWatcher | None = None  # once there is a library

    def add(self, library: NamedLibrary) -> None:
        """Watch the modules of a library that has been installed."""
        with self._lock:
            self._libraries[library.name] = library
            if self._watch is None:
                self._watch = ModuleWatcher()

    def remove(self, name: str) -> None:
        """Forget a library that has been removed."""
        with self._lock:
            self._libraries.pop(name, None)

    def check(self) -> None:
        """Renew all libraries if a module has been imported again since this was asked last."""
        if self._watch is None or not self._watch.has_changed():
            return
        with self._lock:
            if self._watch.has_changed():
                watch = ModuleWatcher()
                for library in list(self._libraries.values()):
                    self._install(library)
                self._watch = watch  # not before: what cannot be installed again is told at each call


def current(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give what a function of a module is called now; the function itself, if it is of the program itself or has no lasting name."""
    name, module = getattr(function, "__qualname__", ""), sys.modules.get(getattr(function, "__module__", ""))
    if module is None or module.__name__ == "__main__":
        return function
    found = find_by_name(module.__name__, name)
    return found if type(found) is type(function) else function
