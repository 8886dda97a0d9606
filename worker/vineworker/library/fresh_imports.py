"""Imports of what is in a file now, also where it was edited twice within a second, without compiling it again in each process.

Python keeps what it has compiled beside the source, with the time of the source's change in whole seconds and its size, and believes it as long as both
are the same. An edit of a few characters within that second goes unnoticed. Here a compiled file is believed only if it was written some time after the
source was; else the source is compiled again, and the result kept in its place. Modules of the environment are not edited while programs run, so they
are left alone.

The user's own modules are imported by each process for itself. What has a process of its own tells which of their files it had to load, and the process that it was forked from
compiles them, without running anything of them. Later forks take that as long as the file is as it was: size, times and number.
"""

from __future__ import annotations

import importlib.machinery
import os
import time
import warnings
from collections.abc import Iterable
from types import CodeType
from typing import Any

from vinecore.protocol.user_modules import is_package_file
from vineworker.library import use_recorder

MIN_AGE_NS = 2_000_000_000
"""By so much a compiled file is younger than its source, if it is to be believed: a second, and as long as it may take to compile it."""
MAX_COMPILED = 1000
MAX_REPORTED_SOURCES = 20
"""Files that one task tells of; the next one tells of others."""

_compiled: dict[str, tuple[tuple[int, ...], CodeType]] = {}  # source -> its state, and what it is compiled to
_loaded: dict[str, None] = {}  # sources that were not there


def wrap_loader() -> None:
    """Have all imports of this process, and of those that are forked from it, look twice."""
    loader: Any = importlib.machinery.SourceFileLoader
    usual_data, usual_code = loader.get_data, loader.get_code

    def get_data(self: Any, path: str) -> bytes:
        if path.endswith(".pyc") and is_possibly_stale(path, self.path):
            raise OSError(path)  # as if there were none
        data: bytes = usual_data(self, path)
        return data

    def get_code(self: Any, name: str) -> Any:
        # what a call reads while it is recorded has to be seen; a class derived from the loader may give other code
        if type(self) is not loader or use_recorder.is_on() or is_package_file(self.path):
            return usual_code(self, name)
        known = _compiled.get(self.path)
        if known is not None and known[0] == _stamp_file(self.path):
            return known[1]
        code = usual_code(self, name)
        _loaded[self.path] = None
        return code

    loader.get_data, loader.get_code = get_data, get_code


def is_possibly_stale(compiled: str, source: str) -> bool:
    """Whether a compiled file may have been made from a text that its source had before."""
    if is_package_file(source):
        return False
    try:
        return os.stat(compiled).st_mtime_ns < os.stat(source).st_mtime_ns + MIN_AGE_NS
    except OSError:
        return True


def list_loaded_sources() -> list[str]:
    """Give files of the user's own modules that this process had to load, or what it was forked from."""
    return list(_loaded)[:MAX_REPORTED_SOURCES]


def compile_sources(paths: Iterable[str]) -> bool:
    """Compile these files for processes that are forked later; tell whether any was new."""
    return sum(map(_compile_source, paths)) > 0


def _compile_source(path: str) -> bool:
    try:
        state = _stamp_file(path)
        known = _compiled.get(path)
        if known is not None and known[0] == state:
            return False
        if time.time_ns() - max(state[:2]) < MIN_AGE_NS:  # another edit may leave it with the same state
            return False
        with open(path, "rb") as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # who imports it shows them
            code = importlib.machinery.SourceFileLoader("", path).source_to_code(text, path)
        if _stamp_file(path) != state:
            return False
    except Exception:  # noqa: BLE001 - who imports it will say what is wrong with it
        return False
    if len(_compiled) >= MAX_COMPILED:
        _compiled.clear()
    _compiled[path] = state, code
    return True


def _stamp_file(path: str) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
