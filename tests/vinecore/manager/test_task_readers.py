"""What a task says of its end, with a real worker: result, exit code, resources, times, bytes."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, scheduler_state
from vinecore import (
    FunctionCall,
    PythonTask,
    PythonTaskNoResult,
    Task,
    constants,
)
from vinecore.constants import ResultCode

MB = 1 << 20


def small(task):
    """Let other tasks run beside it."""
    task.set_cores(1)
    return task


def raises(text):
    raise ValueError(text)


def dies():
    os._exit(3)


def hoards():
    held = [bytearray(MB) for _ in range(400)]
    time.sleep(1000)
    return len(held)


def make_limited(m):
    task = small(PythonTask(hoards))
    task.set_memory(100)
    return task


def make_slow(m):
    return small(Task("sleep 1000", time_max=0.2))


def make_without_input(m):
    task = small(Task("cat in"))
    task.add_input(m.declare_file("/nonexistent/vine-input"), "in")
    return task


def make_without_output(m):
    task = small(Task("true"))
    task.add_output(m.declare_temp(), "out")
    return task


def make_undeliverable(m, tmp_path):
    task = small(Task("echo x > out"))
    task.add_output(m.declare_file(tmp_path), "out")
    return task


def make_crashing(m):
    task = small(PythonTask(dies))
    task.set_retries(0)
    return task


def make_unstartable(m):
    return small(Task("true", env={f"LONG{number}": "x" * 100_000 for number in range(40)}))


ENDS = {
    "success": (lambda m: small(Task("true")), "success", 0),
    "exit code": (lambda m: small(Task("exit 3")), "success", 3),
    "signal": (lambda m: small(Task("kill -TERM $$")), "signal", signal.SIGTERM),
    "exception": (lambda m: small(PythonTask(raises, "no luck")), "success", 1),
    "time": (make_slow, "max wall time", 9),
    "memory": (make_limited, "resource exhaustion", 9),
    "input": (make_without_input, "input missing", -1),
    "output": (make_without_output, "output missing", 0),
    "crash": (make_crashing, "forsaken", -1),
    "arguments": (make_unstartable, "forsaken", -1),
}


@pytest.mark.parametrize("end", ENDS)
def test_end_has_its_result_and_code(m, run, end):
    make, text, code = ENDS[end]
    task = run(make(m))
    constant = getattr(constants, f"VINE_RESULT_{text.upper().replace(' ', '_')}")
    assert (task.result, task.exit_code, task.return_status) == (text, code, code)
    assert task.result == constant
    assert constant == task.result
    assert [int(task.result)] == [number for number in ResultCode if task.result == number]
    assert task.completed() is (text == "success")
    assert task.successful() is (text == "success" and code == 0)


def test_output_that_cannot_be_written_is_told(m, run, tmp_path):
    task = run(make_undeliverable(m, tmp_path))
    assert (task.result, task.exit_code) == ("output transfer error", 0)
    assert task.result == constants.VINE_RESULT_OUTPUT_TRANSFER_ERROR


def test_cancelled_task_says_so(m):
    task = small(Task("sleep 1000"))
    m.cancel_by_task_id(m.submit(task))
    assert m.wait(PATIENCE_S) is task
    assert (task.result, task.exit_code, task.successful()) == ("cancelled", -1, False)
    assert task.result == constants.VINE_RESULT_CANCELLED


def test_call_of_broken_library_says_so(m, run):
    library = m.create_library_from_functions("broken", abs, library_context_info=[raises, ["no"], {}])
    m.install_library(library)
    task = run(FunctionCall("broken", "abs", 1))
    assert (task.result, task.exit_code) == ("missing library", -1)
    assert task.result == constants.VINE_RESULT_MISSING_LIBRARY
    assert str(task.output) == "no"
    m.remove_library("broken")


def test_call_that_raises_has_exit_code_one(m, run):
    m.install_library(m.create_library_from_functions("raising", raises))
    task = run(FunctionCall("raising", "raises", "no luck"))
    assert (task.result, task.exit_code, task.successful()) == ("success", 1, False)
    assert type(task.output) is ValueError
    m.remove_library("raising")


def test_output_without_result_has_its_class(run):
    """An exception of the function is the output; what else goes wrong leaves no result."""
    task = run(make_crashing(None))
    assert isinstance(task.output, PythonTaskNoResult)
    assert "exited with code 3" in str(task.output)
    assert task.output.__cause__ is not None
    task = run(small(PythonTask(raises, "no luck")))
    assert type(task.output) is ValueError
    assert not isinstance(task.output, PythonTaskNoResult)


def test_resources_are_objects_and_mappings(run):
    task = Task("sleep 0.3", cores=1, memory=300, disk=200)
    assert (task.resources_requested.cores, task.resources_requested.memory) == (1, 300)
    assert task.resources_requested.gpus == -1
    assert not task.resources_measured
    assert task.resources_allocated.cores == -1
    run(task)
    allocated, measured = task.resources_allocated, task.resources_measured
    assert (allocated.cores, allocated.memory, allocated.disk, allocated.gpus) == (1, 300, 200, 0)
    assert allocated["memory"] == 300
    assert measured.wall_time >= 0.3
    assert measured.memory == measured["memory"] >= 1
    assert measured.max_concurrent_processes >= 1
    assert measured.end - measured.start == pytest.approx(measured.wall_time, abs=1e-3)
    assert measured.virtual_memory == -1
    assert "virtual_memory" not in measured
    with pytest.raises(AttributeError, match="it has cores"):
        _ = measured.coers


def test_limits_exceeded_names_the_limit(m, run):
    slow, limited, fine = run(make_slow(m), make_limited(m), small(Task("true")))
    assert slow.limits_exceeded.wall_time == 0.2
    assert slow.limits_exceeded.memory == -1
    assert dict(limited.limits_exceeded) == {"memory": 100}
    assert fine.limits_exceeded is None


def test_place_is_known_after_the_end(m, run):
    task = small(Task("hostname"))
    assert (task.hostname, task.addrport, task.manager) == ("", "", None)
    run(task)
    assert task.manager is m
    assert task.hostname == m.summarize_workers()[0]["host"]
    host, _, port = task.addrport.rpartition(":")
    assert host in ("127.0.0.1", "[::1]")
    assert int(port) > 1023


def test_times_follow_each_other(run):
    before = time.time() * 1e6
    task = small(Task("sleep 0.3; echo x > out"))
    with pytest.raises(ValueError, match="use one of time_when_submitted"):
        task.get_metric("time")
    assert task.get_metric("time_when_submitted") == task.get_metric("bytes_sent") == 0
    run(task)
    names = ("submitted", "commit_start", "commit_end", "retrieval", "done")
    times = [task.get_metric(f"time_when_{name}") for name in names]
    moments = [before, *times, time.time() * 1e6]
    assert moments == sorted(moments)
    assert times[3] - times[1] >= 300_000
    last = task.get_metric("time_workers_execute_last")
    assert 300_000 <= last <= times[3] - times[1]
    assert task.get_metric("time_workers_execute_all") == last
    assert task.get_metric("time_workers_execute_failure") == 0
    assert task.get_metric("time_workers_execute_exhaustion") == 0


def test_times_of_bad_attempts_are_told(m, run):
    slow, limited = run(make_slow(m), make_limited(m))
    assert slow.get_metric("time_workers_execute_failure") >= 200_000
    assert slow.get_metric("time_workers_execute_all") == slow.get_metric("time_workers_execute_last")
    exhausted = limited.get_metric("time_workers_execute_exhaustion")
    assert exhausted == limited.get_metric("time_workers_execute_all") > 0
    assert limited.get_metric("time_workers_execute_failure") == 0


def test_lost_attempts_count_as_failures(m, run, tmp_path):
    crashing = small(PythonTask(sample_tasks.dies_once, str(tmp_path), "once"))
    run(crashing)
    assert crashing.output == "once"
    failed = crashing.get_metric("time_workers_execute_failure")
    assert failed > 0
    last = crashing.get_metric("time_workers_execute_last")
    assert crashing.get_metric("time_workers_execute_all") == pytest.approx(failed + last, abs=2)


def test_bytes_of_files_are_counted(m, run, tmp_path):
    (tmp_path / "in").write_bytes(bytes(3 * MB))
    file, out = m.declare_file(tmp_path / "in", cache=True), m.declare_file(tmp_path / "out")
    first, second = small(Task("head -c 1000000 in > out")), small(Task("true"))
    for task in (first, second):
        task.add_input(file, "in")
    first.add_output(out, "out")
    run(first)
    run(second)
    metrics = [first.get_metric(f"bytes_{name}") for name in ("sent", "received", "transferred")]
    assert metrics == [3 * MB, 1_000_000, 3 * MB + 1_000_000]
    # the file was there already
    assert second.get_metric("bytes_transferred") == 0


def test_bytes_of_shared_file_count_once(m, tmp_path):
    """Of two tasks that start together, one accounts for the file that both read."""
    # of another content than other tests have left in the worker's cache
    (tmp_path / "shared").write_bytes(b"s" * (3 * MB))
    file = m.declare_file(tmp_path / "shared", cache=True)
    tasks = [small(Task("wc -c < in")), small(Task("wc -c < in"))]
    for task in tasks:
        task.add_input(file, "in")
    scheduler_state(m, lambda _scheduler: [m.submit(task) for task in tasks])
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == set(tasks)
    assert [task.output.strip() for task in tasks] == [str(3 * MB)] * 2
    assert sum(task.get_metric("bytes_sent") for task in tasks) == 3 * MB


def test_large_value_counts_as_received(run):
    task = run(small(PythonTask(bytes, 2 * MB)))
    assert 2 * MB <= task.get_metric("bytes_received") < 3 * MB
    assert task.get_metric("bytes_sent") > 0


class SelfCompleting(Task):
    """Declares its own input when it is submitted."""

    def __init__(self, text):
        super().__init__("cat in")
        self.text = text

    def submit_finalize(self):
        self.add_input(self.manager.declare_buffer(self.text), "in")
        super().submit_finalize()


def test_task_is_completed_before_it_is_registered(m, run):
    task = small(SelfCompleting("from the hook"))
    run(task)
    assert task.output == "from the hook"
    assert task._manager is m


def test_hook_that_fails_submits_nothing(m):
    class Failing(Task):
        def submit_finalize(self):
            raises("not yet")

    with pytest.raises(ValueError, match="not yet"):
        m.submit(Failing("true"))
    assert m.empty()


def test_manager_can_be_set(m, run):
    task = small(Task("true"))
    task.manager = m
    assert task.manager is m
    assert run(task).successful()


class NamedTask(PythonTask):
    """A task of a program that keeps names of its own in it, as coffea does."""

    def __init__(self, function, *arguments):
        self.function, self.args, self.size, self.itemid = function, arguments, 3, "first"
        super().__init__(self.function, *arguments)


def test_subclass_keeps_attributes_of_its_own(m, run):
    """Names that a subclass gives its attributes are not taken by this class."""
    task = run(NamedTask(abs, -2))
    assert (task.output, task.function, task.args, task.size, task.itemid) == (2, abs, (-2,), 3, "first")
