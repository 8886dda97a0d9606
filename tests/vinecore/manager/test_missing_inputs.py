"""What is to be read and cannot be had fails whoever needs it, at once and by its own name; nothing waits for ever."""

from __future__ import annotations

import os

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task


@pytest.fixture
def call_with(m, run):
    """Call a library that reads a file, or runs in it."""
    installed = []

    def call_with(file, *, environment=False, before=()):
        library = m.create_library_from_functions("reading", sample_tasks.add, exec_mode="direct")
        library.set_cores(1)
        if environment:
            library.add_environment(file)
        else:
            library.add_input(file, "in")
        m.install_library(library)
        installed.append("reading")
        ended = run(*before, FunctionCall("reading", "add", 1, 2))
        return ended[-1] if before else ended

    yield call_with
    for name in installed:
        m.remove_library(name)


@pytest.mark.parametrize("environment", [False, True])
def test_missing_library_file_fails_calls(m, call_with, tmp_path, environment):
    """A library whose file is not there fails its calls with its path."""
    path = tmp_path / "mist9.root"
    call = call_with(m.declare_file(path), environment=environment)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_missing_environment_archive_fails_calls(m, call_with, tmp_path):
    """A library whose environment is an archive that is not there fails its calls with its path."""
    path = tmp_path / "packed.tar.gz"
    call = call_with(m.declare_poncho(m.declare_file(path)), environment=True)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_environment_vanishing_early_fails_calls(m, call_with, tmp_path):
    """A library whose environment goes before it is sent fails its calls with its path."""
    path = tmp_path / "packed.tar.gz"
    path.write_bytes(os.urandom(300_000))
    environment = m.declare_poncho(path)
    path.unlink()
    call = call_with(environment, environment=True)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_calls_may_precede_maker_of_file(m, tmp_path):
    """The calls of a library may be submitted before the task that makes its file."""
    place = m.declare_file(tmp_path / "made")
    library = m.create_library_from_functions("early", sample_tasks.add, exec_mode="direct")
    library.set_cores(1)
    library.add_input(place, "in")
    m.install_library(library)
    call = FunctionCall("early", "add", 1, 2)
    m.submit(call)
    m.submit(Task("printf made > out", outputs={place: "out"}, cores=1))
    assert m.wait_for_task_id(call.id, PATIENCE_S).output == 3
    assert m.wait(PATIENCE_S).successful()
    m.remove_library("early")


def test_file_vanishing_later_fails_other_calls(local_cluster, tmp_path):
    """A file that goes after one worker has it fails the calls on the next with its path."""
    path = tmp_path / "goes.root"
    path.write_bytes(bytes(300_000))
    with local_cluster.start_manager() as m:
        library = m.create_library_from_functions("reading", sample_tasks.add, exec_mode="direct")
        library.set_cores(1)
        library.add_input(m.declare_file(path, peer_transfer=False), "in")
        m.install_library(library)
        [first] = local_cluster.start_workers(m, 1)
        m.submit(FunctionCall("reading", "add", 1, 2))
        assert m.wait(PATIENCE_S).output == 3
        path.unlink()
        first.kill()
        wait_until(lambda: not m.workers_connected, "the first worker to be gone")
        local_cluster.start_workers(m, 1)
        m.submit(FunctionCall("reading", "add", 1, 2))
        call = m.wait(PATIENCE_S)
        assert call.result == "input missing"
        assert str(path) in str(call.output)


def test_library_file_vanishing_early_fails_calls(m, call_with, tmp_path):
    """A library whose file goes before it is sent fails its calls with its path."""
    path = tmp_path / "goes.root"
    path.write_bytes(bytes(300_000))
    file = m.declare_file(path)
    path.unlink()
    call = call_with(file)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_failed_maker_of_file_fails_calls(m, call_with):
    """A library fails its calls with who was to make its file."""
    temp = m.declare_temp()
    task = Task("exit 3")
    task.add_output(temp, "out")
    call = call_with(temp, before=[task])
    assert call.result == "input missing"
    assert "which makes one of its inputs, has failed: the task did not make out" in str(call.output)
    again = call_with(temp)
    assert again.result == "input missing"


def test_cancelled_maker_of_file_fails_calls(m, run, call_with):
    """A library whose file a cancelled task was to make fails its calls."""
    temp = m.declare_temp()
    task = Task("sleep 600")
    task.add_output(temp, "out")
    m.cancel_by_task_id(m.submit(task))
    assert m.wait(PATIENCE_S) is task
    call = call_with(temp)
    assert call.result == "input missing"
    assert "that task was cancelled" in str(call.output)


def test_unfetchable_url_fails_calls(m, call_with):
    """A library fails its calls with an address that cannot be fetched."""
    call = call_with(m.declare_url("file:///nowhere/at/all"))
    assert call.result == "input missing"
    assert "file:///nowhere/at/all" in str(call.output)


@pytest.mark.parametrize("environment", [False, True])
def test_failing_minitask_fails_calls(m, call_with, environment):
    """A library fails its calls with the mini task that fails."""
    file = m.declare_minitask(Task("exit 4"), "made")
    call = call_with(file, environment=environment)
    assert call.result == "input missing"
    assert "exit code 4" in str(call.output)


def test_invalid_archive_fails_calls(m, call_with):
    """A library fails its calls with an archive that is none."""
    call = call_with(m.declare_untar(m.declare_buffer("no archive")))
    assert call.result == "input missing"


def test_missing_environment_fails_task(m, run, tmp_path):
    """A task whose environment is not there fails with its path."""
    path = tmp_path / "env.tar.gz"
    task = PythonTask(sample_tasks.add, 1, 2)
    task.add_environment(m.declare_file(path))
    assert run(task).result == "input missing"
    assert str(path) in str(task.output)
