"""Outputs that a program can follow while their tasks run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task


def small(task):
    task.set_cores(1)
    return task


def write_in_steps(gate):
    with open("out", "w") as out:
        out.write("first\n")
        out.flush()
        while not Path(gate).exists():
            time.sleep(0.01)
        out.write("second\n")


SHELL = "echo first > out; while ! [ -e {gate} ]; do sleep 0.01; done; echo second >> out; "


def make_task(kind, m, gate):
    if kind == "python":
        return small(PythonTask(write_in_steps, gate))
    if kind == "call":
        library = m.create_library_from_functions("writing", write_in_steps)
        library.set_cores(1)
        m.install_library(library)
        return FunctionCall("writing", "write_in_steps", gate)
    return small(Task(SHELL.format(gate=gate)))


@pytest.mark.parametrize("kind", ["command", "python", "call"])
def test_watched_output_is_there_while_task_runs(m, tmp_path, kind):
    """What a task has written is in the file before it ends, and then all of it."""
    path, gate = tmp_path / "below" / "out", tmp_path / "gate"
    task = make_task(kind, m, str(gate))
    task.add_output(m.declare_file(path), "out", watch=True)
    m.submit(task)
    wait_until(path.exists, "the beginning of the output")
    assert wait_until(path.read_text) == "first\n"
    assert task.state == "READY"
    gate.touch()
    assert m.wait(PATIENCE_S) is task
    assert task.successful()
    assert path.read_text() == "first\nsecond\n"


def test_output_made_anew_is_followed_from_start(m, tmp_path):
    path, gate = tmp_path / "out", tmp_path / "gate"
    again = f"while ! [ -e {gate}.2 ]; do sleep 0.01; done; echo new > out; "
    end = f"while ! [ -e {gate}.3 ]; do sleep 0.01; done"
    task = small(Task(SHELL.format(gate=gate) + again + end))
    task.add_output(m.declare_file(path), "out", True)
    m.submit(task)
    wait_until(path.exists, "the beginning of the output")
    gate.touch()
    wait_until(lambda: path.read_text() == "first\nsecond\n", "what was appended")
    Path(f"{gate}.2").touch()
    wait_until(lambda: path.read_text() == "new\n", "what was written instead")
    Path(f"{gate}.3").touch()
    assert m.wait(PATIENCE_S) is task
    assert path.read_text() == "new\n"


def test_other_outputs_come_at_the_end(m, tmp_path):
    """Without `watch` nothing is at the path before the task has ended."""
    path, watched, gate = tmp_path / "out", tmp_path / "watched", tmp_path / "gate"
    task = small(Task("echo other > other; " + SHELL.format(gate=gate)))
    task.add_output(m.declare_file(path), "other")
    task.add_output(m.declare_file(watched), "out", watch=True)
    m.submit(task)
    wait_until(watched.exists, "the watched output")
    assert not path.exists()
    gate.touch()
    assert m.wait(PATIENCE_S) is task
    assert path.read_text() == "other\n"


def test_watched_output_after_lost_worker_is_exact(local_cluster):
    """A second attempt writes the file anew."""
    m, path, gate = local_cluster.start_manager(), local_cluster.path("out"), local_cluster.path("gate")
    [worker] = local_cluster.start_workers(m, 1)
    task = small(Task("echo $PPID > out; " + SHELL.format(gate=gate).replace("> out", ">> out", 1)))
    task.add_output(m.declare_file(path), "out", watch=True)
    m.submit(task)
    before = wait_until(lambda: path.exists() and path.read_text(), "the beginning of the output")
    worker.kill()
    local_cluster.start_worker(m)
    wait_until(lambda: path.read_text() not in ("", before), "the second attempt")
    gate.touch()
    assert m.wait(PATIENCE_S) is task
    first, *rest = path.read_text().splitlines()
    assert first != before.splitlines()[0]
    assert rest == ["first", "second"]
