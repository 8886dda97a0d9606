"""Something to be done as soon as a module has been imported, by whomever: now, if it is there already."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any, Callable


def when_imported(name: str, then: Callable[[Any], Any]) -> None:
    """Call ``then`` with a module once that has been imported; what was to be done with it before under the same name is replaced."""
    if name in sys.modules:
        then(importlib.import_module(name))  # which waits where another thread is at it
        return
    for finder in sys.meta_path:
        if isinstance(finder, Watch) and finder.name == name:
            finder.then = then
            return
    sys.meta_path.insert(0, Watch(name, then))


class Watch:
    """Waits for a module to be imported; one of the finders of ``sys.meta_path``."""

    def __init__(self, name: str, then: Callable[[Any], Any]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """Leave the import to the others, and have it end with what is to be done."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_go_on(module: types.ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_and_go_on  # type: ignore[method-assign]
        return spec
