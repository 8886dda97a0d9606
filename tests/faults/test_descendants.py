"""What a task has started ends with it, wherever it has gone; and the end of a process is its end, whoever else holds what it has written to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import HURRY_S, is_alive, wait_for_task, wait_until
from vinecore import FunctionCall, PythonTask, Task

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(sys.argv[1] + ".tmp", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".tmp", sys.argv[1])
        time.sleep(1000)
    os._exit(0)
os.wait()
"""
MODES = ["function-calls", "tasks"]


def starts_daemon(path):
    """Start what leaves its parent, its group and its session; give its number."""
    subprocess.run([sys.executable, "-c", DAEMON, path], check=True)
    sample_tasks.wait_for(path)
    with open(path) as file:
        return int(file.read())


def forks_sleeper(folder, name):
    """Fork a child, without executing anything, that holds all that this process has open."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(1000)
        os._exit(0)
    sample_tasks.note(f"{folder}/{name}", pid)
    return pid


def dies_before_its_child(folder, name, once):
    first = not os.path.exists(f"{folder}/{name}")
    pid = forks_sleeper(folder, name)
    if first or not once:
        os._exit(3)
    return pid


def has_daemon_and_sleeps(folder):
    sample_tasks.note(f"{folder}/daemons", starts_daemon(f"{folder}/daemon-{os.getpid()}"))
    time.sleep(1000)


def uses_pool(n):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(sample_tasks.square, range(n))


def comes_back_twice(folder, how):
    pid = os.fork()
    sample_tasks.note(f"{folder}/processes", os.getpid())
    if pid == 0 and how == "raises":
        raise ValueError("only in the child")
    if pid == 0 and how == "exits":
        sys.exit(7)
    if pid == 0:
        return "the child's"
    _pid, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status)


@pytest.fixture
def m(local_cluster):
    m = local_cluster.start_manager(DaskVine)
    m.worker = local_cluster.start_hurried_worker(m)
    return m


def install(m, *functions, exec_mode="direct", slots=1):
    library = m.create_library_from_functions("chores", *functions, exec_mode=exec_mode)
    library.set_cores(2)
    library.set_function_slots(slots)
    m.install_library(library)


def numbers(local_cluster, name):
    path = local_cluster.path(name)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def get(m, vertex, task_mode, **more):
    return m.get({"x": vertex}, "x", task_mode=task_mode, progress_disable=True, **more)


@pytest.mark.parametrize("task_mode", MODES)
def test_vertex_exiting_before_child_is_rerun(local_cluster, m, task_mode):
    """A vertex that exits before its child is run again."""
    left = get(m, (dies_before_its_child, str(local_cluster.folder), "children", True), task_mode)
    first, second = numbers(local_cluster, "children")
    assert left == second
    wait_until(lambda: not is_alive(first), "the child of the process that has exited to be gone")


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_call_exiting_before_child_is_rerun(local_cluster, m, exec_mode):
    """A call that exits before its child is run again."""
    install(m, dies_before_its_child, exec_mode=exec_mode)
    m.submit(FunctionCall("chores", "dies_before_its_child", str(local_cluster.folder), "children", True))
    assert wait_for_task(m).output == numbers(local_cluster, "children")[1]
    wait_until(lambda: not is_alive(numbers(local_cluster, "children")[0]), "the first child to be gone")


@pytest.mark.parametrize("exec_mode", ["direct", "fork"])
def test_processes_of_call_end_with_slot(local_cluster, m, exec_mode):
    """What a call has started ends with its process."""
    install(m, starts_daemon, forks_sleeper, sample_tasks.who, exec_mode=exec_mode)
    m.submit(FunctionCall("chores", "starts_daemon", str(local_cluster.path("daemon"))))
    m.submit(FunctionCall("chores", "forks_sleeper", str(local_cluster.folder), "sleeper"))
    left = [wait_for_task(m).output for _ in range(2)]
    if exec_mode == "direct":  # the slot may hand it to the next call
        assert all(map(is_alive, left))
        m.submit(FunctionCall("chores", "who"))
        assert wait_for_task(m).successful()
        m.remove_library("chores")
    wait_until(lambda: not any(map(is_alive, left)), "what the calls have started to be gone")


def test_leftovers_of_slot_end_alone(local_cluster, m):
    """What a slot has left behind ends and its neighbours do not."""
    install(m, starts_daemon, sample_tasks.held, slots=2)
    m.submit(FunctionCall("chores", "held", str(local_cluster.folder), "neighbour", "gate"))
    wait_until(lambda: local_cluster.count_lines("neighbour"))
    m.submit(FunctionCall("chores", "starts_daemon", str(local_cluster.path("daemon"))))
    daemon = wait_for_task(m).output
    neighbour = numbers(local_cluster, "neighbour")[0]
    [slot] = [
        p.pid for p in m.worker.descendants if p.ppid() == chores_parent(neighbour) and p.pid != neighbour
    ]
    assert is_alive(daemon)
    os.kill(slot, signal.SIGKILL)
    wait_until(lambda: not is_alive(daemon), "the daemon of the slot that was killed to be gone")
    assert is_alive(neighbour)
    local_cluster.path("gate").touch()
    assert wait_for_task(m).output == "neighbour"


def chores_parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("end", ["time_max", "cancel", "result", "exit"])
def test_daemon_of_python_task_ends_with_it(local_cluster, m, end):
    """A daemon of a python task ends with it."""
    if end in ("result", "exit"):
        task = PythonTask(starts_daemon, str(local_cluster.path("daemon")))
        if end == "exit":
            task = PythonTask(
                lambda path: (starts_daemon(path), os._exit(3)), str(local_cluster.path("daemon"))
            )
            task.set_retries(1)
    else:
        task = PythonTask(has_daemon_and_sleeps, str(local_cluster.folder))
    if end == "time_max":
        task.set_time_max(HURRY_S)
    m.submit(task)
    if end in ("time_max", "cancel"):
        wait_until(lambda: numbers(local_cluster, "daemons"), "the daemon to run")
    if end == "time_max":
        local_cluster.let_time_pass()
    if end == "cancel":
        m.cancel_by_task_id(task.id)
    assert wait_for_task(m).successful() == (end == "result")
    left = numbers(local_cluster, "daemons" if end in ("time_max", "cancel") else "daemon")
    assert left
    if end == "result":
        assert not any(map(is_alive, left))  # before it is told that the task is over
    wait_until(lambda: not any(map(is_alive, left)), "its daemon to be gone")


@pytest.mark.parametrize("end", ["time_max", "cancel", "exit"])
def test_daemon_of_command_ends_with_it(local_cluster, m, end):
    """A daemon of a command ends with it."""
    local_cluster.path("daemon.py").write_text(DAEMON)
    start = f"{sys.executable} {local_cluster.path('daemon.py')} {local_cluster.path('daemon')}"
    wait = f"while [ ! -e {local_cluster.path('daemon')} ]; do sleep 0.01; done"
    task = Task(f"env -i {start}; {wait}{'' if end == 'exit' else '; sleep 1000'}")
    other = Task(
        f"env -i {start}-2; while [ ! -e {local_cluster.path('gate')} ]; do sleep 0.01; done; kill -0 $(cat {local_cluster.path('daemon-2')})"
    )
    for each in (task, other):
        each.set_cores(1)
    if end == "time_max":
        task.set_time_max(HURRY_S)
    m.submit(other)
    wait_until(lambda: numbers(local_cluster, "daemon-2"))
    m.submit(task)
    if end in ("time_max", "cancel"):
        wait_until(lambda: numbers(local_cluster, "daemon"), "the daemon to run")
    if end == "time_max":
        local_cluster.let_time_pass()
    if end == "cancel":
        m.cancel_by_task_id(task.id)
    assert wait_for_task(m) is task
    daemons = numbers(local_cluster, "daemon")
    assert daemons
    wait_until(lambda: not any(map(is_alive, daemons)), "its daemon to be gone")
    local_cluster.path("gate").touch()
    assert wait_for_task(m).successful()  # its own is there
    wait_until(
        lambda: not any(map(is_alive, numbers(local_cluster, "daemon-2"))),
        "the daemon of the other to be gone, too",
    )


@pytest.mark.parametrize("kind", ["task", "command"])
def test_resources_of_daemon_count_for_task(local_cluster, m, kind):
    """What a daemon uses counts for its task."""
    local_cluster.path("daemon.py").write_text(
        DAEMON.replace("time.sleep", "x = bytearray(200 << 20); time.sleep")
    )
    words = [sys.executable, str(local_cluster.path("daemon.py")), str(local_cluster.path("daemon"))]
    task = Task(f"{' '.join(words)}; sleep 1000")
    if kind == "task":
        task = PythonTask(lambda: (subprocess.run(words, check=True), time.sleep(1000)))
    task.set_memory(100)
    m.submit(task)
    assert wait_for_task(m).result == "resource exhaustion"
    wait_until(lambda: not any(map(is_alive, numbers(local_cluster, "daemon"))), "its daemon to be gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_daemons_end_with_their_worker(local_cluster, m, number):
    install(m, starts_daemon)
    m.submit(FunctionCall("chores", "starts_daemon", str(local_cluster.path("of-call"))))
    assert wait_for_task(m).successful()
    m.remove_library("chores")
    install(m, starts_daemon)
    m.submit(FunctionCall("chores", "starts_daemon", str(local_cluster.path("of-call-2"))))
    assert wait_for_task(m).successful()
    task = PythonTask(has_daemon_and_sleeps, str(local_cluster.folder))
    m.remove_library("chores")
    m.submit(task)
    wait_until(lambda: numbers(local_cluster, "daemons"), "the daemon of the task to run")
    left = [pid for name in ("of-call", "of-call-2", "daemons") for pid in numbers(local_cluster, name)]
    m.worker.send(number)
    if number == signal.SIGTERM:
        m.worker.send(number)
    m.worker.wait()
    wait_until(lambda: not any(map(is_alive, left)), "all daemons to be gone")


def test_library_with_context_child_is_restarted(local_cluster, m):
    """A library that ends is started again though its context has a child."""
    folder = str(local_cluster.folder)

    def context():
        forks_sleeper(folder, "children")
        return {}

    library = m.create_library_from_functions(
        "chores",
        sample_tasks.who,
        sample_tasks.leaves,
        exec_mode="direct",
        library_context_info=[context, [], {}],
    )
    m.install_library(library)
    m.submit(FunctionCall("chores", "who"))
    host = wait_for_task(m).output[1]
    m.submit(
        FunctionCall("chores", "leaves", folder, "exits", 3)
    )  # a slot that ends takes nothing of its library's with it
    wait_until(lambda: local_cluster.count_lines("exits"))
    assert is_alive(numbers(local_cluster, "children")[0])
    m.cancel_all()
    wait_for_task(m)
    os.kill(host, signal.SIGKILL)
    wait_until(lambda: not is_alive(host), "the library to be gone")
    m.submit(FunctionCall("chores", "who"))
    assert wait_for_task(m).output[1] != host
    wait_until(
        lambda: not is_alive(numbers(local_cluster, "children")[0]),
        "the child of the first context to be gone",
    )


@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
@pytest.mark.parametrize("kind", ["direct", "fork", "task"])
def test_only_the_process_that_was_asked_answers(local_cluster, m, kind, how):
    if kind == "task":
        call = PythonTask(comes_back_twice, str(local_cluster.folder), how)
    else:
        install(m, comes_back_twice, exec_mode=kind)
        call = FunctionCall("chores", "comes_back_twice", str(local_cluster.folder), how)
    m.submit(call)
    assert wait_for_task(m).output == {"returns": 0, "raises": 1, "exits": 7}[how]
    assert local_cluster.count_lines("processes") == 2


@pytest.mark.parametrize("task_mode", MODES)
def test_pool_in_vertex_leaves_nothing(local_cluster, m, task_mode):
    """A pool in a vertex works and leaves nothing."""
    assert get(m, (uses_pool, 20), task_mode) == [n * n for n in range(20)]
