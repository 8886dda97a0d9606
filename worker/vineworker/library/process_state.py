"""Read and restore the state of a process, item by item.

A `StateItem` has a function that reads a part of the state, and one that restores it. If an item
cannot be restored (a closed descriptor, another user, a lower hard limit), the process has to be
replaced. Items that take system calls are read only after a call of a function that changes them:
these functions are wrapped here.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]
import fcntl
import functools
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
import warnings
from typing import Any, Callable, NamedTuple, Optional

from vineworker.machine import tmpdir

MIN_OWN_DESCRIPTOR = 512
"""Lowest descriptor of the slot itself.

Calls that close the first descriptors they find do not reach these.
"""
SIGNALS = tuple(
    getattr(signal, f"SIG{name}")
    for name in (
        "INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "CHLD", "PIPE", "TSTP", "CONT", "WINCH", "XCPU",
    )
)  # fmt: skip
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
TERMINATION_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that order the process to end; they are obeyed even if a call has blocked them."""
RESOURCE_LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("NOFILE", "AS", "CPU", "FSIZE", "STACK", "DATA", "CORE", "NPROC")
    if hasattr(resource, f"RLIMIT_{name}")
)
TMPDIR_VARIABLES = frozenset(map(str.encode, tmpdir.VARIABLES))


class StateItem(NamedTuple):
    """Part of the state of a process, with the functions that read and restore it."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], Any]


# cached items: read before, and not changed by a function since
_cached: dict[str, Any] = {}


def cache_until_changed(name: str, look: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that reads an item again only after a call of a function that changes it.

    Until then it returns the same object, which compares at once.
    """

    def look_if_changed() -> Any:
        if name not in _cached:
            _cached[name] = look()
        return _cached[name]

    return look_if_changed


