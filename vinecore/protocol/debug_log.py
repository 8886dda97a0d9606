"""The log of a command, as TaskVine's options describe it: ``-d SUBSYSTEM``, ``-o FILE``, rotation."""

from __future__ import annotations

import logging
import sys
from typing import Optional

SUBSYSTEMS = frozenset(
    [
        "all",
        "auth",
        "batch",
        "cache",
        "catalog",
        "chirp",
        "debug",
        "dns",
        "error",
        "fatal",
        "http",
        "info",
        "login",
        "none",
        "notice",
        "poll",
        "process",
        "rmonitor",
        "ssl",
        "syscall",
        "tcp",
        "time",
        "vine",
        "wq",
    ]
)
"""What may follow ``-d``. All of them mean the same here: more is logged."""
LINE = "%(asctime)s {program}: %(message)s"


def separate_subsystem(value: Optional[str], words: list[str]) -> tuple[bool, list[str]]:
    """Separate the value of ``-d``, which may be left out, from the arguments that follow.

    Parameters
    ----------
    value
        What the parser took for the value; None without the option.
    words
        The other arguments.

    Returns
    -------
    is_given, words
    """
    if value is None or value in SUBSYSTEMS:
        return value is not None and value != "none", words
    return True, [value, *words]


def add_file(log: logging.Logger, program: str, path: str) -> logging.Handler:
    """Have a logger write to a file, too; return the handler.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LINE.format(program=program)))
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    return handler


def start_log(program: str, debug: bool, path: str = "", max_bytes: int = 0) -> None:
    """Log to standard error, or to a file.

    Parameters
    ----------
    program
        The name that each line has.
    debug
        Whether details are logged.
    path
        The file, to which lines are added; ":stderr" and ":stdout" for these.
    max_bytes
        The size at which the file is renamed to FILE.1 and a new one is begun; 0 for none.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    handler: logging.Handler
    if path in ("", ":stderr", ":stdout"):
        handler = logging.StreamHandler(sys.stdout if path == ":stdout" else sys.stderr)
    elif max_bytes:
        from logging.handlers import RotatingFileHandler

        handler = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=1)
    else:
        handler = logging.FileHandler(path)
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, format=LINE.format(program=program), handlers=[handler])
