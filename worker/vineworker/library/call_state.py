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

RESERVED = 512
"""Descriptors of the slot itself are from here on, out of the way of those who close the first ones they find."""
SIGNALS = tuple(
    getattr(signal, f"SIG{name}")
    for name in (
        "INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "CHLD", "PIPE", "TSTP", "CONT", "WINCH", "XCPU",
    )
)  # fmt: skip
TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
ORDERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that are somebody's order to the process, even if a call has blocked them."""
LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}")
    for name in ("NOFILE", "AS", "CPU", "FSIZE", "STACK", "DATA", "CORE", "NPROC")
    if hasattr(resource, f"RLIMIT_{name}")
)
TEMPORARY = frozenset(map(str.encode, tmpdir.VARIABLES))


class Piece(NamedTuple):
    """One piece of the state of a process."""

    name: str
    look: Callable[[], Any]
    put_back: Callable[[Any], Any]


_kept: dict[
    str, Any
] = {}  # pieces as they were when they were looked at, until a function is called that changes them


def keep(name: str, look: Callable[[], Any]) -> Callable[[], Any]:
    """Look at a piece again only after a call of what changes it; else what was seen is given again, the same object, which compares at once."""

    def look_if_changed() -> Any:
        if name not in _kept:
            _kept[name] = look()
        return _kept[name]

    return look_if_changed


def reserve(descriptor: int) -> int:
    """Duplicate a descriptor to where calls do not tread."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, RESERVED)
    except OSError:  # the limit of descriptors is lower
        return os.dup(descriptor)


# ---- the pieces

_environ: Any = os.environ


_look_at_variables = keep("variables", _environ._data.copy)  # noqa: SLF001 - reads of the mapping itself may be recorded


def _look_at_environment() -> Any:
    return os.environ, _look_at_variables()


def _put_environment_back(before: Any) -> None:
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
    _kept["variables"] = variables
    if b"TZ" in changed:
        time.tzset()
    if not TEMPORARY.isdisjoint(changed):
        tmpdir.forget_folder()


_umask = os.umask


def _look_at_umask() -> int:
    mask = _umask(0o77)
    _umask(mask)
    return mask


def _put_timers_back(before: Any) -> None:
    for timer, (delay, interval) in zip(TIMERS, before):
        signal.setitimer(timer, delay, interval)


def _put_mask_back(before: Any) -> None:
    late = (signal.sigpending() - before) - ORDERS
    for number in late if hasattr(signal, "sigtimedwait") else ():  # they were meant for the call
        signal.sigtimedwait([number], 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _put_handlers_back(before: Any) -> None:
    for number, handler in zip(SIGNALS, before):
        if handler is not None and _signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _put_limits_back(before: Any) -> None:
    for limit, values in zip(LIMITS, before):
        resource.setrlimit(limit, values)


_fcntl, _fstat = fcntl.fcntl, os.fstat
_GET_MARK: Any = getattr(fcntl, "F_GETSIG", None)
MARKS = (48, 49, 50)
"""Numbers of signals that nobody sends, one for each of the standard descriptors."""
_marked: list[int] = []


def _mark_descriptors() -> None:
    """Mark what is open at the standard descriptors, where Linux is, so that a short system call for each tells whether it is still that.

    The mark is the signal that would tell of news, if signals did, which they do for none of these. It belongs to what was opened, not to a
    descriptor. To look at the files takes three times as long, which every call would pay.
    """
    _marked.clear()
    try:
        for descriptor, mark in enumerate(MARKS):
            _fcntl(descriptor, fcntl.F_SETSIG, mark)
    except (AttributeError, OSError):
        return
    _marked.extend(MARKS)


def _look_at_descriptors() -> Any:
    if _marked:
        return _fcntl(0, _GET_MARK), _fcntl(1, _GET_MARK), _fcntl(2, _GET_MARK)
    return _fstat(0)[1:3], _fstat(1)[1:3], _fstat(2)[1:3]  # number of the file, and device


def _look_at_owner() -> Any:
    root = os.stat("/")
    return os.geteuid(), os.getuid(), os.getegid(), os.getgid(), os.getgroups(), root.st_ino, root.st_dev


def _cannot_be_put_back(_before: Any) -> None:
    raise OSError


def _put_streams_back(before: Any) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # it was closed, or is none
            pass
    sys.stdin, sys.stdout, sys.stderr = before


def _look_at_warnings() -> Any:
    return warnings.showwarning, tuple(warnings.filters)


def _put_warnings_back(before: Any) -> None:
    warnings.showwarning, filters = before
    warnings.filters[:] = filters  # type: ignore[index]
    mutated = getattr(warnings, "_filters_mutated", None) or getattr(
        warnings, "_filters_mutated_lock_held", None
    )
    if mutated is not None:
        mutated()


def _look_at_logging() -> Any:
    root = logging.root
    return root.level, root.manager.disable, root.disabled, tuple(root.handlers), tuple(root.filters)


def _put_logging_back(before: Any) -> None:
    root = logging.root
    level, root.manager.disable, root.disabled, handlers, filters = before
    root.handlers[:], root.filters[:] = handlers, filters
    root.setLevel(level)  # forgets what loggers have concluded from all this


_get_most_digits: Callable[[], Any] = getattr(sys, "get_int_max_str_digits", lambda: None)


def _look_at_processors() -> Any:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _put_processors_back(before: Any) -> None:
    os.sched_setaffinity(0, before)


def _look_at_interpreter() -> Any:
    return (
        sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile(), sys.excepthook, sys.displayhook,
        gc.isenabled(), gc.get_threshold(), socket.getdefaulttimeout(), _get_most_digits(),
    )  # fmt: skip


def _put_interpreter_back(before: Any) -> None:
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


def _put_paths_back(before: Any) -> None:
    sys.path[:], sys.argv[:] = before


def _old_numpy() -> Any:
    """NumPy before 2.1, which keeps some of its settings where `contextvars` does not reach."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return None
    version = getattr(numpy, "__version__", "")
    return numpy if version.startswith(("1.", "2.0")) and hasattr(numpy, "set_printoptions") else None


