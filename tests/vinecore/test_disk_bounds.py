"""What a task writes counts against its disk, wherever the file's name is."""

from __future__ import annotations

import tempfile
import time

import pytest

from vinecore import PythonTask, Task

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


NAMELESS = "exec 3> big; rm big; head -c 30000000 /dev/zero >&3; exec sleep 600"
BEYOND = {
    "result": lambda: PythonTask(return_much),
    "file without a name": lambda: PythonTask(fill_nameless_file),
    "file of a command without a name": lambda: Task(NAMELESS),
}


@pytest.mark.parametrize("make", BEYOND.values(), ids=BEYOND)
def test_what_is_too_much_is_told_with_the_limit(run, make):
    task = make()
    task.set_cores(1)
    task.set_disk(10)
    run(task)
    assert task.result == "resource exhaustion"
    assert "of disk, its limit is 10 MB" in str(task.error())


def test_a_result_within_the_limit_is_as_any_other(run):
    task = PythonTask(return_a_little)
    task.set_cores(1)
    task.set_disk(10)
    assert run(task).output == bytes(MB)
