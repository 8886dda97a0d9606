"""What calls print and warn: each call's by itself, bounded, and told with its result.

The standard output and error of a process are files of its own, so that what C code and subprocesses write counts, too. A process that runs one call after
another takes out what each has written when it is over, and empties the files. What processes and threads that a call has left behind write later
goes with a later call. A call that has written nothing costs half a microsecond.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import Any, Optional, TextIO

from vineworker.library import call_state
from vineworker.tasks.output_files import read_output_tail

MAX_WARNINGS = 20
MAX_WARNING_CHARACTERS = 2000
_lseek = os.lseek


class _WarningLog:
    """Warnings that have not been told yet, and the process that records them."""

    def __init__(self) -> None:
        self.process = 0
        self.warnings: list[list[Any]] = []


_warning_log = _WarningLog()


def redirect_output(output: str, errors: str) -> bool:
    """Have this process write to these files; "" for errors that go with the rest. Tell whether that was possible: a disk may be full."""
    try:
        for path, descriptors in ((output, (1,) if errors else (1, 2)), (errors, (2,))):
            if path:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                for descriptor in descriptors:
                    os.dup2(file, descriptor)
                os.close(file)
    except OSError:
        return False
    return True


def set_line_buffering() -> None:
    """Have what C code prints leave at the end of each line; else it would stay in this process until it ends."""
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        library.setvbuf(stream, None, 1 if sys.platform != "win32" else 4, 0)
    except (OSError, ValueError, AttributeError):  # another C library
        pass


def flush_streams() -> None:
    """Write out what print() has buffered; os._exit does not."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # somebody has closed it, or taken it away
            pass


class CapturedOutput:
    """What the calls of a process write to its standard output and error, which are files of its own."""

    def __init__(self) -> None:
        self._output, self._errors = (
            call_state.duplicate_high(1),
            call_state.duplicate_high(2),
        )  # whatever a call does to the originals

    def move_output_to(self, info: dict[str, Any]) -> None:
        """Put what has been written since the last time into what is told of a call."""
        flush_streams()
        if not (_lseek(self._output, 0, os.SEEK_END) or _lseek(self._errors, 0, os.SEEK_END)):
            return
        for name, descriptor in (("output", self._output), ("errors", self._errors)):
            size = _lseek(descriptor, 0, os.SEEK_END)
            if size:
                info[name] = read_output_tail(descriptor, size)
                os.ftruncate(descriptor, 0)


# ---- warnings


def record_warnings() -> None:
    """Tell warnings of their own, so that one that many calls give can be shown once."""
    _warning_log.process = os.getpid()
    _warning_log.warnings = []
    warnings.showwarning = _record_warning


def _record_warning(
    message: Any,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Optional[TextIO] = None,
    line: Optional[str] = None,
) -> None:
    if file is not None or os.getpid() != _warning_log.process:  # of a child nobody would hear
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))
    elif len(_warning_log.warnings) < MAX_WARNINGS:
        kind = f"{category.__module__}.{category.__qualname__}"
        _warning_log.warnings.append([kind, str(message)[:MAX_WARNING_CHARACTERS], filename, lineno])


def move_warnings_to(info: dict[str, Any]) -> None:
    """Put the warnings since the last time into what is told of a call."""
    if _warning_log.warnings:
        info["warnings"], _warning_log.warnings = _warning_log.warnings, []
