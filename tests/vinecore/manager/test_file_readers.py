"""What a file says of itself, with a real worker where that matters."""

from __future__ import annotations

import json
import pickle
import stat

import pytest
from vineworker.storage.file_stamps import MIN_LINKED_BYTES

from tests.harness.processes import PATIENCE_S
from vinecore import PythonTask, Task, constants
from vinecore.protocol import INLINE_LIMIT

PROGRAM = "#!/bin/sh\necho it runs\n"


def test_files_tell_source_and_type(m, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    archive = m.declare_file(tmp_path / "a.tar")
    files = {
        constants.VINE_FILE: (archive, str(tmp_path / "a.tar")),
        constants.VINE_URL: (m.declare_url("file:///etc/hostname"), "file:///etc/hostname"),
        constants.VINE_TEMP: (m.declare_temp(), ""),
        constants.VINE_BUFFER: (m.declare_buffer("x"), ""),
        constants.VINE_MINI_TASK: (m.declare_untar(archive), str(tmp_path / "a.tar")),
    }
    for number, (file, source) in files.items():
        assert (file.type(), file.source()) == (number, source)


def test_empty_file_is_true(m):
    """An empty file has no bytes, and is a file."""
    file = m.declare_buffer("")
    assert (len(file), bool(file)) == (0, True)


@pytest.mark.parametrize("read", [pickle.load, pickle.loads])
def test_contents_are_bytes_or_file(m, read):
    """A function that reads a file works like one that takes bytes."""
    value = {"numbers": list(range(1000)), "text": "line\nline"}
    assert m.declare_buffer(pickle.dumps(value, protocol=0)).contents(read) == value
    assert m.declare_buffer(pickle.dumps(value)).contents(read) == value


def test_contents_without_function_are_bytes(m):
    file = m.declare_buffer(json.dumps([1, 2]))
    assert type(file.contents()) is bytes
    assert file.contents(json.loads) == file.contents(json.load) == [1, 2]


@pytest.mark.parametrize("symlink", [False, True])
@pytest.mark.parametrize("padding", [0, INLINE_LIMIT, MIN_LINKED_BYTES])
def test_mode_is_that_of_the_task(run, m, symlink, padding):
    """A program without the bit to execute runs, and others still find it as it was."""
    program = m.declare_buffer(PROGRAM + "#" * padding, cache=True)
    same = m.declare_buffer(PROGRAM + "#" * padding, cache=True)
    plain = Task("./program || true", cores=1)
    plain.add_input(same, "program", mount_symlink=symlink)
    run(plain)
    program.set_mode(0o755)
    changed = Task("stat -c %a program; ./program", cores=1)
    changed.add_input(program, "program", mount_symlink=symlink)
    run(changed)
    run(plain)
    assert "it runs" not in plain.output
    assert changed.output == "755\nit runs\n"


def test_mode_of_minitask_file_is_set(run, m):
    """As TaskVine's own test does it: a command makes a program, and a task runs it."""
    make = Task(f"printf '{PROGRAM.encode('unicode_escape').decode()}' > made")
    program = m.declare_minitask(make, "made")
    program.set_mode(0o700)
    task = Task("./program", cores=1)
    task.add_input(program, "program")
    assert run(task).output == "it runs\n"


def test_mode_holds_for_python_tasks(run, m):
    def find_mode(path):
        import os

        return os.stat(path).st_mode

    file = m.declare_buffer("x")
    file.set_mode(0o444)
    task = PythonTask(find_mode, "in")
    task.add_input(file, "in")
    assert stat.S_IMODE(run(task).output) == 0o444


@pytest.mark.parametrize("mode", [0o1000, -1, "755", 7.5])
def test_wrong_mode_is_refused(m, mode):
    with pytest.raises((TypeError, ValueError), match="mode="):
        m.declare_buffer("x").set_mode(mode)


def test_value_file_is_a_plain_pickle(run, m):
    """A program of the user's can load what a function has returned."""
    first = PythonTask(dict, numbers=[1, 2], text="three")
    first.set_cores(1)
    first.enable_temp_output()
    run(first)

    def load(path):
        import pickle

        with open(path, "rb") as file:
            return pickle.load(file)

    second = PythonTask(load, "value")
    second.set_cores(1)
    second.add_input(first.output_file, "value")
    m.submit(second)
    assert m.wait(PATIENCE_S).output == {"numbers": [1, 2], "text": "three"}
    assert first.output_file.contents(pickle.load) == second.output
