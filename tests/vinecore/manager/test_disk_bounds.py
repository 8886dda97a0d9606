"""What a task writes counts against its disk, wherever the file's name is."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task

MB = 1 << 20


def return_much():
    return bytes(30 * MB)


def return_a_little():
    return bytes(MB)


def fill_nameless_file():
    with tempfile.TemporaryFile() as file:
        file.write(bytes(30 * MB))
        file.flush()
        time.sleep(600)


def fill_temporary_file(told):
    handle, path = tempfile.mkstemp()
    Path(told).write_text(path)
    os.write(handle, bytes(30 * MB))
    time.sleep(600)


def make_file_larger_than_the_disk(told):
    handle, path = tempfile.mkstemp()
    Path(told).write_text(path)
    os.truncate(handle, 1 << 40)  # which takes nothing, and counts
    time.sleep(600)


def leave_temporary_file():
    handle, path = tempfile.mkstemp()
    os.write(handle, bytes(30 * MB))
    os.close(handle)
    return path


def wait_for(gate):
    while not os.path.exists(gate):
        time.sleep(0.01)
    return os.getpid()


NAMELESS = "exec 3> big; rm big; head -c 30000000 /dev/zero >&3; exec sleep 600"
BEYOND = {
    "result": lambda: PythonTask(return_much),
    "file without a name": lambda: PythonTask(fill_nameless_file),
    "file of a command without a name": lambda: Task(NAMELESS),
}


@pytest.mark.parametrize("make", BEYOND.values(), ids=BEYOND)
def test_excess_is_reported_with_limit(run, make):
    """What is too much is told with the limit."""
    task = make()
    task.set_cores(1)
    task.set_disk(10)
    run(task)
    assert task.result == "resource exhaustion"
    assert "of disk, its limit is 10 MB" in str(task.error())


def test_result_within_limit_succeeds(run):
    """A result within the limit is as any other."""
    task = PythonTask(return_a_little)
    task.set_cores(1)
    task.set_disk(10)
    assert run(task).output == bytes(MB)


FUNCTIONS = (
    fill_temporary_file, make_file_larger_than_the_disk, fill_nameless_file, leave_temporary_file, return_a_little, wait_for,
)  # fmt: skip


def install(m, name, mode, disk):
    library = m.create_library_from_functions(name, *FUNCTIONS, exec_mode=mode)
    library.set_cores(4)
    library.set_function_slots(2)
    if disk:
        library.set_disk(disk)
    m.install_library(library)
    return name


@pytest.fixture(scope="module", params=["fork", "direct"])
def bounded(request, shared_manager):
    yield install(shared_manager, f"bounded-{request.param}", request.param, 10)
    shared_manager.remove_library(f"bounded-{request.param}")


def test_overwriting_call_fails_and_is_cleaned(bounded, run, tmp_path, m):
    """The call whose slot writes too much fails and what it has written goes."""
    gate, told = tmp_path / "gate", tmp_path / "told"
    beside = FunctionCall(bounded, "wait_for", str(gate))
    m.submit(beside)
    call = run(FunctionCall(bounded, "fill_temporary_file", str(told)))
    assert call.result == "resource exhaustion"
    assert "of disk, its limit is 10 MB" in str(call.output)
    assert "lib_resources" in str(call.output)
    wait_until(lambda: not os.path.exists(told.read_text()), "the end of what it has written")
    gate.touch()
    assert m.wait(PATIENCE_S) is beside
    assert beside.successful(), beside.output


def test_unlinked_open_files_of_calls_count(bounded, run):
    """Open files of calls without a name count."""
    call = run(FunctionCall(bounded, "fill_nameless_file"))
    assert call.result == "resource exhaustion"
    assert run(FunctionCall(bounded, "return_a_little")).output == bytes(MB)


def test_leftovers_of_calls_go_when_idle(m, run):
    """What calls have left goes although no call runs."""
    name = install(m, "left", "direct", 10)
    call = run(FunctionCall(name, "leave_temporary_file"))
    assert call.successful(), call.output
    wait_until(lambda: not os.path.exists(call.output), "the end of what it has left")
    assert run(FunctionCall(name, "return_a_little")).output == bytes(MB)
    m.remove_library(name)


def test_library_without_request_uses_workers_disk(m, run, tmp_path):
    """A library that asks for no disk has that of the worker."""
    name = install(m, "unbounded", "direct", None)
    call = run(FunctionCall(name, "make_file_larger_than_the_disk", str(tmp_path / "told")))
    assert call.result == "resource exhaustion"
    assert "its limit is 2000 MB" in str(call.output)
    m.remove_library(name)
