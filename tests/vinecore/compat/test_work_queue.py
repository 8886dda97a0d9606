"""Programs of Work Queue run on this engine: files by path, numbers for results, functions."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.compat import work_queue as wq
from vinecore.security.shared_secret import secret_path, write_secret


@pytest.fixture
def queue(local_cluster, tmp_path, monkeypatch):
    """A queue with a worker of two cores; the program works in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    with make_queue(local_cluster, monkeypatch) as queue:
        local_cluster.start_worker(queue.port)
        yield queue


def make_queue(local_cluster, monkeypatch, **options):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(local_cluster.path("config")))
    secret_path().parent.mkdir(parents=True, exist_ok=True)
    secret_path().write_bytes(local_cluster.secret.read_bytes())
    secret_path().chmod(0o600)
    return wq.WorkQueue(**{"port": -1, **options})


def run(queue, task):
    """Run one task to its end."""
    number = queue.submit(task)
    ended = queue.wait(PATIENCE_S)
    assert ended is task
    assert ended.id == number
    return ended


def test_files_are_named_by_paths(queue, tmp_path):
    """Inputs of all kinds come under their names, outputs go to their paths, and a task runs again."""
    (tmp_path / "in.txt").write_text("in\n")
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "folder/sub/x").write_text("x\n")
    task = wq.Task("cat in.txt other folder/sub/x buffer piece made listed > out; find empty; test $WORK_QUEUE_SANDBOX = `pwd` && touch here")  # fmt: skip
    task.specify_input_file("in.txt", cache=True)
    task.specify_input_file(str(tmp_path / "in.txt"), "other", wq.WORK_QUEUE_NOCACHE)
    task.specify_directory("folder", "folder", wq.WORK_QUEUE_INPUT, wq.WORK_QUEUE_CACHE, recursive=True)
    task.specify_directory("folder", "empty")
    task.specify_buffer("buffer\n", "buffer")
    (tmp_path / "bytes").write_bytes(b"0123456789")
    task.specify_file_piece("bytes", "piece", 2, 4)
    task.specify_file_command("echo made > %%", "made", cache=True)
    task.specify_file_command("echo listed", "listed")
    task.specify_output_file("results/deep/out.txt", "out")
    task.specify_output_file("here")
    task.specify_cores(1)
    assert run(queue, task).output == "empty\n"
    text = "in\nin\nx\nbuffer\n234made\nlisted\n"
    assert (tmp_path / "results/deep/out.txt").read_text() == text
    assert (tmp_path / "here").exists()
    assert (task.result, task.result_str, task.return_status) == (wq.WORK_QUEUE_RESULT_SUCCESS, "success", 0)
    (tmp_path / "in.txt").write_text("changed\n")
    run(queue, task)
    assert (tmp_path / "results/deep/out.txt").read_text() == text.replace("in\nin\n", "changed\nchanged\n")


def test_failures_have_numbers_of_work_queue(queue, tmp_path):
    missing, failing, slow, both = (wq.Task(line) for line in ("true", "echo no; exit 3", "sleep 1000", "echo 1 >log; exit 1"))  # fmt: skip
    missing.specify_output_file("nothing")
    assert run(queue, missing).result == wq.WORK_QUEUE_RESULT_OUTPUT_MISSING
    assert (run(queue, failing).result, failing.return_status, failing.output) == (0, 3, "no\n")
    slow.specify_running_time_max(1)
    assert run(queue, slow).result & wq.WORK_QUEUE_RESULT_TASK_MAX_RUN_TIME
    both.specify_output_file("log", flags=wq.WORK_QUEUE_FAILURE_ONLY)
    both.specify_output_file("log2", "log", success_only=True)
    run(queue, both)
    assert (tmp_path / "log").exists()
    assert not (tmp_path / "log2").exists()
    fine = wq.Task("echo 1 > log")
    fine.specify_output_file("kept", "log", failure_only=True)
    assert run(queue, fine).result == 0
    assert not (tmp_path / "kept").exists()
    absent = wq.Task("cat no")
    absent.specify_input_file("no")
    with pytest.raises(FileNotFoundError, match=r"the input .*/no does not exist"):
        queue.submit(absent)
    assert queue.empty()


def test_watched_output_grows_here(queue, tmp_path):
    task = wq.Task(f"echo 1 >> log; until test -e {tmp_path}/seen; do sleep 0.05; done; echo 2 >> log")
    task.specify_output_file("log", flags=wq.WORK_QUEUE_WATCH)
    queue.submit(task)
    path = tmp_path / "log"
    wait_until(lambda: path.exists() and path.read_text() == "1\n", "the beginning of the output")
    (tmp_path / "seen").touch()
    assert queue.wait(PATIENCE_S) is task
    assert path.read_text() == "1\n2\n"


