"""What processes that run long print takes a bounded part of the disk."""

from __future__ import annotations

import os
import subprocess
import sys

from vineworker.tasks import logs

from tests.harness.processes import PATIENCE_S, find_paths, wait_until
from vinecore import FunctionCall


def test_end_of_long_log_is_kept(tmp_path):
    """Of a long log the end is kept and goes on."""
    path = tmp_path / "log"
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, bytes(logs.MAX_LOG_BYTES) + b"the end\n")
    logs.truncate_log(str(path))
    os.write(log, b"more\n")
    os.close(log)
    text = path.read_bytes()
    assert len(text) < 2 * logs.KEPT_BYTES
    assert text.startswith(b"[what was here, ")
    assert text.endswith(b"the end\nmore\n")


def test_order_of_growing_log_is_kept(tmp_path, monkeypatch):
    """What stays of a log begins with the note and is in the order of its writing, whoever writes meanwhile."""
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 1 << 14)
    monkeypatch.setattr(logs, "KEPT_BYTES", 1 << 12)
    path = tmp_path / "log"
    code = "import itertools, os\nfor n in itertools.count():\n    os.write(1, b'%07d\\n' % n)\n"
    with path.open("ab") as log, subprocess.Popen([sys.executable, "-c", code], stdout=log) as writer:
        try:
            for _ in range(200):
                wait_until(lambda: path.stat().st_size > logs.MAX_LOG_BYTES, "a log that is too long")
                logs.truncate_log(str(path))
                note, _, *lines = path.read_bytes().split(b"\n")[:-1]
                assert note.startswith(b"[what was here, ")
                # a file grows in two steps where a write goes across two pages of memory: such a line can be cut
                numbers = [int(line) for line in lines if len(line) == 7]
                assert numbers == sorted(numbers)
        finally:
            writer.kill()


def test_short_or_missing_log_is_unchanged(tmp_path):
    """A short log and one that is not there stay as they are."""
    path = tmp_path / "log"
    logs.truncate_log(str(path))
    assert not path.exists()
    path.write_text("short\n")
    logs.truncate_log(str(path))
    assert path.read_text() == "short\n"


def print_much(gate):
    import os
    import time

    for _ in range(40):
        os.write(1, bytes(1 << 20))
    os.write(1, b"the end\n")
    while not os.path.exists(gate):
        time.sleep(0.01)


def test_output_of_call_does_not_fill_disk(local_cluster):
    """What a call prints while it runs does not fill the disk."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    library = m.create_library_from_functions("lib", print_much, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    m.submit(FunctionCall("lib", "print_much", str(local_cluster.path("gate"))))

    def ends():
        for path in find_paths(local_cluster.workspace, "*/*/t*/.vine-stdout-*"):
            text = path.read_bytes()
            if text.startswith(b"[what was here") and len(text) <= logs.MAX_LOG_BYTES:
                return True
        return False

    wait_until(ends, "the log to be shortened")
    local_cluster.path("gate").touch()
    assert m.wait(PATIENCE_S).successful()
