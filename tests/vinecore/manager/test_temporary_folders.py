"""Temporary files of calls are in a folder of their slot, which goes with it."""

from __future__ import annotations

import os
import socket
import tempfile

import pytest

from tests.harness.processes import wait_until
from vinecore import FunctionCall


def leave_file(_number):
    handle, path = tempfile.mkstemp()
    os.close(handle)
    return path, tempfile.gettempdir(), os.environ["TMPDIR"], os.getppid()


def make_socket(_number):
    with socket.socket(socket.AF_UNIX) as sock:
        path = os.path.join(tempfile.mkdtemp(), "listener-12345678")
        sock.bind(path)
    return path


def end(_number):
    os._exit(3)


def find_temporary():
    return {"found": tempfile.gettempdir(), "file": tempfile.mkstemp()[1]}


def file_of_context(_number):
    from vinecore import load_variable_from_library

    return load_variable_from_library("file"), tempfile.gettempdir()


def install(m, name, mode, **more):
    functions = leave_file, make_socket, end, file_of_context
    library = m.create_library_from_functions(
        name, *functions, exec_mode=mode, library_context_info=[find_temporary, [], {}], **more
    )
    library.set_cores(4)
    library.set_function_slots(1)
    m.install_library(library)
    return name


@pytest.fixture(scope="module", params=["fork", "direct"])
def library(request, shared_manager):
    yield install(shared_manager, f"temporary-{request.param}", request.param)
    shared_manager.remove_library(f"temporary-{request.param}")


def test_leftovers_of_call_are_in_slots_folder(library, run):
    """What a call leaves is in the folder of its slot."""
    calls = run(*[FunctionCall(library, "leave_file", n) for n in range(3)])
    assert all(call.successful() for call in calls), calls[0].output
    for path, found, variable, _parent in (call.output for call in calls):
        assert os.path.dirname(path) == found == variable
        assert ".vine" in path
    left = [os.path.exists(call.output[0]) for call in calls]
    assert left == [library.endswith("direct")] * 3


def test_it_goes_with_the_slot(library, run):
    call = run(FunctionCall(library, "leave_file", 0))
    last = FunctionCall(library, "end", 0)
    last.set_retries(0)
    run(last)
    wait_until(
        lambda: library.endswith("fork") or not os.path.exists(call.output[1]), "the end of the folder"
    )
    again = run(FunctionCall(library, "leave_file", 1))
    assert os.path.dirname(again.output[0]) == again.output[1]


def test_sockets_can_be_made_in_it(library, run):
    call = run(FunctionCall(library, "make_socket", 0))
    assert call.successful(), call.output


def test_files_of_context_reach_calls(library, run):
    """What a context has made is there for calls."""
    path, folder = run(FunctionCall(library, "file_of_context", 0)).output
    assert os.path.exists(path)
    assert os.path.dirname(path) != folder


def test_removed_library_leaves_nothing(run, m):
    """Nothing is left when the library is removed."""
    name = install(m, "removed", "direct")
    call = run(FunctionCall(name, "leave_file", 0))
    assert call.successful()
    m.remove_library(name)
    wait_until(lambda: not os.path.exists(call.output[0]), "the end of the file")


def test_folder_chosen_by_user_is_used(run, m, tmp_path):
    """A folder that the user has chosen is taken."""
    library = m.create_library_from_functions("chosen", leave_file, exec_mode="fork")
    library.set_cores(1)
    library.set_env_var("TMPDIR", str(tmp_path))
    m.install_library(library)
    assert run(FunctionCall("chosen", "leave_file", 0)).output[1] == str(tmp_path)
    m.remove_library("chosen")