def duplicate_high(descriptor: int) -> int:
    """Duplicate a descriptor to a number that calls do not use."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, MIN_OWN_DESCRIPTOR)
    except OSError:
        # the limit of descriptors is lower
        return os.dup(descriptor)


# ---- the items of the state

_environ: Any = os.environ


_read_variables = cache_until_changed("variables", _environ._data.copy)  # noqa: SLF001 - reads of the mapping itself may be recorded


def _read_environment() -> Any:
    return os.environ, _read_variables()


def _restore_environment(before: Any) -> None:
    os.environ, variables = before
    data: Any = _environ._data  # noqa: SLF001
    changed = [name for name in {**data, **variables} if data.get(name) != variables.get(name)]
    for name in changed:
        if name in variables:
            os.putenv(name, variables[name])
        else:
            os.unsetenv(name)
    data.clear()
    data.update(variables)
    _cached["variables"] = variables
    if b"TZ" in changed:
        time.tzset()
    if not TMPDIR_VARIABLES.isdisjoint(changed):
        tmpdir.reset_tempfile()


_umask = os.umask


def _read_umask() -> int:
    mask = _umask(0o77)
    _umask(mask)
    return mask


def _restore_timers(before: Any) -> None:
    for timer, (delay, interval) in zip(TIMERS, before):
        signal.setitimer(timer, delay, interval)


def _restore_signal_mask(before: Any) -> None:
    late = (signal.sigpending() - before) - TERMINATION_SIGNALS
    # they were meant for the call
    for number in late if hasattr(signal, "sigtimedwait") else ():
        signal.sigtimedwait([number], 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _restore_handlers(before: Any) -> None:
    for number, handler in zip(SIGNALS, before):
        if handler is not None and _signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _restore_limits(before: Any) -> None:
    for limit, values in zip(RESOURCE_LIMITS, before):
        resource.setrlimit(limit, values)


_fcntl, _fstat = fcntl.fcntl, os.fstat
_GET_MARK: Any = getattr(fcntl, "F_GETSIG", None)
DESCRIPTOR_MARKS = (48, 49, 50)
"""Unused signal numbers, one for each of the standard descriptors."""
_marked: list[int] = []


def mark_descriptors() -> None:
    """Mark the files at the standard descriptors, on Linux.

    The mark is the signal number of asynchronous I/O, which none of these files uses. It belongs to
    the open file, not to the descriptor. So a short system call for each shows whether it is still
    the same file. A comparison of the files takes three times as long, for every call.
    """
    _marked.clear()
    try:
        for descriptor, mark in enumerate(DESCRIPTOR_MARKS):
            _fcntl(descriptor, fcntl.F_SETSIG, mark)
    except (AttributeError, OSError):
        return
    _marked.extend(DESCRIPTOR_MARKS)


def _read_descriptors() -> Any:
    if _marked:
        return _fcntl(0, _GET_MARK), _fcntl(1, _GET_MARK), _fcntl(2, _GET_MARK)
    # number of the file, and device
    return _fstat(0)[1:3], _fstat(1)[1:3], _fstat(2)[1:3]


def _read_owner() -> Any:
    root = os.stat("/")
    return os.geteuid(), os.getuid(), os.getegid(), os.getgid(), os.getgroups(), root.st_ino, root.st_dev


def _raise_not_restorable(_before: Any) -> None:
    raise OSError


def _restore_streams(before: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # it was closed, or is none
            pass
    sys.stdin, sys.stdout, sys.stderr = before


def _read_warnings() -> Any:
    return warnings.showwarning, tuple(warnings.filters)


def _restore_warnings(before: Any) -> None:
    warnings.showwarning, filters = before
    warnings.filters[:] = filters  # type: ignore[index]
    mutated = getattr(warnings, "_filters_mutated", None) or getattr(
        warnings, "_filters_mutated_lock_held", None
    )
    if mutated is not None:
        mutated()


def _read_logging() -> Any:
    root = logging.root
    return root.level, root.manager.disable, root.disabled, tuple(root.handlers), tuple(root.filters)


def _restore_logging(before: Any) -> None:
    root = logging.root
    level, root.manager.disable, root.disabled, handlers, filters = before
    root.handlers[:], root.filters[:] = handlers, filters
    # forgets what loggers have concluded from all this
    root.setLevel(level)


_get_max_digits: Callable[[], Any] = getattr(sys, "get_int_max_str_digits", lambda: None)


def _read_processors() -> Any:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _restore_processors(before: Any) -> None:
    os.sched_setaffinity(0, before)


def _read_interpreter() -> Any:
    return (
        sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook,
        gc.isenabled(), gc.get_threshold(), socket.getdefaulttimeout(), _get_max_digits(),
    )  # fmt: skip


def _restore_interpreter(before: Any) -> None:
    (
        limit,
        interval,
        trace,
        profile,
        sys.excepthook,
        sys.displayhook,
        collects,
        thresholds,
        timeout,
        digits,
    ) = before
    sys.setrecursionlimit(limit)
    sys.setswitchinterval(interval)
    sys.settrace(trace)
    sys.setprofile(profile)
    (gc.enable if collects else gc.disable)()
    gc.set_threshold(*thresholds)
    socket.setdefaulttimeout(timeout)
    if digits is not None:
        sys.set_int_max_str_digits(digits)


def _restore_paths(before: Any) -> None:
    sys.path[:], sys.argv[:] = before


def _find_old_numpy() -> Any:
    """Return NumPy before 2.1, which keeps some settings outside of `contextvars`; else None."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    version = getattr(numpy, "__version__", "")
    return numpy if version.startswith(("1.", "2.0")) and hasattr(numpy, "set_printoptions") else None


def _read_numpy() -> Any:
    numpy = _find_old_numpy()
    if numpy is None:
        return None
    options = numpy.get_printoptions()
    return numpy.geterr(), options, list(map(id, options.values()))


def _restore_numpy(before: Any) -> None:
    # it was imported by another thread
    if before is None:
        return
    numpy = _find_old_numpy()
    numpy.seterr(**before[0])
    numpy.set_printoptions(**{k: v for k, v in before[1].items() if k != "override_repr"})


