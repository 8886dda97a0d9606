"""The state of a process that one call must not leave to the next: looked at after each call, and put back where the call has changed it.

Each call runs in a copy of the slot's context of variables (`contextvars`), in which NumPy and `decimal` keep theirs. Everything else is a `Piece`: how it is
looked at, and how it is put back. What cannot be put back (a closed descriptor, another user, a lower hard limit) is a reason to replace the process.

What a module does when it is imported stays, whichever call has imported it: it would not be done again. So does what the loading of an object does that many calls
share. Python looks up one function for every import of what is not loaded yet; that one is wrapped here, so imports of what is loaded cost nothing.
"""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]
import _thread
import contextvars
import fcntl
import functools
import gc
import importlib
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
import warnings
from typing import Any, Callable, NamedTuple, Optional

from vineworker.machine import tmpdir

MIN_OWN_DESCRIPTOR = 512
"""Descriptors of the slot itself are from here on, out of the way of those who close the first ones they find."""
SIGNALS = tuple(
    getattr(signal, f"SIG{name}")
    for name in (
        "INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "CHLD", "PIPE", "TSTP", "CONT", "WINCH", "XCPU",
    )
)  # fmt: skip
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
TERMINATION_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that are somebody's order to the process, even if a call has blocked them."""
RESOURCE_LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("NOFILE", "AS", "CPU", "FSIZE", "STACK", "DATA", "CORE", "NPROC")
    if hasattr(resource, f"RLIMIT_{name}")
)
TMPDIR_VARIABLES = frozenset(map(str.encode, tmpdir.VARIABLES))


class StateItem(NamedTuple):
    """One piece of the state of a process."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], Any]


_cached: dict[
    str, Any
] = {}  # pieces as they were when they were looked at, until a function is called that changes them


def cache_until_changed(name: str, look: Callable[[], Any]) -> Callable[[], Any]:
    """Look at a piece again only after a call of what changes it; else what was seen is given again, the same object, which compares at once."""

    def look_if_changed() -> Any:
        if name not in _cached:
            _cached[name] = look()
        return _cached[name]

    return look_if_changed


def duplicate_high(descriptor: int) -> int:
    """Duplicate a descriptor to where calls do not tread."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, MIN_OWN_DESCRIPTOR)
    except OSError:  # the limit of descriptors is lower
        return os.dup(descriptor)


# ---- the pieces

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
    for number in late if hasattr(signal, "sigtimedwait") else ():  # they were meant for the call
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
"""Numbers of signals that nobody sends, one for each of the standard descriptors."""
_marked: list[int] = []


def _mark_descriptors() -> None:
    """Mark what is open at the standard descriptors, where Linux is, so that a short system call for each tells whether it is still that.

    The mark is the signal that would tell of news, if signals did, which they do for none of these. It belongs to what was opened, not to a
    descriptor. To look at the files takes three times as long, which every call would pay.
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
    return _fstat(0)[1:3], _fstat(1)[1:3], _fstat(2)[1:3]  # number of the file, and device


def _read_owner() -> Any:
    root = os.stat("/")
    return os.geteuid(), os.getuid(), os.getegid(), os.getgid(), os.getgroups(), root.st_ino, root.st_dev


def _raise_not_restorable(_before: Any) -> None:
    raise OSError


def _restore_streams(before: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # it was closed, or is none
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
    root.setLevel(level)  # forgets what loggers have concluded from all this


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
    """NumPy before 2.1, which keeps some of its settings where `contextvars` does not reach."""
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
    if before is None:  # it was imported by another thread
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
"""Looked at only after a call of what changes them; to look at them takes system calls."""
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
"""The only functions, also below `signal.signal` and `os.environ`, that change pieces which are kept."""
_called_setters: list[str] = []  # what of `CHANGERS` was called


def _wrap_setters() -> None:
    """Take notice of calls of what changes the rare pieces; before anybody's code has taken these functions by their names."""
    for module, names in RARE_ITEM_SETTERS.items():
        for name in names:
            _wrap_setter(module, name, "")
    for module, kept in CACHED_ITEM_SETTERS.items():
        for name, piece in kept.items():
            _wrap_setter(module, name, piece)


def _wrap_setter(module: Any, name: str, piece: str) -> None:
    change = getattr(module, name, None)
    if change is None:
        return

    @functools.wraps(change)
    def changed(*args: Any, **kwargs: Any) -> Any:
        if piece:
            _cached.pop(piece, None)
        else:
            _called_setters.append(name)
        return change(*args, **kwargs)

    setattr(module, name, changed)
    # and where pickles of functions that name it look for it, as in "_signal" or "posix"
    setattr(sys.modules[change.__module__], name, changed)


_wrap_setters()
_READERS = tuple(piece.read for piece in ITEMS)
_ENVIRONMENT_INDEX = next(number for number, piece in enumerate(ITEMS) if piece.name == "environment")


