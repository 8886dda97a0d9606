"""What a vine and its vertices leave behind: nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.harness.processes import wait_until


@contextlib.contextmanager
def nothing_left_in(folder: Path) -> Iterator[None]:
    """Have a folder be the temporary one of all that is started meanwhile; neither a file in it nor a process of those stays.

    Raises
    ------
    AssertionError
        Something has stayed.
    """
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    folder.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[1]
        if before[0] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before[0]
    wait_until(lambda: not processes_of(folder), f"the end of {processes_of(folder)}")
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert not left, f"{len(left)} files and folders have stayed: {left[:20]}"


def processes_of(folder: Path) -> list[str]:
    """Find the processes that were started with a folder as their temporary one, or a folder in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR", "").startswith(str(folder)):
                found.append(f"{process.pid} {process.cmdline()}")
    return [each for each in found if "multiprocessing.resource_tracker" not in each]
