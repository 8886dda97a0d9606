"""Sockets with a path in the temporary folder can be made wherever user code runs; the path has room for 107 bytes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile

import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import wait_for_task
from vinecore import PythonTask, Task

MOST_ADDED = 30


@pytest.fixture
def m(local_cluster):
    with DaskVine.local(cores=2) as m:
        yield m


def makes_socket():
    """Make a socket as the deepest of Python's own users does; give the path of the temporary folder."""
    folder = os.path.join(tempfile.mkdtemp(prefix="pymp-"), "listener-12345678")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(folder)
    return tempfile.gettempdir()


def uses_manager(n):
    with multiprocessing.get_context("fork").Manager() as manager:
        shared = manager.list(range(n))
        shared.append(n)
        return sum(shared)


@pytest.mark.parametrize("task_mode", ["function-calls", "tasks"])
def test_vertex_uses_sockets_and_manager_process(m, task_mode):
    """A vertex uses sockets and a manager of processes."""
    graph = {"socket": (makes_socket,), "sum": (uses_manager, 10)}
    folder, total = m.get(graph, ["socket", "sum"], task_mode=task_mode, progress_disable=True)
    assert total == 55
    assert len(folder) < 60


def test_temporary_folder_path_stays_short(m):
    """What is added to the temporary folder of the system is short."""
    task = PythonTask(makes_socket)
    m.submit(task)
    assert len(wait_for_task(m).output) - len("/tmp") < MOST_ADDED
    command = Task(
        "printf %s $TMPDIR; touch $TMPDIR/x; test -e .vine/x && test $TMPDIR -ef .vine && echo ' inside'"
    )
    m.submit(command)
    path, inside = wait_for_task(m).output.split()
    assert inside == "inside"
    assert len(path) - len("/tmp") < MOST_ADDED
    assert not os.path.lexists(os.path.dirname(path))  # with its task


def test_task_sees_its_own_temporary_folder(m):
    """A task sees its temporary folder though its python has looked before."""
    assert len(m.get({"x": (makes_socket,)}, "x", task_mode="tasks", progress_disable=True)) < 40
    assert m.get({"x": (sample_tasks.add, 1, 2)}, "x", progress_disable=True) == 3
    assert len(m.get({"x": (makes_socket,)}, "x", task_mode="tasks", progress_disable=True)) < 40
