"""Capture what calls print and their warnings, for each call, with an upper limit.

The standard output and error of a process are files of its own, so the output of C code and of
subprocesses counts, too. If a process runs one call after another, it reads the files after each
call and empties them. Later output of processes and threads that a call has left behind goes with a
later call. A call without output costs half a microsecond.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from typing import Any, Optional, TextIO

from vineworker.library import process_state
from vineworker.tasks.output_files import read_output_tail

MAX_WARNINGS = 20
MAX_WARNING_CHARACTERS = 2000
_lseek = os.lseek


class _WarningLog:
    """Warnings that were not reported yet, and the process that records them."""

    def __init__(self) -> None:
        self.process = 0
        self.warnings: list[list[Any]] = []


_warning_log = _WarningLog()


def redirect_output(output: str, errors: str) -> bool:
    """Have this process write to these files, and return whether that was possible.

    It is not if the disk is full.

    Parameters
    ----------
    output
        Path for standard output, or "" to leave both as they are.
    errors
        Path for standard error; "" for the same file.
    """
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
    """Have C code write at the end of each line; by default it writes when its process ends."""
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "__stdoutp" if sys.platform == "darwin" else "stdout")
        library.setvbuf(stream, None, 1 if sys.platform != "win32" else 4, 0)
    except (OSError, ValueError, AttributeError):  # another C library
        pass


def flush_streams() -> None:
    """Write what print() has buffered; os._exit does not."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # a call has closed it, or replaced it
            pass


class CapturedOutput:
    """The output of the calls of a process, when its standard streams are files of its own."""

    def __init__(self) -> None:
        # whatever a call does to the originals
        self._output, self._errors = (
            process_state.duplicate_high(1),
            process_state.duplicate_high(2),
        )

    def move_output_to(self, info: dict[str, Any]) -> None:
        """Add the output since the last time to the info of a reply."""
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
    """Record warnings apart from other output, so that equal ones of many calls can be merged."""
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
    # the output of a child is not reported with this call
    if file is not None or os.getpid() != _warning_log.process:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))
    elif len(_warning_log.warnings) < MAX_WARNINGS:
        kind = f"{category.__module__}.{category.__qualname__}"
        _warning_log.warnings.append([kind, str(message)[:MAX_WARNING_CHARACTERS], filename, lineno])


def move_warnings_to(info: dict[str, Any]) -> None:
    """Add the warnings since the last time to the info of a reply."""
    if _warning_log.warnings:
        info["warnings"], _warning_log.warnings = _warning_log.warnings, []
