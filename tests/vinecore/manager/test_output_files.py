"""Results of Python tasks as files: at the manager, on workers, and as inputs of other tasks."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import scheduler_state, wait_until
from vinecore import FunctionCall, PythonTask, Task, constants
from vinecore.protocol import INLINE_LIMIT

SIZES = [100, 3 * INLINE_LIMIT]


@pytest.fixture(scope="module")
def library(shared_manager):
    made = shared_manager.create_library_from_functions("maker", sample_tasks.make_bytes)
    shared_manager.install_library(made)
    return "maker"


def make_task(kind, library, size):
    if kind == "call":
        return FunctionCall(library, "make_bytes", size)
    task = PythonTask(sample_tasks.make_bytes, size)
    task.set_cores(1)
    return task


def count_bytes(file):
    """Return a command that tells the size of a file."""
    task = Task("wc -c < value", cores=1)
    task.add_input(file, "value")
    return task


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["task", "call"])
def test_cached_output_is_file_and_value(m, run, library, kind, size):
    """The value, the path, and the input of another task are the same bytes."""
    task = make_task(kind, library, size)
    task.set_output_cache(True)
    assert task.output_file is None
    m.submit(task)
    assert task.output_file.type() == constants.VINE_FILE
    assert m.wait_for_task_id(task.id) is task
    value = sample_tasks.make_bytes(size)
    assert pickle.loads(Path(task.output_file.source()).read_bytes()) == value
    assert task.output == value
    assert m.get_file_replica_count(task.output_file) == 1
    reader = PythonTask(sample_tasks.length, task.output_file)
    assert run(reader).output == len(value)
    written = os.path.getsize(task.output_file.source())
    assert int(run(count_bytes(task.output_file)).output) == written
    m.undeclare_file(task.output_file)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_read_before", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_output_becomes_file_when_asked(run, size, is_read_before, raw):
    """Without a word before, the result of an ended task is a file as well, even after it was read."""
    task = make_task("task", "", size)
    if raw:
        task.disable_output_serialization()
    assert task.output_file is None
    run(task)
    value = sample_tasks.make_bytes(size)
    if is_read_before:
        assert task.output == value
    content = Path(task.output_file.source()).read_bytes()
    assert (content if raw else pickle.loads(content)) == value
    assert int(run(count_bytes(task.output_file)).output) == len(content)
    assert task.output == value


def test_failed_task_has_no_output_file(run):
    task = PythonTask(sample_tasks.length, 5)
    task.set_cores(1)
    run(task)
    assert isinstance(task.output, TypeError)
    assert task.output_file is None


def test_path_before_the_end_is_refused(m, run):
    task = PythonTask(sample_tasks.make_bytes, 10)
    task.set_output_cache("workflow")
    task.set_cores(5)
    m.submit(task)
    with pytest.raises(FileNotFoundError, match="wait for its task"):
        task.output_file.source()


def test_resubmitted_task_has_a_new_file(run):
    task = make_task("task", "", 10)
    task.set_output_cache(constants.VINE_CACHE_LEVEL_WORKFLOW)
    first = run(task).output_file
    second = run(task).output_file
    assert first.cache_name != second.cache_name
    assert first.contents() == second.contents()


def test_temp_output_has_no_path(run):
    task = make_task("task", "", 10)
    task.enable_temp_output()
    run(task)
    assert (task.output_file.type(), task.output_file.source()) == (constants.VINE_TEMP, "")


def test_temp_output_can_be_disabled(m, run):
    """The value comes home again, and is not kept on the worker."""
    task = make_task("task", "", 10)
    task.enable_temp_output()
    task.disable_temp_output()
    run(task)
    assert task.output == sample_tasks.make_bytes(10)
    assert m.get_file_replica_count(task.output_file) == 0


def test_unknown_cache_level_of_output_is_refused():
    with pytest.raises(ValueError, match="is not a cache level"):
        PythonTask(len).set_output_cache("always")


def count_objects(m):
    """Return how many functions and other shared objects the scheduler knows."""
    return scheduler_state(
        m, lambda scheduler: sum(name.startswith("object-") for name in scheduler.state.files)
    )


def test_undeclared_function_is_forgotten(m, run):
    """It is gone from manager and workers, and is sent again when a task needs it."""

    def double(number):
        return 2 * number

    before = count_objects(m)
    for number in (4, 5):
        task = PythonTask(double, number)
        task.set_cores(1)
        assert run(task).output == 2 * number
        assert count_objects(m) == before + 1
        m.undeclare_function(double)
        wait_until(lambda: count_objects(m) == before, "the function to be forgotten")
    m.undeclare_function(double)