RARE_ITEMS = (
    # first what may still interrupt
    StateItem("timers", lambda: [*map(_signal.getitimer, TIMERS)], _restore_timers),
    StateItem("user and root folder", _read_owner, _raise_not_restorable),
    StateItem("resource limits", lambda: [*map(resource.getrlimit, RESOURCE_LIMITS)], _restore_limits),
    StateItem("processors", _read_processors, _restore_processors),
    StateItem("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0), lambda n: os.setpriority(os.PRIO_PROCESS, 0, n)),
)  # fmt: skip
"""Items that take system calls; read only after a call of a function that changes them."""
RARE_ITEM_SETTERS: dict[Any, tuple[str, ...]] = {
    signal: ("alarm", "setitimer"),
    resource: ("setrlimit", "prlimit"),
    os: (
        "chroot", "nice", "sched_setaffinity", "setpriority", "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid",
        "setgroups", "initgroups",
    ),
}  # fmt: skip
ITEMS = (
    StateItem("blocked signals", functools.partial(_signal.pthread_sigmask, signal.SIG_BLOCK.value, ()), _restore_signal_mask),
    StateItem("signal handlers", cache_until_changed("handlers", lambda: [*map(_signal.getsignal, SIGNALS)]), _restore_handlers),
    StateItem("standard descriptors", _read_descriptors, _raise_not_restorable),
    StateItem("environment", _read_environment, _restore_environment),
    StateItem("umask", _read_umask, os.umask),
    StateItem("standard streams", lambda: (sys.stdin, sys.stdout, sys.stderr), _restore_streams),
    StateItem("warnings", _read_warnings, _restore_warnings),
    StateItem("logging", _read_logging, _restore_logging),
    StateItem("interpreter", _read_interpreter, _restore_interpreter),
    StateItem("sys.path and sys.argv", lambda: (sys.path[:], sys.argv[:]), _restore_paths),
    StateItem("locale", functools.partial(_locale.setlocale, _locale.LC_ALL), lambda name: _locale.setlocale(_locale.LC_ALL, name)),
    StateItem("numpy", _read_numpy, _restore_numpy),
)  # fmt: skip
CACHED_ITEM_SETTERS: dict[Any, dict[str, str]] = {
    _signal: {"signal": "handlers"},
    os: {"putenv": "variables", "unsetenv": "variables", "reload_environ": "variables"},
}
"""The only functions, also below `signal.signal` and `os.environ`, that change cached items."""
# functions of `RARE_ITEM_SETTERS` that were called
called_setters: list[str] = []


def _wrap_setters() -> None:
    """Notice calls of the functions that change rare or cached items.

    This has to come before other code imports these functions by name.
    """
    for module, names in RARE_ITEM_SETTERS.items():
        for name in names:
            _wrap_setter(module, name, "")
    for module, kept in CACHED_ITEM_SETTERS.items():
        for name, item in kept.items():
            _wrap_setter(module, name, item)


def _wrap_setter(module: Any, name: str, item: str) -> None:
    change = getattr(module, name, None)
    if change is None:
        return

    @functools.wraps(change)
    def changed(*args: Any, **kwargs: Any) -> Any:
        if item:
            _cached.pop(item, None)
        else:
            called_setters.append(name)
        return change(*args, **kwargs)

    setattr(module, name, changed)
    # and where pickles of functions that name it look for it, as in "_signal" or "posix"
    setattr(sys.modules[change.__module__], name, changed)


_wrap_setters()
READERS = tuple(item.read for item in ITEMS)
ENVIRONMENT_INDEX = next(number for number, item in enumerate(ITEMS) if item.name == "environment")


def restore_items(items: tuple[StateItem, ...], state: list[Any]) -> Optional[str]:
    """Restore the items that have changed; return the name of the first that cannot be restored."""
    for item, before in zip(items, state):
        if item.read() == before:
            continue
        try:
            item.restore(before)
        except (OSError, ValueError):
            return item.name
        if item.read() != before:
            return item.name
    return None
