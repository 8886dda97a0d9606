"""How much of the disk a library takes, with real files and processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from vineworker.machine.library_disk import LibraryDiskMonitor, LibraryTooLarge, WritingProcess

MB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    """The folder of a library with two slots."""
    folder = tmp_path / "t1"
    for slot in "12":
        (folder / ".vine" / slot).mkdir(parents=True)
    return folder


def look(folder, limit=10, copies=(), pids=(None, None, None)):
    library, *slots = pids
    writers = {n: WritingProcess(pid, (str(folder / f".vine-stdout-{n}"),)) for n, pid in enumerate(slots, 1)}
    own = WritingProcess(library, (f"{folder}.log",))
    return LibraryDiskMonitor(str(folder), own, lambda: writers, lambda: limit, dict(copies)).measure_if_due()


def write(path, mb):
    path.write_bytes(bytes(mb * MB))


def test_slot_with_most_written_is_reported(folder):
    """The slot that has written most is told."""
    write(folder / ".vine" / "1" / "a", 4)
    write(folder / ".vine" / "2" / "b", 7)
    assert look(folder) == LibraryTooLarge(2, 10, 11)
    assert look(folder, limit=11) is None
    assert look(folder, limit=0) is None


def test_what_slots_print_is_theirs(folder):
    write(folder / ".vine-stdout-1", 11)
    assert look(folder) == LibraryTooLarge(1, 10, 11)


def test_what_is_nobodys_is_the_librarys(folder):
    write(folder / "table", 11)
    assert look(folder) == LibraryTooLarge(None, 10, 11)


def test_library_output_counts_with_slots(folder):
    """What the library prints counts together with what slots have written."""
    write(folder.parent / "t1.log", 6)
    write(folder / ".vine" / "1" / "a", 5)
    assert look(folder) == LibraryTooLarge(1, 10, 11)


def test_inputs_do_not_count(folder):
    write(folder / "input", 11)
    info = os.stat(folder / "input")
    assert look(folder, copies={info.st_ino: info.st_size}) is None


def test_ended_slots_files_do_not_count(folder):
    """What a slot has left that has ended does not count any more."""
    (folder / ".vine" / "3").mkdir()
    write(folder / ".vine" / "3" / "a", 11)
    assert look(folder) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("opener", [0, 2])
def test_unlinked_files_count_for_first_opener(folder, opener):
    """Files without a name count once for the first that has opened them."""
    code = (
        "import os, subprocess, sys, tempfile\n"
        "file = tempfile.TemporaryFile(dir=sys.argv[1])\n"
        "file.write(bytes(11 << 20)); file.flush()\n"
        "child = subprocess.Popen(['sleep', '600'], pass_fds=[file.fileno()])\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read(); child.kill(); child.wait()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child = int(process.stdout.readline())
    try:
        pids = (process.pid, None, child) if opener == 0 else (None, None, process.pid)
        assert look(folder, pids=pids) == LibraryTooLarge(opener or None, 10, 11)
    finally:
        process.communicate()
