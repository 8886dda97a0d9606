"""The small shell that cleans up after a worker."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from vineworker.machine.process_reaper import ProcessReaper

from tests.harness.processes import PATIENCE_S, is_alive, wait_until


@pytest.fixture
def groups():
    """Start processes that lead groups, and end them."""
    started = []

    def start(command="sleep 1000"):
        started.append(subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_reaper_kills_groups_and_removes_folder(tmp_path, groups):
    """In the end it kills the groups that are left and removes the folder."""
    folder = tmp_path / "it's a folder"
    (folder / "locked").mkdir(parents=True)
    (folder / "locked" / "file").touch()
    (folder / "locked").chmod(0)
    process_reaper = ProcessReaper(str(folder))
    watched, ended, others = groups("sleep 1000 & sleep 1000"), groups(), groups()
    for process in (watched, ended):
        process_reaper.add_group(process.pid)
    process_reaper.remove_group(ended.pid)
    process_reaper.remove_group(12345678)
    process_reaper.close()
    assert watched.wait(PATIENCE_S) == -signal.SIGKILL
    assert ended.poll() is None
    assert others.poll() is None
    assert not folder.exists()


def test_many_groups_are_remembered_as_they_are(tmp_path, groups):
    process_reaper = ProcessReaper(str(tmp_path / "folder"))
    process = groups()
    for n in range(2000):  # numbers that begin and end alike
        process_reaper.add_group(10**7 + n)
        process_reaper.add_group(10**8 + n)
    process_reaper.add_group(process.pid)
    for n in range(2000):
        process_reaper.remove_group(10**7 + n)
        process_reaper.remove_group(10**8 + n)
    process_reaper.close()
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_unresponsive_reaper_is_replaced_in_time(tmp_path, groups):
    """One that does not listen is ended before what it knows is too old."""
    process_reaper = ProcessReaper(str(tmp_path / "folder"))
    process = groups()
    process_reaper.add_group(process.pid)
    os.kill(process_reaper._shell.pid, signal.SIGSTOP)
    for n in range(20_000):
        process_reaper.add_group(10**7 + n)
    process_reaper.remove_group(process.pid)
    process_reaper.close()
    assert process.poll() is None


def test_one_that_has_been_killed_harms_nobody(tmp_path):
    process_reaper = ProcessReaper(str(tmp_path / "folder"))
    pid = process_reaper._shell.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    for n in range(100):
        process_reaper.add_group(10**7 + n)
    process_reaper.close()