def _look_at_numpy() -> Any:
    numpy = _old_numpy()
    if numpy is None:
        return None
    options = numpy.get_printoptions()
    return numpy.geterr(), options, list(map(id, options.values()))


def _put_numpy_back(before: Any) -> None:
    if before is None:  # it was imported by another thread
        return
    numpy = _old_numpy()
    numpy.seterr(**before[0])
    numpy.set_printoptions(**{k: v for k, v in before[1].items() if k != "override_repr"})


RARE = (
    # first what may still interrupt
    Piece("timers", lambda: [*map(_signal.getitimer, TIMERS)], _put_timers_back),
    Piece("user and root folder", _look_at_owner, _cannot_be_put_back),
    Piece("resource limits", lambda: [*map(resource.getrlimit, LIMITS)], _put_limits_back),
    Piece("processors", _look_at_processors, _put_processors_back),
    Piece("priority", lambda: os.getpriority(os.PRIO_PROCESS, 0), lambda n: os.setpriority(os.PRIO_PROCESS, 0, n)),
)  # fmt: skip
"""Looked at only after a call of what changes them; to look at them takes system calls."""
CHANGERS: dict[Any, tuple[str, ...]] = {
    signal: ("alarm", "setitimer"),
    resource: ("setrlimit", "prlimit"),
    os: (
        "chroot", "nice", "sched_setaffinity", "setpriority", "setuid", "seteuid", "setreuid", "setresuid", "setgid", "setegid", "setregid", "setresgid",
        "setgroups", "initgroups",
    ),
}  # fmt: skip
PIECES = (
    Piece("blocked signals", functools.partial(_signal.pthread_sigmask, signal.SIG_BLOCK.value, ()), _put_mask_back),
    Piece("signal handlers", keep("handlers", lambda: [*map(_signal.getsignal, SIGNALS)]), _put_handlers_back),
    Piece("standard descriptors", _look_at_descriptors, _cannot_be_put_back),
    Piece("environment", _look_at_environment, _put_environment_back),
    Piece("umask", _look_at_umask, os.umask),
    Piece("standard streams", lambda: (sys.stdin, sys.stdout, sys.stderr), _put_streams_back),
    Piece("warnings", _look_at_warnings, _put_warnings_back),
    Piece("logging", _look_at_logging, _put_logging_back),
    Piece("interpreter", _look_at_interpreter, _put_interpreter_back),
    Piece("sys.path and sys.argv", lambda: (sys.path[:], sys.argv[:]), _put_paths_back),
    Piece("locale", functools.partial(_locale.setlocale, _locale.LC_ALL), lambda name: _locale.setlocale(_locale.LC_ALL, name)),
    Piece("numpy", _look_at_numpy, _put_numpy_back),
)  # fmt: skip
KEEPERS: dict[Any, dict[str, str]] = {
    _signal: {"signal": "handlers"},
    os: {"putenv": "variables", "unsetenv": "variables", "reload_environ": "variables"},
}
"""The only functions, also below `signal.signal` and `os.environ`, that change pieces which are kept."""
_touched: list[str] = []  # what of `CHANGERS` was called


def _watch_changers() -> None:
    """Take notice of calls of what changes the rare pieces; before anybody's code has taken these functions by their names."""
    for module, names in CHANGERS.items():
        for name in names:
            _watch(module, name, "")
    for module, kept in KEEPERS.items():
        for name, piece in kept.items():
            _watch(module, name, piece)