class CallState:
    """What the calls of this process start from; made before the first of them."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        _mark_descriptors()
        self._before = [look() for look in _READERS]
        self._rare_before = [piece.read() for piece in RARE_ITEMS]
        _called_setters.clear()
        self._poll = select.poll()
        for descriptor in _open_descriptors():
            self._poll.register(descriptor, 0)
        self._thread = _thread.get_ident()
        self._imports = False
        _wrap_imports(self)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a context of its own."""
        return self._context.copy().run(_call_with_own_decimals, function, *args)

    def restore(self) -> Optional[str]:
        """Put back what a call has changed; if that cannot be, say what is as the call has left it."""
        timeouts: Any = sys.modules.get("faulthandler")
        if timeouts is not None:
            timeouts.cancel_dump_traceback_later()
        _signal.set_wakeup_fd(-1)
        for _descriptor, state in self._poll.poll(0):
            if state & select.POLLNVAL:
                return "closed descriptors"
        try:
            if not _called_setters and [look() for look in _READERS] == self._before:
                return None
            return _restore_items(RARE_ITEMS, self._rare_before) or _restore_items(ITEMS, self._before)
        except OSError:  # of a look: one of the standard descriptors is closed
            return "closed descriptors"
        finally:
            _called_setters.clear()

    def accept_current(self) -> None:
        """Take what is now for what calls start from: objects were loaded that many of them share."""
        self._before = [look() for look in _READERS]
        self._copy_context_variables({}, "")

    def run_import(self, load: Callable[..., Any], *args: Any) -> Any:
        """Import something, and accept what that changes."""
        if self._imports or _thread.get_ident() != self._thread:
            return load(*args)
        try:
            before = [look() for look in _READERS]
        except OSError:  # the call has closed one of the standard descriptors: this process will be replaced
            return load(*args)
        variables, decimals = dict(contextvars.copy_context()), _describe_decimals()
        self._imports = True
        try:
            return load(*args)
        finally:
            self._imports = False
            self._accept_since(before)
            self._copy_context_variables(variables, decimals)

    def _accept_since(self, before: list[Any]) -> None:
        for number, look in enumerate(_READERS):
            now, then = look(), before[number]
            if now == then:
                continue
            if self._before[number] == then:
                self._before[number] = now
            elif number == _ENVIRONMENT_INDEX:
                mapping, variables = self._before[number]
                new = {name: value for name, value in now[1].items() if then[1].get(name) != value}
                kept = {
                    name: value for name, value in variables.items() if name in now[1] or name not in then[1]
                }
                self._before[number] = mapping, {**kept, **new}

    def _copy_context_variables(self, before: dict[Any, Any], decimals: str) -> None:
        for variable, value in contextvars.copy_context().items():
            if type(value).__module__ == "decimal":  # the same object, even where it has changed
                if _describe_decimals() != decimals:
                    self._context.run(variable.set, value.copy())
            elif before.get(variable, before) is not value:
                self._context.run(variable.set, value)


def _restore_items(pieces: tuple[StateItem, ...], state: list[Any]) -> Optional[str]:
    """Put pieces back that are not as they were; give the name of the first for which that fails."""
    for piece, before in zip(pieces, state):
        if piece.read() == before:
            continue
        try:
            piece.restore(before)
        except (OSError, ValueError):
            return piece.name
        if piece.read() != before:
            return piece.name
    return None


def _describe_decimals() -> str:
    decimal: Any = sys.modules.get("_decimal")
    return "" if decimal is None else str(decimal.getcontext())


def _call_with_own_decimals(function: Callable[..., Any], *args: Any) -> Any:
    decimal: Any = sys.modules.get("_decimal")
    if decimal is not None:  # what its variable holds is an object that changes
        decimal.setcontext(decimal.getcontext().copy())
    return function(*args)


def _open_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            os.fstat(int(name))
        except OSError:  # the one that has listed them
            continue
        found.append(int(name))
    return found


_current_state: list[CallState] = []


def _wrap_imports(state: CallState) -> None:
    _current_state[:] = [state]
    bootstrap: Any = importlib._bootstrap  # noqa: SLF001 - the only place all imports pass
    load = bootstrap._find_and_load  # noqa: SLF001
    if getattr(load, "watches", False):
        return

    def _find_and_load(name: str, import_: Any) -> Any:
        return _current_state[0].run_import(load, name, import_) if _current_state else load(name, import_)

    # Python leaves its own frames out of the tracebacks of imports by this name
    _find_and_load.__code__ = _find_and_load.__code__.replace(co_filename=load.__code__.co_filename)
    _find_and_load.watches = True  # type: ignore[attr-defined]
    bootstrap._find_and_load = _find_and_load  # noqa: SLF001
