"""Slots and task processes that die in the middle of their work."""

from __future__ import annotations

import os
import signal

import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import is_alive, wait_for_task, wait_until
from vinecore import FunctionCall, PythonTask, PythonTaskNoResult, Task, TaskCrashed
from vinecore.errors import LibraryError

SLOTS = {"cores": 2, "slots": 2}


@pytest.fixture
def m(local_cluster):
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(m, 1)
    return m


def install(m, *functions, exec_mode="direct", slots=2):
    library = m.create_library_from_functions("chores", *functions, exec_mode=exec_mode)
    library.set_cores(2)
    library.set_function_slots(slots)
    m.install_library(library)


def pids(local_cluster, name):
    return [int(line) for line in local_cluster.path(name).read_text().split()]


def test_killed_slot_loses_only_its_call(local_cluster, m):
    """A slot that is killed loses only its call."""
    install(m, sample_tasks.held, sample_tasks.counted, sample_tasks.who)
    folder = str(local_cluster.folder)
    m.submit(FunctionCall("chores", "who"))
    library = wait_for_task(m).output[1]
    m.submit(FunctionCall("chores", "held", folder, "victim", "gate"))
    m.submit(FunctionCall("chores", "held", folder, "neighbour", "gate"))
    wait_until(
        lambda: local_cluster.count_lines("victim") and local_cluster.count_lines("neighbour"),
        "both slots to be busy",
    )
    for n in range(10):
        m.submit(FunctionCall("chores", "counted", folder, f"queued-{n}", n))
    os.kill(pids(local_cluster, "victim")[0], signal.SIGKILL)
    wait_until(lambda: local_cluster.count_lines("victim") == 2, "the call to be tried again")
    local_cluster.path("gate").touch()
    outputs = [wait_for_task(m).output for _ in range(12)]
    assert sorted(map(str, outputs)) == sorted([*map(str, range(10)), "victim", "neighbour"])
    assert local_cluster.count_lines("neighbour") == 1
    assert [local_cluster.count_lines(f"queued-{n}") for n in range(10)] == [1] * 10
    assert pids(local_cluster, "victim")[0] != pids(local_cluster, "victim")[1]
    m.submit(FunctionCall("chores", "who"))
    assert wait_for_task(m).output[1] == library


def test_dying_forked_call_spares_its_slot(local_cluster, m):
    """In fork mode a call that dies does not even take its slot."""
    install(m, sample_tasks.dies_once, sample_tasks.who, exec_mode="fork", slots=1)
    m.submit(FunctionCall("chores", "who"))
    slot = wait_for_task(m).output[1]
    m.submit(FunctionCall("chores", "dies_once", str(local_cluster.folder), "victim"))
    assert wait_for_task(m).output == "victim"
    assert local_cluster.count_lines("victim") == 2
    m.submit(FunctionCall("chores", "who"))
    assert wait_for_task(m).output[1] == slot


@pytest.mark.parametrize("task_mode", ["function-calls", "tasks"])
def test_vertex_always_killing_process_is_blamed(local_cluster, m, task_mode):
    """A vertex that kills its process every time is given up with the evidence."""
    graph = {
        "bad": (sample_tasks.dies, str(local_cluster.folder), "crashes", "the last words"),
        "good": (sample_tasks.counted, str(local_cluster.folder), "goods", 1),
    }
    with pytest.raises(TaskCrashed) as caught:
        m.get(graph, ["good", "bad"], task_mode=task_mode, retries=2, progress_disable=True)
    text = str(caught.value)
    assert local_cluster.count_lines("crashes") == 3
    assert "'bad'" in text
    assert text.count(f"killed by signal {int(signal.SIGSEGV)}") == 3
    assert "the last words" in text
    assert m.get({"good": (sample_tasks.add, 1, 2)}, "good", task_mode=task_mode, progress_disable=True) == 3


def test_neighbours_of_crashing_vertex_run_once(local_cluster, m):
    """Neighbours of a crashing vertex are not run again."""
    folder = str(local_cluster.folder)
    graph = {("good", n): (sample_tasks.counted, folder, f"good-{n}", n) for n in range(20)}
    graph["flaky"] = (sample_tasks.dies_once, folder, "deaths")
    keys = [("good", n) for n in range(20)]
    graph["all"] = (lambda flaky, *goods: (flaky, sum(goods)), "flaky", *keys)
    assert m.get(graph, "all", task_mode="function-calls", lib_resources=SLOTS, progress_disable=True) == (
        "deaths",
        190,
    )
    assert local_cluster.count_lines("deaths") == 2
    assert {local_cluster.count_lines(f"good-{n}") for n in range(20)} == {1}


