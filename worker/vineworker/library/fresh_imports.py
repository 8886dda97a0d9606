"""Import the current content of files, without compiling it again in each process.

Python stores compiled code with the source's size and its modification time in whole seconds, and
uses it as long as both are the same. It does not notice an edit of some characters within the same
second. Here, compiled code is used only if it was written some time after its source; else the
source is compiled again. Modules of the environment are not edited while programs run, so they are
left out.

Each process imports the user's own modules for itself. A process of a Python task reports which of
their files it had to load, and its fork server compiles them, without running them. Later forks use
that code as long as size, times and inode of the file are the same.
"""

from __future__ import annotations

import importlib.machinery
import os
import time
import warnings
from collections.abc import Iterable
from types import CodeType, ModuleType
from typing import Any, Callable, Optional

from vinecore.protocol.user_modules import is_package_file
from vineworker.library import use_recorder

MIN_AGE_NS = 2_000_000_000
"""Compiled code is used if it is younger than its source by a second and the time to compile."""
MAX_COMPILED = 1000
MAX_REPORTED_SOURCES = 20
"""Files that one task reports; the next task reports others."""

# source -> its state, and what it is compiled to
_compiled: dict[str, tuple[tuple[int, ...], CodeType]] = {}
# sources that were not there
_loaded: dict[str, None] = {}
# own modules whose import has begun, each by the one before it
_imports: list[tuple[float, bytes]] = []
_report: Optional[Callable[[float, bytes], None]] = None


def report_imports(report: Callable[[float, bytes], None]) -> None:
    """Have a function called with the start of an import and the own module; with 0 and b"" at the end."""
    global _report  # noqa: PLW0603 - a process has one loader
    _report = report


def wrap_loader() -> None:
    """Check compiled code in all imports of this process, and of those forked from it."""
    loader: Any = importlib.machinery.SourceFileLoader
    usual_data, usual_code, usual_exec = loader.get_data, loader.get_code, loader.exec_module

    def get_data(self: Any, path: str) -> bytes:
        if path.endswith(".pyc") and is_possibly_stale(path, self.path):
            # as if there were none
            raise OSError(path)
        data: bytes = usual_data(self, path)
        return data

    def get_code(self: Any, name: str) -> Any:
        # what a call reads while it is recorded has to be seen; a class derived from the loader may
        # give other code
        if type(self) is not loader or use_recorder.is_recording() or is_package_file(self.path):
            return usual_code(self, name)
        known = _compiled.get(self.path)
        if known is not None and known[0] == _stamp_file(self.path):
            return known[1]
        code = usual_code(self, name)
        _loaded[self.path] = None
        return code

    def exec_module(self: Any, module: ModuleType) -> None:
        if _report is None or is_package_file(self.path):
            return usual_exec(self, module)  # type: ignore[no-any-return]
        _imports.append((time.monotonic(), os.fsencode(f"{module.__name__} ({self.path})")))
        _report(*_imports[-1])
        try:
            return usual_exec(self, module)  # type: ignore[no-any-return]
        finally:
            _imports.pop()
            _report(*(_imports[-1] if _imports else (0.0, b"")))

    # Python takes frames of the import system out of tracebacks, which it knows by their file
    code = exec_module.__code__
    exec_module.__code__ = code.replace(co_filename=usual_exec.__code__.co_filename)
    loader.get_data, loader.get_code, loader.exec_module = get_data, get_code, exec_module


def is_possibly_stale(compiled: str, source: str) -> bool:
    """Return whether compiled code may be that of an earlier content of its source."""
    if is_package_file(source):
        return False
    try:
        return os.stat(compiled).st_mtime_ns < os.stat(source).st_mtime_ns + MIN_AGE_NS
    except OSError:
        return True


def list_loaded_sources() -> list[str]:
    """Return files of the user's modules that this process, or its parent, had to load."""
    return list(_loaded)[:MAX_REPORTED_SOURCES]


def compile_sources(paths: Iterable[str]) -> bool:
    """Compile files for processes that are forked later; return whether any was new."""
    return sum(map(_compile_source, paths)) > 0


def _compile_source(path: str) -> bool:
    try:
        state = _stamp_file(path)
        known = _compiled.get(path)
        if known is not None and known[0] == state:
            return False
        # another edit may leave it with the same state
        if time.time_ns() - max(state[:2]) < MIN_AGE_NS:
            return False
        with open(path, "rb") as file:
            text = file.read()
        with warnings.catch_warnings():
            # the process that imports the module shows them
            warnings.simplefilter("error")
            code = importlib.machinery.SourceFileLoader("", path).source_to_code(text, path)
        if _stamp_file(path) != state:
            return False
    except Exception:  # noqa: BLE001 - the import in a task reports it
        return False
    if len(_compiled) >= MAX_COMPILED:
        _compiled.clear()
    _compiled[path] = state, code
    return True


def _stamp_file(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
