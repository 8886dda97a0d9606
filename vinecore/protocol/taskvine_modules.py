"""The modules of TaskVine's Python packages, as names of this project's modules.

A finder in front of all others answers for `ndcctools` and `taskvine`. It is there only where a
program has asked for it: in the program itself (`vinecore.compat`), and in the processes of workers
that run functions of such a program. Each module that it makes is empty until one of its names is
used, because a worker may have none of the modules behind them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

ORIGIN = "vinecore.compat"
"""The origin of each of these modules, which have no file."""
EVERYTHING = "*"
"""Stands for all names that a module has beside those that are listed."""

_DASK = {
    "DaskVine": "daskvine",
    "DaskVineDag": "daskvine.dag",
    # the exceptions of functions are raised themselves; this is the base of all others
    "DaskVineExecutionError": "vinecore.errors:VineError",
    "daskvine_merge": "daskvine",
}

MODULES: dict[str, dict[str, str]] = {
    "ndcctools": {},
    "ndcctools.poncho": {},
    "ndcctools.poncho.package_create": {EVERYTHING: "vinecore.compat.package_create"},
    "ndcctools.taskvine": {EVERYTHING: "vinecore", **_DASK},
    "ndcctools.taskvine.compat": dict(_DASK),
    "ndcctools.taskvine.compat.dask_dag": dict(_DASK),
    "ndcctools.taskvine.compat.dask_executor": dict(_DASK),
    "ndcctools.taskvine.cvine": {EVERYTHING: "vinecore.constants"},
    "ndcctools.taskvine.dask_dag": dict(_DASK),
    "ndcctools.taskvine.dask_executor": {EVERYTHING: "vinecore", **_DASK},
    "ndcctools.taskvine.factory": {EVERYTHING: "vinecore"},
    "ndcctools.taskvine.file": {EVERYTHING: "vinecore"},
    "ndcctools.taskvine.futures": {EVERYTHING: "vinecore.futures"},
    "ndcctools.taskvine.manager": {EVERYTHING: "vinecore"},
    "ndcctools.taskvine.task": {EVERYTHING: "vinecore"},
    "ndcctools.work_queue": {EVERYTHING: "vinecore.compat.work_queue"},
    "ndcctools.taskvine.utils": {"load_variable_from_library": "vinecore.protocol.library_context"},
}
"""Each module, with the place of each of its names: a module of this project, or MODULE:NAME."""
SYNONYMS = {"taskvine": "ndcctools.taskvine", "work_queue": "ndcctools.work_queue"}
"""Top-level packages of older versions, and what they are called now."""


def _current_name(module: str) -> str:
    """Return the name of a module in `MODULES`."""
    top, dot, rest = module.partition(".")
    return f"{SYNONYMS.get(top, top)}{dot}{rest}"


class TaskVineModule(ModuleType):
    """A module of TaskVine's, whose names lead to this project."""

    def __getattr__(self, name: str) -> Any:
        module = _current_name(self.__name__)
        if f"{module}.{name}" in MODULES:
            return importlib.import_module(f"{self.__name__}.{name}")
        homes = MODULES[module]
        if name == "__all__":
            return _list_names(module)
        home = homes.get(name) or homes.get(EVERYTHING)
        if home is None or (name.startswith("__") and name != "__version__"):
            msg = f"module {self.__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        # an import that fails says which module a worker lacks
        place, _, attribute = home.partition(":")
        found = getattr(importlib.import_module(place), attribute or name)
        setattr(self, name, found)
        return found

    def __reduce__(self) -> Any:
        # pickle and cloudpickle take modules themselves only if their type is exactly that of modules
        return importlib.import_module, (self.__name__,)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_list_names(_current_name(self.__name__))})


def _list_names(module: str) -> list[str]:
    """Return the public names of a module, and its modules; those of dask only where dask is installed."""
    homes = MODULES[module]
    has_dask = importlib.util.find_spec("dask") is not None
    names = {name[len(module) + 1 :].partition(".")[0] for name in MODULES if name.startswith(f"{module}.")}
    names.update(name for name, home in homes.items() if has_dask or not home.startswith("daskvine"))
    if EVERYTHING in names:
        names.remove(EVERYTHING)
        names.update(getattr(importlib.import_module(homes[EVERYTHING]), "__all__", ()))
    return sorted(names)


class TaskVineFinder:
    """Finds and makes the modules of TaskVine's packages; one of the finders of ``sys.meta_path``."""

    def find_spec(self, name: str, path: Optional[Sequence[str]] = None, target: Any = None) -> Any:
        """Return the spec of one of these modules; None for any other."""
        del path, target
        module = _current_name(name)
        if module not in MODULES:
            return None
        is_package = any(other.startswith(f"{module}.") for other in MODULES)
        return ModuleSpec(name, self, origin=ORIGIN, is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module whose names are looked up when they are used."""
        return TaskVineModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is no code to run."""


def is_installed() -> bool:
    """Return whether imports of TaskVine's modules lead to this project in this process."""
    return any(isinstance(finder, TaskVineFinder) for finder in sys.meta_path)


def install_finder() -> None:
    """Have imports of TaskVine's modules lead to this project.

    Raises
    ------
    RuntimeError
        One of these modules has been imported from somewhere else.
    """
    if is_installed():
        return
    for name in (*SYNONYMS, *SYNONYMS.values()):
        module = sys.modules.get(name)
        if module is not None:
            msg = (
                f"{name} has been imported already, from {getattr(module, '__file__', 'elsewhere')}: "
                "call vinecore.compat.install() before, or start the program with vine_compat"
            )
            raise RuntimeError(msg)
    for name in [name for name in sys.modules if name == "ndcctools" or name.startswith("ndcctools.")]:
        del sys.modules[name]
    sys.meta_path.insert(0, TaskVineFinder())
