"""Watches functions of the standard library that tell something of the outside: the time, the process, the machine, and what is on a disk beside contents of files.

Python tells audit hooks of none of them, so they are replaced in processes that record. They count where code of the user's own asks, by itself or through the
modules in `PASSING`: packages and the rest of the standard library ask for the time and the process all the time, for logs and locks, and make no results of them.
"""

from __future__ import annotations

import functools
import locale
import os
import platform
import sys
import threading
import time
import uuid
from typing import Any, Callable, Protocol

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
"""Functions of `os` that tell of a file without opening it."""
PASS_THROUGH_MODULES = frozenset({"os", "genericpath", "posixpath", "pathlib", "pathlib._local", "pathlib._os", "glob", "platform", "locale", "uuid", "getpass", "threading", "ctypes", "vineworker.library.use_recorder", __name__})  # fmt: skip
"""Modules that ask on behalf of who calls them."""
MAX_FRAMES = 30
_ENGINE = tuple(
    os.path.dirname(os.path.abspath(sys.modules[name].__file__ or "")) + os.sep
    for name in ("vinecore", "vineworker")
)
_is_user_file: dict[str, bool] = {}  # file of code -> whether it is the user's own


class Recorder(Protocol):
    """Who takes note."""

    def note_outside(self, thing: str) -> None:
        """Something of the outside was used."""

    def looked_at(self, path: Any) -> None:
        """Somebody has asked for a file without opening it."""


def wrap_functions(recorder: Recorder) -> None:
    """Replace the functions, in this process and in all that are forked from it."""
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
            recorder.note_outside(used_resources.UNSEEN)
        return readlink(path, *args, **kwargs)

    os.readlink = read_link
    # who asks whether `os.stat` can do something looks for it here
    for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids):
        known = {getattr(one, "__name__", "") for one in able}
        able.update(getattr(os, name) for name in (*STAT_FUNCTIONS, "readlink", "statvfs") if name in known)


def _wrap_outside_function(function: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    @functools.wraps(function)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if is_called_by_user():
            recorder.note_outside(used_resources.RANDOM)
        return function(*args, **kwargs)

    return ask


def _wrap_stat_function(function: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    @functools.wraps(function)
    def look(path: Any, *args: Any, **kwargs: Any) -> Any:
        if is_called_by_user():
            recorder.looked_at(path)
        return function(path, *args, **kwargs)

    return look


def is_called_by_user() -> bool:
    """Whether code of the user's own has called what calls this, through modules that pass it on or not."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 - who calls is all that tells
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
