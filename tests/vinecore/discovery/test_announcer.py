"""What a manager tells of itself, while several threads tell it."""

from __future__ import annotations

import os
import threading

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.discovery.announcer import ManagerAnnouncer, make_record
from vinecore.protocol.discovery import registry


def test_newer_record_is_not_replaced_by_older(tmp_path, monkeypatch):
    """A record that was begun before a change is not written after it."""
    written, begun, go_on = [], threading.Event(), threading.Event()
    write = registry.write

    def note_and_write(folder, key, record):
        written.append(record["priority"])
        write(folder, key, record)

    def figures():
        if threading.current_thread().name == "vine-announcer":
            begun.set()
            go_on.wait(PATIENCE_S)
        return {}

    monkeypatch.setattr(registry, "write", note_and_write)
    about = make_record(name="mine", key=f"key-{os.getpid()}", bound="127.0.0.1", port=9123, ssl=False)
    announcer = ManagerAnnouncer(about, figures, str(tmp_path), (), lambda: 0.01)
    try:
        assert begun.wait(PATIENCE_S)
        announcer.change(priority=5)
        go_on.set()
        wait_until(lambda: len(written) >= 4, "two reports of the announcer's own")
    finally:
        go_on.set()
        announcer.close()
    assert written == [0] + [5] * (len(written) - 1)
