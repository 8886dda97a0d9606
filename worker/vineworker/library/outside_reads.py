"""Replace functions of the interpreter that read outside state, to record their calls.

These are variables of the environment, entropy of the system, imports, the time, the process, the
machine, and metadata of files. Python raises no audit events for them, so they are replaced in
processes that record.

Time, process, machine and metadata count if the user's own code calls the function, directly or
through the modules in `PASS_THROUGH_MODULES`. Packages and the rest of the standard library read
them all the time, for logs and locks, and do not use them in results.
"""

from __future__ import annotations

import functools
import importlib
import locale
import os
import platform
import random
import sys
import tempfile
import threading
import time
import uuid
from typing import Any, Callable, Optional, Protocol

from vinecore.protocol import used_resources, user_modules

OUTSIDE_FUNCTIONS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (time, ("time", "time_ns", "ctime", "localtime", "gmtime", "asctime", "strftime", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
            "process_time", "process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns")),
    (os, ("getpid", "getppid", "getpgid", "getpgrp", "getsid", "uname", "getloadavg", "times", "getlogin", "cpu_count", "sched_getaffinity", "statvfs", "getrandom",
          "getuid", "geteuid", "getgid")),
    (threading, ("get_native_id",)),
    (platform, ("uname", "node")),
    (locale, ("getlocale", "localeconv", "nl_langinfo", "getpreferredencoding")),
    (uuid, ("uuid1", "getnode")),
)  # fmt: skip
STAT_FUNCTIONS = ("stat", "lstat", "access")
"""Functions of `os` that read the metadata of a file."""
PASS_THROUGH_MODULES = frozenset({"os", "genericpath", "posixpath", "pathlib", "pathlib._local", "pathlib._os", "glob", "platform", "locale", "uuid", "getpass", "threading", "ctypes", "vineworker.library.use_recorder", __name__})  # fmt: skip
"""Modules that call these functions on behalf of their callers."""
MAX_FRAMES = 30
MAX_STACK = 200
"""Frames that are searched for the user's modules."""
_packages: dict[str, bool] = {}
_ENGINE = tuple(
    os.path.dirname(os.path.abspath(sys.modules[name].__file__ or "")) + os.sep
    for name in ("vinecore", "vineworker")
)
# file of code -> whether it is the user's own
_is_user_file: dict[str, bool] = {}


class ReadRecorder(Protocol):
    """Receiver of the reads."""

    def record_outside_read(self, thing: str) -> None:
        """Record a read of something outside."""

    def record_metadata_read(self, path: Any) -> None:
        """Record a request for metadata of a file."""

    def record_variable(self, name: Any, value: Optional[str]) -> None:
        """Record the read of a variable of the environment."""

    def record_all_variables(self) -> None:
        """Record the read of the names of all variables."""

    def record_entropy(self) -> None:
        """Record a request for entropy."""

    def add_temporary(self, path: Any) -> None:
        """Record the path of a temporary file that is to be made."""

    def run_import(self, load: Callable[[], Any], name: str) -> Any:
        """Import a module."""

    def record_module(self, module: Any) -> None:
        """Record an import by a computed name."""


def wrap_functions(recorder: ReadRecorder) -> None:
    """Replace the functions, in this process and in all that are forked from it."""
    _watch_variables(recorder)
    _watch_entropy(recorder)
    _watch_imports(recorder)
    _watch_temporary_names(recorder)
    for module, names in OUTSIDE_FUNCTIONS:
        for name in names:
            if hasattr(module, name):
                setattr(module, name, _wrap_outside_function(getattr(module, name), recorder))
    for name in STAT_FUNCTIONS:
        setattr(os, name, _wrap_stat_function(getattr(os, name), recorder))
    readlink = os.readlink

    @functools.wraps(readlink)
    def read_link(path: Any, *args: Any, **kwargs: Any) -> Any:
        if is_called_by_user():
            recorder.record_outside_read(used_resources.UNSEEN)
        return readlink(path, *args, **kwargs)

    os.readlink = read_link
    # `os.supports_...` have the original functions
    for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        known = {getattr(one, "__name__", "") for one in able}
        able.update(getattr(os, name) for name in (*STAT_FUNCTIONS, "readlink", "statvfs") if name in known)


