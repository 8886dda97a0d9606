"""Which modules belong to the environment, and which to the user's own program.

A module of the environment is part of the interpreter, or is below a folder that packages are installed into. It is imported once, before a
process forks, and is taken to be what it is until the environment changes. All others are the user's own: they may open files, start threads or
draw random numbers when they are imported, and they are edited while a program runs. So each process imports them for itself, and they are known by
their text. Packages that are installed in editable mode are the user's own, because their files are elsewhere.

Nothing here imports a module to decide.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from operator import is_
from types import ModuleType
from typing import Any, NamedTuple, Optional

from vinecore.protocol import taskvine_modules

INSTALLED = ("site-packages", "dist-packages")
"""Names of the folders that packages are installed into."""
ENGINE = frozenset({"daskvine", "vinecore", "vineworker"})
"""This project, wherever it is: never the user's."""
MAX_CACHED_DIGESTS = 10_000
MIN_FILE_AGE_NS = 2_000_000_000
"""A file that has been changed so lately may be changed again without another time of change."""

_loads: dict[
    str, tuple[Any, int]
] = {}  # own module -> the spec of its last import, and how often that was another one
_loads_lock = threading.Lock()
_digests: dict[str, tuple[tuple[int, ...], str]] = {}  # file -> its state when it was read, and its digest


@functools.lru_cache(maxsize=1)
def _interpreter_folders() -> tuple[str, ...]:
    """Where the standard library of this interpreter is, each folder as it is spelled and as it is."""
    # Without `sysconfig`: it imports a module for the first answer, and that import asks here again.
    major, minor = sys.version_info[:2]
    prefixes = (sys.exec_prefix, sys.base_exec_prefix)
    found = [os.path.join(prefix, sys.platlibdir, f"python{major}.{minor}") for prefix in prefixes]
    found.append(os.path.dirname(os.__file__))
    found += [os.path.join(os.path.dirname(folder), f"python{major}{minor}.zip") for folder in found]
    found += [os.path.realpath(folder) for folder in found]
    return tuple({folder + os.sep for folder in found})


def is_package_file(path: str) -> bool:
    """Whether a file, as it is spelled, is part of the interpreter or of an installed package."""
    return _is_package_path(path if os.path.isabs(path) else os.path.abspath(path))


# each `get` asks this of all modules of the program
@functools.lru_cache(maxsize=2 * MAX_CACHED_DIGESTS)
def _is_package_path(path: str) -> bool:
    path = os.path.normpath(path)
    return path.startswith(_interpreter_folders()) or not set(INSTALLED).isdisjoint(path.split(os.sep))


def is_package_module(name: str) -> bool:
    """Whether a module, which need not have been imported, belongs to the environment of this interpreter.

    What it is part of decides: a package that is spread over several folders belongs to the environment if all of them do.
    """
    top = name.partition(".")[0]
    if top in ENGINE or top == "__main__":
        return top != "__main__"
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # the latter for `__main__`, and for modules that were made by hand
        return False
    return spec is not None and _is_package_spec(spec)


def _is_package_spec(spec: Any) -> bool:
    if spec.origin in ("built-in", "frozen", taskvine_modules.ORIGIN):
        return True
    places = [spec.origin] if spec.has_location else [*(spec.submodule_search_locations or ())]
    return bool(places) and all(is_package_file(place) for place in places)


def source_path(module: ModuleType) -> Optional[str]:
    """Return the file that a module was imported from; None if it has none."""
    file = getattr(module, "__file__", None)
    return os.path.abspath(file) if isinstance(file, str) else None


def is_own_module(module: ModuleType) -> bool:
    """Whether a module that has been imported is the user's own: it has a file, which no package has installed."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or is_package_file(file):
        return False
    name = getattr(module, "__name__", "__main__")
    return isinstance(name, str) and name != "__main__" and name.partition(".")[0] not in ENGINE


def find_own_modules(modules: Optional[Iterable[Any]] = None) -> Iterator[ModuleType]:
    """Generate the user's own modules among these, or among all imported ones."""
    for module in _find_candidates() if modules is None else modules:
        if isinstance(module, ModuleType) and is_own_module(module):
            yield module


class _ModuleScan(NamedTuple):
    modules: list[Any]
    specs: list[Any]
    others: list[Any]


def _find_candidates() -> list[Any]:
    """Return the imported modules except those that certainly are not the user's own.

    The list is built anew after each import.

    A module that is imported again, from another place perhaps, has another spec.
    """
    global _last_scan  # noqa: PLW0603 - one process has one table of modules
    known, found = _last_scan, list(sys.modules.values())
    specs = [getattr(module, "__spec__", None) for module in found]
    if len(found) != len(known.modules) or not (
        all(map(is_, found, known.modules)) and all(map(is_, specs, known.specs))
    ):
        _last_scan = known = _ModuleScan(
            found, specs, [module for module in found if not _is_of_others(module)]
        )
    return known.others


def _is_of_others(module: Any) -> bool:
    if not isinstance(module, ModuleType):
        return False
    if isinstance(getattr(module, "__file__", None), str):
        return not is_own_module(module)
    return getattr(getattr(module, "__spec__", None), "origin", None) in ("built-in", "frozen")


_last_scan = _ModuleScan([], [], [])


def digest_source_file(path: str) -> str:
    """Digest of what is in a file now, which is read again only if the file has changed; "" if it cannot be read."""
    try:
        found = os.stat(path)
        state = (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)
        known = _digests.get(path)
        if known is not None and known[0] == state:
            return known[1]
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""
    if time.time_ns() - max(state[:2]) > MIN_FILE_AGE_NS:
        if len(_digests) >= MAX_CACHED_DIGESTS:
            _digests.clear()
        _digests[path] = state, digest
    return digest


def digest_own_modules(modules: Optional[Iterable[Any]] = None) -> str:
    """One digest of the texts of the user's own modules, as their files are now; "" if there are none."""
    texts = {
        f"{module.__name__}\0{digest_source_file(source_path(module) or '')}"
        for module in find_own_modules(modules)
    }
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest() if texts else ""


def count_loads(modules: Optional[Iterable[Any]] = None) -> list[tuple[str, int]]:
    """List the user's own ones among these modules, or among all that this program has imported, each with how often it was imported again since this was asked first.

    Each import, that of `importlib.reload` too, makes a spec of its own. A module that is imported again may have read other files meanwhile.
    """
    with _loads_lock:
        for module in find_own_modules(modules):
            spec, (known, count) = module.__spec__, _loads.get(module.__name__, (None, -1))
            if spec is not known or count < 0:
                _loads[module.__name__] = spec, count + 1
        return sorted((name, count) for name, (_spec, count) in _loads.items())
