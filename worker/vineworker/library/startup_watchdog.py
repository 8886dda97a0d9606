"""Report where a slow start of a library is: write its stack to a file, which the worker reads."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import time
from collections.abc import Iterator

REPORT_INTERVAL_S = 5.0
"""A start that takes longer is reported, again after each such interval."""
MAX_FRAMES = 4
MAX_TRACE_BYTES = 1 << 16
FINISHED_MARK = b"Over\n"
FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
STAGES = {
    "build_context": "it builds its context",
    "import_modules": "it imports its modules",
    "_preload_modules": "it imports what tasks need",
}


@contextlib.contextmanager
def report_slow_block(path: str) -> Iterator[None]:
    """Write the stack to a file while the block runs, if it takes long.

    This takes no lock of the interpreter, so it also works for C code that holds the lock. Its
    thread ends with the block, before anything is forked.
    """
    start = time.monotonic()
    with open(path, "ab", buffering=0) as file:
        faulthandler.dump_traceback_later(REPORT_INTERVAL_S, repeat=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            if time.monotonic() - start >= REPORT_INTERVAL_S:
                file.write(FINISHED_MARK)


def take_report(path: str) -> str | None:
    """Return where a slow start is, and empty the file.

    "" if the start is over, None if there is nothing new.
    """
    try:
        if not os.stat(path).st_size:
            return None
        with open(path, "r+b") as file:
            text = file.read(MAX_TRACE_BYTES)
            file.truncate(0)
    except OSError:  # nothing has begun yet
        return None
    return "" if text.endswith(FINISHED_MARK) else describe_stack(text.decode(errors="replace"))


def describe_stack(text: str) -> str:
    """Describe in one line what the main thread does, which comes last in a stack dump."""
    frames = [
        found.groups()
        for line in text.rpartition("Thread 0x")[2].splitlines()
        if (found := FRAME.match(line))
    ]
    own = [frame for frame in frames if "vineworker" not in frame[0].split(os.sep) and frame[0][:1] != "<"]
    stage = next((STAGES[name] for _file, _line, name in frames if name in STAGES), "it loads its functions")
    users = [frame for frame in own if "/lib/python" not in frame[0]]
    imported = next((frame for frame in own if frame[2] == "<module>"), None)
    if imported is not None and imported not in users:
        # the slow import is its own
        users.insert(0, imported)
    shown = (users or own)[:MAX_FRAMES]
    places = ", called from ".join(f"line {line} of {file}, in {name}" for file, line, name in shown)
    return f"{stage}: {places}" if places else stage
