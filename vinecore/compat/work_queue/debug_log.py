"""Work Queue's debug log: the messages of the engine, in a file."""

from __future__ import annotations

import logging
import os

log = logging.getLogger("vinecore")

_handlers: dict[str, logging.Handler] = {}


def cctools_debug_flags_set(flags: str) -> int:
    """Log the messages of all subsystems, whichever are named; return 1."""
    del flags
    log.setLevel(logging.DEBUG)
    return 1


def set_debug_flag(*flags: str) -> None:
    """Log the messages of all subsystems, whichever are named."""
    cctools_debug_flags_set(" ".join(flags))


def cctools_debug_config_file(path: str) -> None:
    """Write messages to a file, as well."""
    path = os.path.abspath(path)
    if path not in _handlers:
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        _handlers[path] = handler


def cctools_debug_config_file_size(size: int) -> None:
    """Accept the size at which the file would be renamed; it grows without bound here."""
    log.debug("the debug log is not rotated at %d bytes", size)


def close_debug_file(path: str) -> None:
    """Write no more messages to a file."""
    handler = _handlers.pop(os.path.abspath(path), None)
    if handler is not None:
        log.removeHandler(handler)
        handler.close()