def test_exiting_python_task_is_retried_bounded(local_cluster, m):
    """A python task whose process exits is run again and then given up."""
    task = PythonTask(sample_tasks.leaves, str(local_cluster.folder), "exits", 3)
    task.set_retries(2)
    m.submit(task)
    assert wait_for_task(m) is task
    assert (task.result, task.successful(), local_cluster.count_lines("exits")) == ("forsaken", False, 3)
    assert "exited with code 3" in str(task.output)
    assert isinstance(task.error(), TaskCrashed)
    assert isinstance(task.output, PythonTaskNoResult)


def test_python_task_killed_once_succeeds(local_cluster, m):
    """A python task that is killed once succeeds the second time."""
    m.submit(PythonTask(sample_tasks.dies_once, str(local_cluster.folder), "once"))
    assert wait_for_task(m).output == "once"
    assert local_cluster.count_lines("once") == 2


def test_killed_command_reports_signal_once(local_cluster, m):
    """A shell command that is killed reports the signal and is not run again."""
    task = Task(f"echo before; echo $$ >> {local_cluster.path('shell')}; sleep 1000; echo after")
    task.set_cores(1)
    m.submit(task)
    wait_until(lambda: local_cluster.count_lines("shell"), "the command to be running")
    os.kill(pids(local_cluster, "shell")[0], signal.SIGTERM)
    assert wait_for_task(m) is task
    assert (task.exit_code, task.successful(), task.output, local_cluster.count_lines("shell")) == (
        signal.SIGTERM,
        False,
        "before\n",
        1,
    )


def test_leftovers_of_command_end_with_it(local_cluster, m):
    """What a shell command leaves behind ends with it."""
    task = Task(f"sleep 1000 & echo $! >> {local_cluster.path('child')}")
    m.submit(task)
    assert wait_for_task(m).successful()
    child = pids(local_cluster, "child")[0]
    wait_until(lambda: not is_alive(child), "the process that was left behind to be gone")


def test_children_of_killed_python_task_end(local_cluster, m):
    """What a killed python task has started ends with it."""
    task = PythonTask(sample_tasks.starts_process, str(local_cluster.folder), "child")
    m.submit(task)
    wait_until(lambda: local_cluster.count_lines("child"), "the task to have started a process")
    m.cancel_by_task_id(task.id)
    assert wait_for_task(m).result == "cancelled"
    child = pids(local_cluster, "child")[0]
    wait_until(lambda: not is_alive(child), "the process that was left behind to be gone")


def test_killed_library_is_started_again(local_cluster, m):
    """A library that is killed is started again."""
    install(m, sample_tasks.who, sample_tasks.held)
    m.submit(FunctionCall("chores", "who"))
    library = wait_for_task(m).output[1]
    m.submit(FunctionCall("chores", "held", str(local_cluster.folder), "held", "gate"))
    wait_until(lambda: local_cluster.count_lines("held"), "the call to be running")
    os.kill(library, signal.SIGKILL)
    wait_until(lambda: local_cluster.count_lines("held") == 2, "the call to be running again")
    local_cluster.path("gate").touch()
    assert wait_for_task(m).output == "held"
    m.submit(FunctionCall("chores", "who"))
    assert wait_for_task(m).output[1] != library


def test_library_dying_at_start_is_bounded(local_cluster, m):
    """A library that dies while it starts is given up after a few tries."""
    folder = str(local_cluster.folder)

    def context():
        sample_tasks.leaves(folder, "starts", 7)

    library = m.create_library_from_functions(
        "dying", sample_tasks.who, library_context_info=[context, [], {}]
    )
    m.install_library(library)
    calls = [FunctionCall("dying", "who") for _ in range(5)]
    for call in calls:
        m.submit(call)
    ended = [wait_for_task(m) for _ in calls]
    assert {task.result for task in ended} == {"missing library"}
    assert all(isinstance(task.error(), LibraryError) for task in ended)
    said = str(ended[0].error())
    assert (
        "library dying could not be started: the library's process ended with code 7 while it built its context"
        in said
    )
    assert "raise an exception instead of ending the process" in said
    assert 1 < local_cluster.count_lines("starts") < 12
