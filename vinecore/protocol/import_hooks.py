"""Something to be done as soon as a module has been imported, by whomever: now, if it is there already."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, Callable


def call_when_imported(name: str, then: Callable[[Any], Any]) -> None:
    """Call ``then`` with a module once that has been imported; what was to be done with it before under the same name is replaced."""
    if name in sys.modules:
        then(importlib.import_module(name))  # which waits where another thread is at it
        return
    for finder in sys.meta_path:
        if isinstance(finder, ImportWatcher) and finder.name == name:
            finder.on_import = then
            return
    sys.meta_path.insert(0, ImportWatcher(name, then))


class ImportWatcher:
    """Waits for a module to be imported; one of the finders of ``sys.meta_path``."""

    def __init__(self, name: str, then: Callable[[Any], Any]) -> None:
        self.name, self.on_import = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Leave the import to the others, and have it end with what is to be done.

        Who only asks whether the module could be imported, as `importlib.util.find_spec` does, gets the same answer, and the wait goes on.
        """
        if name != self.name:
            return None
        for finder in sys.meta_path[:]:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: Any) -> None:
        execute = getattr(spec.loader, "exec_module", None)
        if execute is None:
            return

        def execute_and_go_on(module: types.ModuleType) -> None:
            execute(module)
            # one loader may serve several modules
            if module.__name__ == self.name and self in sys.meta_path:
                sys.meta_path.remove(self)
                self.on_import(module)

        spec.loader.exec_module = execute_and_go_on
