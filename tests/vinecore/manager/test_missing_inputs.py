"""What is to be read and cannot be had fails whoever needs it, at once and by its own name; nothing waits for ever."""

from __future__ import annotations

import os

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import wait_until
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
def test_a_library_whose_file_is_not_there_fails_its_calls_with_its_path(m, call_with, tmp_path, environment):
    path = tmp_path / "mist9.root"
    call = call_with(m.declare_file(path), environment=environment)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_a_library_whose_environment_is_an_archive_that_is_not_there_fails_its_calls_with_its_path(
    m, call_with, tmp_path
):
    path = tmp_path / "packed.tar.gz"
    call = call_with(m.declare_poncho(m.declare_file(path)), environment=True)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_a_library_whose_environment_goes_before_it_is_sent_fails_its_calls_with_its_path(
    m, call_with, tmp_path
):
    path = tmp_path / "packed.tar.gz"
    path.write_bytes(os.urandom(300_000))
    environment = m.declare_poncho(path)
    path.unlink()
    call = call_with(environment, environment=True)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_the_calls_of_a_library_may_be_submitted_before_the_task_that_makes_its_file(m, tmp_path):
    place = m.declare_file(tmp_path / "made")
    library = m.create_library_from_functions("early", sample_tasks.add, exec_mode="direct")
    library.set_cores(1)
    library.add_input(place, "in")
    m.install_library(library)
    call = FunctionCall("early", "add", 1, 2)
    m.submit(call)
    m.submit(Task("printf made > out", outputs={place: "out"}, cores=1))
    assert m.wait_for_task_id(call.id, 60).output == 3
    assert m.wait(60).successful()
    m.remove_library("early")


def test_a_file_that_goes_after_one_worker_has_it_fails_the_calls_on_the_next_with_its_path(
    local_cluster, tmp_path
):
    path = tmp_path / "goes.root"
    path.write_bytes(bytes(300_000))
    with local_cluster.start_manager() as m:
        library = m.create_library_from_functions("reading", sample_tasks.add, exec_mode="direct")
        library.set_cores(1)
        library.add_input(m.declare_file(path, peer_transfer=False), "in")
        m.install_library(library)
        [first] = local_cluster.start_workers(m, 1)
        m.submit(FunctionCall("reading", "add", 1, 2))
        assert m.wait(60).output == 3
        path.unlink()
        first.kill()
        wait_until(lambda: not m.workers_connected, "the first worker to be gone")
        local_cluster.start_workers(m, 1)
        m.submit(FunctionCall("reading", "add", 1, 2))
        call = m.wait(60)
        assert call.result == "input missing"
        assert str(path) in str(call.output)


def test_a_library_whose_file_goes_before_it_is_sent_fails_its_calls_with_its_path(m, call_with, tmp_path):
    path = tmp_path / "goes.root"
    path.write_bytes(bytes(300_000))
    file = m.declare_file(path)
    path.unlink()
    call = call_with(file)
    assert call.result == "input missing"
    assert str(path) in str(call.output)


def test_a_library_fails_its_calls_with_who_was_to_make_its_file(m, call_with):
    temp = m.declare_temp()
    task = Task("exit 3")
    task.add_output(temp, "out")
    call = call_with(temp, before=[task])
    assert call.result == "input missing"
    assert "which makes one of its inputs, has failed: the task did not make out" in str(call.output)
    again = call_with(temp)
    assert again.result == "input missing"


def test_a_library_whose_file_a_cancelled_task_was_to_make_fails_its_calls(m, run, call_with):
    temp = m.declare_temp()
    task = Task("sleep 600")
    task.add_output(temp, "out")
    m.cancel_by_task_id(m.submit(task))
    assert m.wait(60) is task
    call = call_with(temp)
    assert call.result == "input missing"
    assert "that task was cancelled" in str(call.output)


def test_a_library_fails_its_calls_with_an_address_that_cannot_be_fetched(m, call_with):
    call = call_with(m.declare_url("file:///nowhere/at/all"))
    assert call.result == "input missing"
    assert "file:///nowhere/at/all" in str(call.output)


@pytest.mark.parametrize("environment", [False, True])
def test_a_library_fails_its_calls_with_the_mini_task_that_fails(m, call_with, environment):
    file = m.declare_minitask(Task("exit 4"), "made")
    call = call_with(file, environment=environment)
    assert call.result == "input missing"
    assert "exit code 4" in str(call.output)


def test_a_library_fails_its_calls_with_an_archive_that_is_none(m, call_with):
    call = call_with(m.declare_untar(m.declare_buffer("no archive")))
    assert call.result == "input missing"


def test_a_task_whose_environment_is_not_there_fails_with_its_path(m, run, tmp_path):
    path = tmp_path / "env.tar.gz"
    task = PythonTask(sample_tasks.add, 1, 2)
    task.add_environment(m.declare_file(path))
    assert run(task).result == "input missing"
    assert str(path) in str(task.output)