def _watch(module: Any, name: str, piece: str) -> None:
    change = getattr(module, name, None)
    if change is None:
        return

    @functools.wraps(change)
    def changed(*args: Any, **kwargs: Any) -> Any:
        if piece:
            _kept.pop(piece, None)
        else:
            _touched.append(name)
        return change(*args, **kwargs)

    setattr(module, name, changed)
    # and where pickles of functions that name it look for it, as in "_signal" or "posix"
    setattr(sys.modules[change.__module__], name, changed)


_watch_changers()
_LOOKS = tuple(piece.look for piece in PIECES)
_ENVIRONMENT = next(number for number, piece in enumerate(PIECES) if piece.name == "environment")


class CallState:
    """What the calls of this process start from; made before the first of them."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        _mark_descriptors()
        self._before = [look() for look in _LOOKS]
        self._rare = [piece.look() for piece in RARE]
        _touched.clear()
        self._poll = select.poll()
        for descriptor in _open_descriptors():
            self._poll.register(descriptor, 0)
        self._thread = _thread.get_ident()
        self._imports = False
        _watch_imports(self)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a context of its own."""
        return self._context.copy().run(_with_own_decimals, function, *args)

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
            if not _touched and [look() for look in _LOOKS] == self._before:
                return None
            return _put_back(RARE, self._rare) or _put_back(PIECES, self._before)
        except OSError:  # of a look: one of the standard descriptors is closed
            return "closed descriptors"
        finally:
            _touched.clear()

    def accept(self) -> None:
        """Take what is now for what calls start from: objects were loaded that many of them share."""
        self._before = [look() for look in _LOOKS]
        self._take_over_variables({}, "")

    def around_import(self, load: Callable[..., Any], *args: Any) -> Any:
        """Import something, and accept what that changes."""
        if self._imports or _thread.get_ident() != self._thread:
            return load(*args)
        try:
            before = [look() for look in _LOOKS]
        except OSError:  # the call has closed one of the standard descriptors: this process will be replaced
            return load(*args)
        variables, decimals = dict(contextvars.copy_context()), _describe_decimals()
        self._imports = True
        try:
            return load(*args)
        finally:
            self._imports = False
            self._accept_since(before)
            self._take_over_variables(variables, decimals)

    def _accept_since(self, before: list[Any]) -> None:
        for number, look in enumerate(_LOOKS):
            now, then = look(), before[number]
            if now == then:
                continue
            if self._before[number] == then:
                self._before[number] = now
            elif number == _ENVIRONMENT:
                mapping, variables = self._before[number]
                new = {name: value for name, value in now[1].items() if then[1].get(name) != value}
                kept = {
                    name: value for name, value in variables.items() if name in now[1] or name not in then[1]
                }
                self._before[number] = mapping, {**kept, **new}

    def _take_over_variables(self, before: dict[Any, Any], decimals: str) -> None:
        for variable, value in contextvars.copy_context().items():
            if type(value).__module__ == "decimal":  # the same object, even where it has changed
                if _describe_decimals() != decimals:
                    self._context.run(variable.set, value.copy())
            elif before.get(variable, before) is not value:
                self._context.run(variable.set, value)


def _put_back(pieces: tuple[Piece, ...], state: list[Any]) -> Optional[str]:
    """Put pieces back that are not as they were; give the name of the first for which that fails."""
    for piece, before in zip(pieces, state):
        if piece.look() == before:
            continue
        try:
            piece.put_back(before)
        except (OSError, ValueError):
            return piece.name
        if piece.look() != before:
            return piece.name
    return None


def _describe_decimals() -> str:
    decimal: Any = sys.modules.get("_decimal")
    return "" if decimal is None else str(decimal.getcontext())


def _with_own_decimals(function: Callable[..., Any], *args: Any) -> Any:
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


_watched: list[CallState] = []


def _watch_imports(state: CallState) -> None:
    _watched[:] = [state]
    bootstrap: Any = importlib._bootstrap  # noqa: SLF001 - the only place all imports pass
    load = bootstrap._find_and_load  # noqa: SLF001
    if getattr(load, "watches", False):
        return

    def _find_and_load(name: str, import_: Any) -> Any:
        return _watched[0].around_import(load, name, import_) if _watched else load(name, import_)

    # Python leaves its own frames out of the tracebacks of imports by this name
    _find_and_load.__code__ = _find_and_load.__code__.replace(co_filename=load.__code__.co_filename)
    _find_and_load.watches = True  # type: ignore[attr-defined]
    bootstrap._find_and_load = _find_and_load  # noqa: SLF001
