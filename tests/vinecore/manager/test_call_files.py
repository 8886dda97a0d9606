"""Files of function calls: each call with files runs in a sandbox of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, Task
from vinecore.protocol import INLINE_LIMIT

MODES = ("fork", "direct")


def join_files(*names):
    text = "".join(Path(name).read_text() for name in names)
    os.makedirs("made", exist_ok=True)
    Path("made/out").write_text(text.upper())
    return text


def list_folder():
    return os.getcwd(), sorted(os.listdir())


def write_and_raise(name):
    Path(name).write_text("evidence")
    raise ValueError(name)


def return_large(size):
    Path("out").write_bytes(b"x" * size)
    return b"y" * size


def write_and_die():
    Path("out").write_text("half")
    os.kill(os.getpid(), 9)


@pytest.fixture(scope="module", params=MODES)
def library(request, shared_manager):
    name = f"files-{request.param}"
    library = shared_manager.create_library_from_functions(
        name,
        join_files,
        list_folder,
        write_and_raise,
        return_large,
        write_and_die,
        sample_tasks.add,
        exec_mode=request.param,
    )
    library.set_cores(1)
    library.set_function_slots(1)
    common = shared_manager.declare_buffer("of the library\n")
    common.set_mode(0o640)
    library.add_input(common, "lib/common")
    shared_manager.install_library(library)
    yield name
    shared_manager.remove_library(name)


def test_call_reads_and_writes_files(m, run, library):
    """A call finds its inputs and those of its library by their names, and its output comes home."""
    call = FunctionCall(library, "join_files", "own/data", "lib/common")
    call.add_input(m.declare_buffer("own\n"), "own/data")
    made = m.declare_buffer()
    call.add_output(made, "made/out")
    assert run(call).output == "own\nof the library\n"
    assert made.contents() == b"OWN\nOF THE LIBRARY\n"
    assert call.successful()


def test_many_calls_keep_their_files_apart(m, run, library):
    files = [m.declare_buffer() for _ in range(20)]
    calls = []
    for number, file in enumerate(files):
        call = FunctionCall(library, "join_files", "data")
        call.add_input(m.declare_buffer(f"number {number}"), "data")
        call.add_output(file, "made/out")
        calls += [call, FunctionCall(library, "add", number, 1)]
    values = [call.output for call in run(*calls)]
    assert values[::2] == [f"number {number}" for number in range(20)]
    assert values[1::2] == list(range(1, 21))
    assert [file.contents() for file in files] == [f"NUMBER {number}".encode() for number in range(20)]


def test_sandbox_is_empty_and_gone_afterwards(m, run, library):
    """A later call without files runs in the folder of the library, and nothing is left of the sandbox."""
    call = FunctionCall(library, "list_folder")
    call.add_input(m.declare_buffer("x"), "data")
    folder, names = run(call).output
    assert names == ["data", "lib"]
    home, _names = run(FunctionCall(library, "list_folder")).output
    assert home != folder
    wait_until(lambda: not os.path.exists(folder), "the sandbox to be removed")


def test_output_stays_on_worker_for_next_task(m, run, library):
    made, call = m.declare_temp(), FunctionCall(library, "join_files", "lib/common")
    call.add_output(made, "made/out")
    reader = Task("cat data")
    reader.set_cores(1)
    reader.add_input(made, "data")
    assert run(call, reader)[1].output == "OF THE LIBRARY\n"


def test_missing_output_fails_call(m, run, library):
    call = FunctionCall(library, "add", 1, 2)
    call.add_output(m.declare_buffer(), "nothing")
    run(call)
    assert call.result == "output missing"
    assert not call.successful()
    assert "nothing" in str(call.error())


def test_raising_call_keeps_its_exception(m, run, library):
    call = FunctionCall(library, "write_and_raise", "out")
    call.add_output(m.declare_buffer(), "out")
    assert isinstance(run(call).output, ValueError)
    assert not call.successful()


def test_large_result_and_output_both_arrive(m, run, library):
    size = 3 * INLINE_LIMIT
    call, made = FunctionCall(library, "return_large", size), m.declare_buffer()
    call.add_output(made, "out")
    assert run(call).output == b"y" * size
    assert made.contents() == b"x" * size


def test_unusable_input_fails_call_alone(m, run, library):
    """Two inputs of one name cannot be put in place; the slot goes on with other calls."""
    call = FunctionCall(library, "list_folder")
    call.add_input(m.declare_buffer("a"), "data")
    call.add_input(m.declare_buffer("b"), "data")
    other = FunctionCall(library, "add", 1, 2)
    run(call, other)
    assert call.result == "input missing"
    assert "'data' is taken" in str(call.error())
    assert other.output == 3


def test_call_that_dies_is_reported(m, run, library):
    call = FunctionCall(library, "write_and_die")
    call.add_output(m.declare_buffer(), "out")
    call.set_retries(0)
    run(call)
    assert call.result == "forsaken"
    assert run(FunctionCall(library, "add", 1, 2)).output == 3


def test_cancelled_call_leaves_no_file(m, run, library, tmp_path):
    """A call that is cancelled while it runs makes nothing, and its sandbox goes."""
    sandbox, out = tmp_path / "sandbox", m.declare_buffer()
    held = m.create_library_from_functions(f"held-{library}", hold, exec_mode=library[6:])
    held.set_cores(1)
    m.install_library(held)
    call = FunctionCall(held.name, "hold", str(sandbox))
    call.add_output(out, "out")
    m.submit(call)
    wait_until(sandbox.exists, "the call to run")
    m.cancel_by_task_id(call.id)
    assert m.wait(PATIENCE_S).result == "cancelled"
    folder = sandbox.read_text()
    wait_until(lambda: not os.path.exists(folder), "the sandbox to be removed")
    m.remove_library(held.name)


def hold(path):
    import time

    Path("out").write_text("half")
    Path(path + ".new").write_text(os.getcwd())
    os.rename(path + ".new", path)
    time.sleep(600)
