"""Objects of tasks and files that the program drops, and that are collected at any moment: nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref

import pytest

from tests.harness.processes import PATIENCE_S
from vinecore import FunctionCall, PythonTask, Task

CHAINS, STEPS = 8, 4
# Between two collections in a thread; else the others hardly run.
PAUSE_S = 0.005


def start(number):
    return [number] * 2000


def advance(values, step):
    return [value + step for value in values]


def total(values):
    return sum(values)


@contextlib.contextmanager
def collecting(threads=2):
    """Collect garbage in several threads, all the time; yield how often it was done."""
    over, rounds = threading.Event(), []

    def collect():
        while not over.wait(PAUSE_S):
            gc.collect()
            rounds.append(1)

    collectors = [threading.Thread(target=collect) for _ in range(threads)]
    for collector in collectors:
        collector.start()
    try:
        yield rounds
    finally:
        over.set()
        for collector in collectors:
            collector.join()


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects():
    """Leave out of the collections what was there before: all modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def library(shared_manager):
    made = shared_manager.create_library_from_functions("steps", start, advance, total)
    shared_manager.install_library(made)


def submit_chain(m, number, make, references):
    """Submit tasks that hand a temporary file on; only the manager has the objects afterwards."""
    task = make("start", number)
    task.enable_temp_output()
    for step in range(STEPS):
        m.submit(task)
        references += [weakref.ref(task), weakref.ref(task.output_file)]
        following = make("advance", task.output_file, step)
        following.enable_temp_output()
        del task
        gc.collect()
        task = following
        del following
    m.submit(task)
    last = make("total", task.output_file)
    last.set_tag(str(number))
    m.submit(last)
    references += [weakref.ref(task), weakref.ref(task.output_file), weakref.ref(last)]


def make_python_task(name, *arguments):
    task = PythonTask(globals()[name], *arguments)
    task.set_cores(1)
    return task


def make_call(name, *arguments):
    return FunctionCall("steps", name, *arguments)


@pytest.mark.parametrize("make", [make_python_task, make_call])
def test_dropped_chains_lose_nothing(m, library, make):
    """No task and no value is lost, whenever the objects of tasks and temporary files are collected."""
    references, totals, ended = [], {}, 0
    with collecting() as rounds:
        for number in range(CHAINS):
            submit_chain(m, number, make, references)
        while not m.empty():
            task = m.wait(PATIENCE_S)
            ended += 1
            assert task.successful(), task.error()
            if task.tag:
                totals[int(task.tag)] = task.output
            del task
            gc.collect()
    assert ended == CHAINS * (STEPS + 2)
    assert totals == {number: 2000 * (number + sum(range(STEPS))) for number in range(CHAINS)}
    assert rounds
    # else it was not tested
    assert [reference() for reference in references] == [None] * len(references)


def test_dropped_files_of_commands_stay(m, tmp_path):
    """Temporary files, buffers and outputs of commands outlive their objects in the program."""
    wanted = tmp_path / "out"
    with collecting():
        for number in range(10):
            text, temp = m.declare_buffer(f"{number}\n"), m.declare_temp()
            first = Task("cat in in > out", cores=1)
            first.add_input(text, "in")
            first.add_output(temp, "out")
            second = Task(f"cat in; cp in {'out'}", cores=1)
            second.add_input(temp, "in")
            second.add_output(m.declare_file(wanted / str(number)), "out")
            m.submit(second)
            m.submit(first)
            del text, temp, first, second
            gc.collect()
        while not m.empty():
            assert m.wait(PATIENCE_S).successful()
            gc.collect()
    texts = [(wanted / str(number)).read_text() for number in range(10)]
    assert texts == [f"{number}\n" * 2 for number in range(10)]


def test_file_to_unlink_outlives_its_object(m, tmp_path):
    """A file goes when it is undeclared or the manager ends, and not when its object is collected."""
    place = tmp_path / "input"
    place.write_text("still here")
    reference = weakref.ref(m.declare_file(place, unlink_when_done=True))
    gc.collect()
    assert reference() is None
    task = Task("true", cores=1)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    assert place.read_text() == "still here"


def test_result_of_dropped_task_can_be_read(m):
    """A file of a collected task is read, and used as input, later."""
    task = make_python_task("start", 7)
    task.enable_temp_output()
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    file, reference = task.output_file, weakref.ref(task)
    del task
    gc.collect()
    assert reference() is None
    assert file.value() == start(7)
    last = make_python_task("total", file)
    del file
    m.submit(last)
    with collecting():
        assert m.wait(PATIENCE_S).output == 14000