def _watch_variables(recorder: ReadRecorder) -> None:
    kind: Any = type(os.environ)
    get, each = kind.__getitem__, kind.__iter__

    def getitem(self: Any, key: Any) -> Any:
        value = None
        try:
            value = get(self, key)
        finally:
            recorder.record_variable(key, value)
        return value

    def iterate(self: Any) -> Any:
        recorder.record_all_variables()
        return each(self)

    kind.__getitem__, kind.__iter__ = getitem, iterate


def _watch_entropy(recorder: ReadRecorder) -> None:
    draw = os.urandom

    def urandom(size: int) -> bytes:
        recorder.record_entropy()
        return draw(size)

    os.urandom = urandom
    random._urandom = urandom  # type: ignore[attr-defined]  # noqa: SLF001 - `SystemRandom` has a name of its own for it
    seed = random.Random.seed

    def seeded(self: random.Random, a: Any = None, *args: Any, **kwargs: Any) -> None:
        if a is None:
            recorder.record_entropy()
        seed(self, a, *args, **kwargs)

    random.Random.seed = seeded  # type: ignore[method-assign]


def _watch_temporary_names(recorder: ReadRecorder) -> None:
    """Watch `mktemp`, which makes no file, so there is no audit event."""
    make_name = tempfile.mktemp

    @functools.wraps(make_name)
    def mktemp(*args: Any, **kwargs: Any) -> str:
        path = make_name(*args, **kwargs)
        recorder.add_temporary(path)
        return path

    tempfile.mktemp = mktemp


def _watch_imports(recorder: ReadRecorder) -> None:
    importer: Any = sys.modules["_frozen_importlib"]
    find = importer._find_and_load  # noqa: SLF001 - what both the statement and `importlib.import_module` call for a module that is not there

    def find_and_load(name: str, import_: Any) -> Any:
        return recorder.run_import(lambda: find(name, import_), name)

    importer._find_and_load = find_and_load  # noqa: SLF001
    import_module = importlib.import_module

    @functools.wraps(import_module)
    def import_by_name(name: str, package: Optional[str] = None) -> Any:
        module = import_module(name, package)
        recorder.record_module(module)
        return module

    importlib.import_module = import_by_name


def _wrap_outside_function(function: Callable[..., Any], recorder: ReadRecorder) -> Callable[..., Any]:
    @functools.wraps(function)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if is_called_by_user():
            recorder.record_outside_read(used_resources.RANDOM)
        return function(*args, **kwargs)

    return ask


def _wrap_stat_function(function: Callable[..., Any], recorder: ReadRecorder) -> Callable[..., Any]:
    @functools.wraps(function)
    def look(path: Any, *args: Any, **kwargs: Any) -> Any:
        if is_called_by_user():
            recorder.record_metadata_read(path)
        return function(path, *args, **kwargs)

    return look


def is_called_by_user() -> bool:
    """Whether code of the user's own has called what calls this, through modules that pass it on or not."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 - only the caller decides
    for _ in range(MAX_FRAMES):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") not in PASS_THROUGH_MODULES:
            file = frame.f_code.co_filename
            known = _is_user_file.get(file)
            if known is None:
                known = _is_user_file[file] = not (
                    file.startswith(("<frozen", *_ENGINE)) or user_modules.is_package_file(file)
                )
            return known
        frame = frame.f_back
    return False


def find_user_modules() -> Optional[frozenset[str]]:
    """Return the user's own modules on the stack; None if a package is being imported.

    A package belongs to the environment.
    """
    owners: set[str] = set()
    frame: Any = sys._getframe(2)  # noqa: SLF001 - only the caller decides
    for _ in range(MAX_STACK):
        if frame is None or frame.f_globals.get("__name__") == "vineworker.library.slot":
            break
        file, name = frame.f_code.co_filename, frame.f_globals.get("__name__")
        if not file.startswith(("<", *_ENGINE)):
            if file not in _packages:
                _packages[file] = user_modules.is_package_file(file)
            is_package = _packages[file]
            if is_package and frame.f_code.co_name == "<module>" and not owners:
                return None
            if not is_package and name != "__main__":
                stays = getattr(sys.modules.get(name), "__dict__", None) is frame.f_globals
                owners.update([name] if stays else [])
        frame = frame.f_back
    return frozenset(owners)
