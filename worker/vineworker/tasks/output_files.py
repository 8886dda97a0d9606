"""Files that take what tasks and calls write to their standard output and error."""

from __future__ import annotations

import os

MAX_REPORTED_BYTES = 64 * 1024
"""Of what one task or call has written no more than this, its end, is reported."""
ERRORS_NAME = ".vine-stderr"
"""Name of the file, in the folder of a task, that takes its standard error."""


def read_output_tail(descriptor: int, size: int, max_bytes: int = MAX_REPORTED_BYTES) -> str:
    """Return the end of an open file, and how much was before that."""
    text = os.pread(descriptor, max_bytes, max(0, size - max_bytes)).decode(errors="replace")
    return text if size <= max_bytes else (f"[{size - max_bytes} bytes before this are left out]\n{text}")


def take_output_files(output: str, errors: str) -> dict[str, str]:
    """Return what a finished task has written to files that are not empty.

    The file for errors, which is in the folder of the task, is removed.
    """
    said = {}
    for name, path in (("output", output), ("errors", errors)):
        try:
            if os.stat(path).st_size:  # mostly there is nothing
                with open(path, "rb") as file:
                    if size := file.seek(0, os.SEEK_END):
                        said[name] = read_output_tail(file.fileno(), size)
        except FileNotFoundError:
            pass
    try:
        os.unlink(errors)
    except FileNotFoundError:
        pass
    return said
