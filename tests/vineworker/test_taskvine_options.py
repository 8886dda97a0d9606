"""Options of TaskVine's worker that people type."""

from __future__ import annotations

import os
import shutil
import socket
import time

import pytest
from vineworker.options import NO_EFFECT, NO_EFFECT_FLAGS, make_parser

from tests.harness.processes import PATIENCE_S, wait_for_task, worker_summaries
from vinecore import FunctionCall, LibraryTask, PythonTask, Task
from vinecore.protocol.debug_log import SUBSYSTEMS, separate_subsystem


@pytest.mark.parametrize("words", [("--debug=all", "--debug-file"), ("-d", "all", "-o")])
def test_log_goes_to_debug_file(local_cluster, words):
    m = local_cluster.start_manager()
    log = local_cluster.path("debug.log")
    worker = local_cluster.start_worker(m, *words, str(log))
    m.wait_for_workers(1, PATIENCE_S)
    m.close()
    worker.process.wait(PATIENCE_S)
    assert "vine_worker: worker 1 of manager" in log.read_text()
    assert worker.log == ""


def test_debug_file_is_rotated(local_cluster):
    m = local_cluster.start_manager()
    log = local_cluster.path("debug.log")
    worker = local_cluster.start_worker(m, "-o", str(log), "--debug-rotate-max", "1")
    m.wait_for_workers(1, PATIENCE_S)
    m.close()
    worker.process.wait(PATIENCE_S)
    assert len(log.read_text().splitlines()) <= 1
    assert local_cluster.path("debug.log.1").exists()


def test_debug_without_subsystem_leaves_the_address():
    words = make_parser().parse_args(["-d", "localhost", "9123"])
    assert separate_subsystem(words.debug, words.address) == (True, ["localhost", "9123"])
    words = make_parser().parse_args(["-d", "vine", "localhost", "9123"])
    assert separate_subsystem(words.debug, words.address) == (True, ["localhost", "9123"])
    assert separate_subsystem(None, ["localhost:9123"]) == (False, ["localhost:9123"])
    assert "tcp" in SUBSYSTEMS


def test_options_without_effect_are_explained(local_cluster):
    m = local_cluster.start_manager()
    words = [word for flags, _reason in NO_EFFECT for word in (flags[-1], "1")]
    words += [flags[-1] for flags, _reason in NO_EFFECT_FLAGS]
    worker = local_cluster.start_worker(m, *words)
    m.wait_for_workers(1, PATIENCE_S)
    lines = worker.log.splitlines()
    for flags, reason in (*NO_EFFECT, *NO_EFFECT_FLAGS):
        assert sum(f"{flags[-1]} has no effect: {reason}" in line for line in lines) == 1


def test_task_wrapper_runs_all_tasks(local_cluster):
    """Commands, functions and libraries run under it."""

    def read():
        return os.environ.get("WRAPPED")

    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--task-wrapper", "env WRAPPED='by env'")
    m.install_library(LibraryTask("reads", [read]))
    for task in (Task('echo "$WRAPPED"'), PythonTask(read), FunctionCall("reads", "read")):
        m.submit(task)
    assert sorted(str(wait_for_task(m).output).strip() for _ in range(3)) == ["by env"] * 3


def test_amounts_and_folder_in_taskvines_spelling(local_cluster):
    m = local_cluster.start_manager()
    folder = local_cluster.path("own")
    worker = local_cluster.start_worker(m, "--memory", "4G", "--disk", "all", "--disk-percent", "1", "--workdir", str(folder))  # fmt: skip
    m.wait_for_workers(1, PATIENCE_S)
    free_mb = shutil.disk_usage(folder).free >> 20
    total = worker_summaries(m)[0]["total"]
    assert total["memory"] == 4000
    assert 0 < total["disk"] < free_mb / 50
    assert list(folder.iterdir())
    assert worker.process.poll() is None


def test_backoff_is_what_was_asked(local_cluster):
    """Ten tries, which would take half a minute with the pauses of the defaults."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        port = listener.getsockname()[1]
        local_cluster.start_worker(port, "-i", "0.001", "-b", "0.002")
        start = 0.0
        for _ in range(10):
            listener.accept()[0].close()
            start = start or time.monotonic()
        assert time.monotonic() - start < 20