def test_settings_reach_the_task(queue):
    task = wq.Task("false")
    task.specify_command('echo "$WHO"')
    task.specify_environment_variable("WHO", "me")
    task.specify_tag(7)
    task.specify_category("fits")
    task.specify_priority(2)
    task.specify_max_retries(3)
    task.specify_memory(100)
    task.specify_disk(100)
    task.specify_gpus(0)
    copied = task.clone()
    for one in (task, copied):
        run(queue, one)
        assert (one.output, one.tag, one.category, one.priority) == ("me\n", "7", "fits", 2)
        assert one.hostname
    assert copied.id != task.id


def test_functions_return_values_and_exceptions(queue):
    def divide(a, b):
        return a / b

    assert run(queue, wq.PythonTask(divide, 3, b=2)).output == 1.5
    assert isinstance(run(queue, wq.PythonTask(divide, 3, 0)).output, ZeroDivisionError)
    ending = wq.PythonTask(os._exit, 3)
    ending.specify_max_retries(1)
    assert isinstance(run(queue, ending).output, wq.PythonTaskNoResult)
    assert ending.result == wq.WORK_QUEUE_RESULT_MAX_RETRIES
    assert ending.total_submissions == 2
    with pytest.raises(NotImplementedError, match="there is no coprocess 'sums'"):
        wq.RemoteTask("f", "sums", 1)


def test_cancelled_tasks_come_back_at_once(local_cluster, monkeypatch):
    """No worker is needed, and `wait` does not return them again."""
    with make_queue(local_cluster, monkeypatch) as queue:
        tasks = [wq.Task("true") for _ in range(6)]
        for task, tag in zip(tasks, "aabbcc", strict=True):
            task.specify_tag(tag)
            task.specify_category(tag)
            queue.submit(task)
        assert queue.cancel_by_taskid(tasks[0].id) is tasks[0]
        assert queue.cancel_by_taskid(tasks[0].id) is None
        assert queue.cancel_by_tasktag("a") is tasks[1]
        assert queue.cancel_by_tasktag("a") is None
        assert queue.cancel_by_category("b") == tasks[2:4]
        assert queue.wait(0) is None
        assert queue.stats.tasks_waiting == 2
        assert queue.task_state(tasks[5].id) == wq.WORK_QUEUE_TASK_READY
        assert queue.cancel_all() == tasks[4:]
        assert queue.empty()
        assert queue.task_state(tasks[5].id) == wq.WORK_QUEUE_TASK_UNKNOWN


def test_tasks_are_waited_for_by_tag(queue):
    first, second = wq.Task("true"), wq.Task("true")
    second.specify_tag("second")
    numbers = [queue.submit(task) for task in (first, second)]
    assert queue.wait_for_tag("second", PATIENCE_S) is second
    assert queue.wait_for_task_id(numbers[0]) is first
    assert queue.wait(5) is None


def test_statistics_have_all_names(queue, tmp_path):
    log = tmp_path / "stats.log"
    assert queue.specify_log(log)
    wait_until(lambda: queue.stats.workers_connected == 1, "the worker")
    names = [name for name in dir(wq.work_queue_stats) if not name.startswith("_")]
    stats = queue.stats_hierarchy
    assert {type(getattr(stats, name)) for name in names} <= {int, float}
    assert (stats.total_cores, stats.workers_ready, stats.total_workers_joined) == (2, 1, 1)
    header, first = log.read_text().splitlines()[:2]
    assert header.split()[:3] == ["#", "timestamp", "workers_connected"]
    assert len(first.split()) == len(header.split()) - 1
    assert queue.hungry() > 0


def test_password_file_is_required_of_workers(local_cluster, monkeypatch, tmp_path):
    with make_queue(local_cluster, monkeypatch) as queue:
        assert not queue.specify_password_file(tmp_path / "none")
        other = tmp_path / "other"
        write_secret(other)
        assert queue.specify_password_file(str(other))
        local_cluster.start_worker(queue.port, secret=other)
        assert run(queue, wq.Task("echo 1")).output == "1\n"


def test_debug_log_has_messages(local_cluster, monkeypatch, tmp_path):
    path = tmp_path / "debug.log"
    with make_queue(local_cluster, monkeypatch, debug_log=str(path)) as queue:
        assert not queue.specify_transactions_log("transactions.log")
    assert "transactions.log is not written" in path.read_text()


