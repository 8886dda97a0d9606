"""What goes wrong in a helper thread is said, and neither a task nor what comes after it is lost."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

import pytest
from vineworker.machine.monitor_thread import ResourceMonitorThread
from vineworker.machine.process_info import LinuxProbe
from vineworker.machine.process_reaper import ProcessReaper
from vineworker.machine.resource_monitor import ResourceMonitor
from vineworker.storage.cache_directory import open_cache_directory
from vineworker.storage.persistent_cache import PersistentCache
from vineworker.tasks.processes import Command

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.protocol import messages as m

MB = 1 << 20


@pytest.fixture
def start(tmp_path):
    """Starts commands; what they end with is in a list."""
    process_reaper = ProcessReaper(str(tmp_path / "worker"))
    ends = []

    def start(text, **options):
        folder = tmp_path / f"sandbox-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        run = m.RunTask(1, "", "", [], [], "result", False, {"command": text, **options}, b"")
        over = lambda command, code: ends.append((command, code))  # noqa: E731
        return Command(run, str(folder), f"{folder}.log", [], "", process_reaper, over), ends

    yield start
    process_reaper.close()


def test_command_reaped_elsewhere_still_ends(start, caplog):
    """A command whose end somebody else has been told is over all the same."""
    caplog.set_level(logging.ERROR)
    command, ends = start("sleep 1000")
    os.kill(command.process.pid, signal.SIGSTOP)  # its waiting thread is in its place, whenever that was
    with command._lock:  # and cannot take leave of it first
        os.kill(command.process.pid, signal.SIGKILL)
        os.waitpid(command.process.pid, 0)
    wait_until(lambda: ends, "the command to be over")
    assert ends[0][1] == -signal.SIGKILL
    assert command.process.returncode is not None  # its number may be another process's by now


class FailsOnce(LinuxProbe):
    """A probe that cannot look once it is asked to."""

    fails = False

    def start_round(self):
        if self.fails:
            self.fails = False
            raise ZeroDivisionError
        super().start_round()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_limits_are_watched_after_failed_sample(start, tmp_path, caplog):
    """Limits are watched after a look that failed."""
    caplog.set_level(logging.ERROR)
    exceeded = []
    measuring, probe = ResourceMonitorThread(exceeded.append), FailsOnce()
    measuring._monitor = ResourceMonitor(probe)
    command, ends = start(
        f"touch {tmp_path}/up; exec {sys.executable} -c 'x = bytearray(60 << 20); import time; time.sleep(1000)'"
    )
    probe.fails = True
    measuring.add_task(1, command.process.pid, {"limits": {"memory": 20}}, command.folder)
    wait_until(lambda: not probe.fails, "a look that fails")
    wait_until(lambda: exceeded, "the limit to be seen as exceeded")
    assert "a defect where tasks are measured" in caplog.text
    measuring.close()
    command.kill()
    wait_until(lambda: ends)


def test_persisting_continues_after_failure(tmp_path, caplog):
    """What was kept is told to the end though one cannot be."""
    caplog.set_level(logging.WARNING)
    first = PersistentCache(str(tmp_path / "first"), 10 * MB, open_cache_directory(str(tmp_path), b"secret"))
    first.subscribe(lambda *_: None)
    for name in ("a", "b", "c"):
        first.persist(name, b"content", forever=True)
    done = threading.Event()
    first.run_after_pending(done.set)
    assert done.wait(PATIENCE_S)
    first.close()
    first._thread.join(PATIENCE_S)
    said = []

    def listen(what, kept):
        said.append(what if kept is None else kept.name)
        if len(said) == 1:
            raise ZeroDivisionError

    second = PersistentCache(
        str(tmp_path / "second"), 10 * MB, open_cache_directory(str(tmp_path), b"secret")
    )
    known, is_all = second.subscribe(listen)
    wait_until(lambda: is_all or "all" in said, "all that was kept to be told")
    assert {kept.name for kept in known} | set(said) == {"a", "b", "c", "all"}
    second.close()
    second._thread.join(PATIENCE_S)