def test_ended_task_tells_times_and_resources(queue, tmp_path):
    """Times are in microseconds since 1970, in their order; the summary has what was measured."""
    task = wq.Task("echo 1; sleep 0.2")
    task.specify_cores(1)
    task.specify_memory(100)
    task.specify_monitor_output("measured")
    before = time.time() * 1e6
    assert task.total_submissions == 0
    run(queue, task)
    moments = [
        before,
        task.submit_time,
        task.send_input_start,
        task.send_input_finish,
        task.execute_cmd_start,
    ]
    moments += [
        task.execute_cmd_finish,
        task.receive_output_start,
        task.receive_output_finish,
        task.finish_time,
    ]
    assert all(earlier <= later + 1e4 for earlier, later in itertools.pairwise(moments))
    assert task.total_cmd_execution_time == task.cmd_execution_time >= 200_000
    assert task.total_submissions == 1
    assert (task.resources_requested.cores, task.resources_allocated.cores) == (1, 1)
    assert task.resources_allocated.memory == 100
    assert task.limits_exceeded is None
    assert task.host.startswith("127.0.0.1:")
    summary = json.loads((tmp_path / f"measured/wq-{os.getpid()}-task-{task.id}.summary").read_text())
    assert summary["exit_status"] == 0
    assert summary["wall_time"] >= 0.2


def test_settings_of_queue_have_effects(queue, local_cluster):
    """Hosts, categories, numbers, features and workers under Work Queue's names."""
    wait_until(lambda: queue.stats.workers_connected == 1, "the worker")
    queue.specify_algorithm(wq.WORK_QUEUE_SCHEDULE_RAND)
    queue.specify_category_mode("small", wq.WORK_QUEUE_ALLOCATION_MODE_FIXED)
    queue.specify_category_max_resources("small", {"cores": 1, "memory": 50})
    queue.specify_min_taskid(1000)
    assert queue.tune("hungry-minimum", 7) == 0
    task = wq.Task("true")
    task.specify_category("small")
    assert run(queue, task).id >= 1000
    assert (task.resources_allocated.cores, task.resources_allocated.memory) == (1, 50)
    assert queue.stats_category("small").tasks_done == 1
    queue.blacklist(task.hostname)
    again = task.clone()
    queue.submit(again)
    assert queue.wait(0.5) is None
    queue.blacklist_clear(task.hostname)
    assert queue.wait(PATIENCE_S) is again
    special = wq.Task("true")
    special.specify_feature("special")
    queue.submit(special)
    assert queue.wait(0.5) is None
    local_cluster.start_worker(queue.port, "--feature", "special")
    assert queue.wait(PATIENCE_S) is special
    assert queue.activate_fast_abort(2) == queue.activate_fast_abort_category("small", 3) == 0
    assert queue.shutdown_workers() == 2
    wait_until(lambda: queue.stats.workers_connected == 0, "the workers to be gone")


def test_category_bounds_running_tasks(queue):
    queue.specify_category_max_concurrent("one", 1)
    queue.specify_category_first_allocation_guess("one", {"cores": 1})
    for _ in range(4):
        task = wq.Task("mkdir $LOCK && sleep 0.05 && rmdir $LOCK")
        task.specify_environment_variable("LOCK", f"{os.getcwd()}/lock")
        task.specify_category("one")
        task.specify_cores(1)
        queue.submit(task)
    assert [queue.wait(PATIENCE_S).return_status for _ in range(4)] == [0] * 4


PROGRAM = """
import sys
import {module} as wq

def total(values):
    return sum(values)

queue = wq.WorkQueue(port=0, name={name!r})
workers = wq.Factory("local", manager_host_port=f"127.0.0.1:{{queue.port}}")
workers.min_workers = workers.max_workers = 1
workers.cores = 2
with workers:
    for n in range(1, 5):
        task = wq.Task("./double < in > out")
        task.specify_input_file("double", cache=True)
        task.specify_buffer(f"{{n}}\\n", "in", wq.WORK_QUEUE_NOCACHE)
        task.specify_output_file(f"out.{{n}}", "out", cache=False)
        task.specify_cores(1)
        queue.submit(task)
    queue.submit(wq.PythonTask(total, [1, 2, 3]))
    found = []
    while not queue.empty():
        task = queue.wait(5)
        if task:
            assert task.result == wq.WORK_QUEUE_RESULT_SUCCESS and task.return_status == 0
            found.append(task.output)
print(sorted(map(str, found)), [open(f"out.{{n}}").read() for n in range(1, 5)])
"""


@pytest.mark.parametrize("module", ["work_queue", "ndcctools.work_queue"])
def test_program_runs_with_vine_compat(tmp_path, module):
    (tmp_path / "double").write_text("#!/bin/sh\nread n; expr $n + $n\n")
    (tmp_path / "double").chmod(0o755)
    (tmp_path / "program.py").write_text(PROGRAM.format(module=module, name=None))
    variables = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "vinecore.compat.cli", "program.py"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=False, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "['', '', '', '', '6'] ['2\\n', '4\\n', '6\\n', '8\\n']\n"
