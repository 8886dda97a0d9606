"""Where and when tasks run: features, times, files that are there, and the rule for one task."""

from __future__ import annotations

import time

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task

NEVER_S = 1e6


@pytest.fixture(scope="module")
def two_workers(shared_cluster):
    """A manager with worker 1, which ends after a day, and worker 2 with the features a and b."""
    m = shared_cluster.start_manager()
    shared_cluster.start_workers(m, 1, "--cores", "4", "--wall-time", "86400")
    shared_cluster.start_workers(m, 1, "--cores", "4", "--feature", "a", "--feature", "b")
    library = m.create_library_from_functions("adding", sample_tasks.add)
    library.set_cores(1)
    m.install_library(library)
    return m


@pytest.fixture
def m(two_workers):
    yield two_workers
    two_workers.cancel_all()
    while not two_workers.empty():
        two_workers.wait(PATIENCE_S)


def small(task):
    task.set_cores(1)
    return task


def in_us(seconds):
    return int((time.time() + seconds) * 1e6)


KINDS = {
    "command": lambda: small(Task("true")),
    "python": lambda: small(PythonTask(sample_tasks.add, 1, 2)),
    "call": lambda: FunctionCall("adding", "add", 1, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_task_runs_where_its_features_are(m, run, kind):
    tasks = [KINDS[kind]() for _ in range(6)]
    for task in tasks:
        task.add_feature("b")
        task.add_feature("a")
    assert {task.outcome.worker for task in run(*tasks)} == {2}
    assert all(task.successful() for task in tasks)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_feature_is_named(m, kind):
    task = KINDS[kind]()
    task.add_feature("a")
    task.add_feature("cvmfs")
    m.submit(task)
    said = wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert "'cvmfs'" in said
    assert "--feature cvmfs" in said
    assert task.state == "READY"
    other = KINDS[kind]()
    m.submit(other)
    assert m.wait(PATIENCE_S) is other


def test_worker_with_feature_gets_waiting_task(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    task = small(Task("true"))
    task.add_feature("late")
    m.submit(task)
    wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    local_cluster.start_workers(m, 1, "--feature", "late")
    assert m.wait(PATIENCE_S) is task
    assert task.outcome.worker == 2


@pytest.mark.parametrize("kind", KINDS)
def test_task_waits_for_its_start(m, run, kind):
    """A task with a start in the future overtakes nothing, and starts when its time has come."""
    start_s = time.time() + 1
    task, other = KINDS[kind](), KINDS[kind]()
    task.set_time_start(int(start_s * 1e6))
    m.submit(task)
    m.submit(other)
    assert m.wait(PATIENCE_S) is other
    assert time.time() < start_s
    assert m.wait(PATIENCE_S) is task
    assert time.time() >= start_s
    assert task.successful()


def test_waiting_for_start_is_explained(m):
    task = small(Task("true"))
    task.set_time_start(in_us(NEVER_S))
    m.submit(task)
    wait_until(lambda: "set_time_start" in m.stalled_reason, "the manager to say what is waited for")
    m.cancel_by_task_id(task.id)
    assert m.wait(PATIENCE_S).result == "cancelled"


def test_start_and_inputs_are_both_awaited(m, run):
    """A task whose time has come still waits for its input, and the other way round."""
    made, read = m.declare_temp(), small(Task("cat made"))
    make = small(Task("echo hello > made"))
    make.set_time_start(in_us(0.6))
    make.add_output(made, "made")
    read.add_input(made, "made")
    read.set_time_start(in_us(0.3))
    assert run(make, read)[1].output == "hello\n"


def test_running_task_is_ended_at_its_end(m, run):
    task = small(Task("echo begun; exec sleep 600"))
    task.set_time_end(in_us(0.8))
    begin = time.monotonic()
    run(task)
    assert time.monotonic() - begin < 60
    assert (task.result, task.exit_code, task.output) == ("max end time", 9, "begun\n")
    assert "set_time_end" in str(task.error())


@pytest.mark.parametrize("kind", ["python", "call"])
def test_running_function_is_ended_at_its_end(m, run, kind):
    if kind == "call":
        library = m.create_library_from_functions("sleeping", time.sleep)
        library.set_cores(1)
        m.install_library(library)
        task = FunctionCall("sleeping", "sleep", 600)
    else:
        task = small(PythonTask(time.sleep, 600))
    task.set_time_end(in_us(0.8))
    run(task)
    assert (task.result, task.exit_code) == ("max end time", 9)
    assert not task.successful()


def test_task_that_never_started_ends_too(m, run):
    task = small(Task("true"))
    task.add_feature("nowhere")
    task.set_time_end(in_us(0.2))
    run(task)
    assert (task.result, task.exit_code) == ("max end time", -1)


def test_end_in_time_changes_nothing(m, run):
    task = small(Task("echo hello"))
    task.set_time_start(in_us(-NEVER_S))
    task.set_time_end(in_us(NEVER_S))
    assert run(task).output == "hello\n"


@pytest.mark.parametrize("kind", KINDS)
def test_task_avoids_worker_that_leaves_early(m, run, kind):
    tasks = [KINDS[kind]() for _ in range(6)]
    for task in tasks:
        task.set_time_min(100_000)
    assert {task.outcome.worker for task in run(*tasks)} == {2}


def test_worker_that_stays_long_enough_is_used(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--wall-time", "86400")
    task, longer = small(Task("true")), small(Task("true"))
    task.set_time_min(80_000)
    longer.set_time_min(90_000)
    m.submit(longer)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    said = wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert "set_time_min" in said
    assert "--wall-time" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [1, 2])
def test_strict_task_runs_where_its_input_is(m, run, kind, where):
    made = m.declare_temp()
    make = small(Task("echo hello > made"))
    make.add_output(made, "made")
    # the only two conditions that tell the workers apart
    if where == 2:
        make.add_feature("a")
    else:
        blocker = [small(Task("true")) for _ in range(4)]
        run(*blocker)
    tasks = [KINDS[kind]() for _ in range(6)]
    for task in tasks:
        task.add_input(made, "made", True)
    run(make, *tasks)
    assert {task.outcome.worker for task in tasks} == {make.outcome.worker}
    assert m.get_file_replica_count(made) == 1


def test_strict_task_fails_without_its_input(m, run):
    file = m.declare_buffer(b"only at the manager")
    task = small(Task("cat data"))
    task.add_input(file, "data", strict_input=True)
    run(task)
    assert (task.result, task.exit_code) == ("fixed location missing", -1)
    assert "strict_input" in str(task.error())


@pytest.mark.parametrize("rule", ["fcfs", 1])
def test_rule_of_task_chooses_its_worker(m, run, rule):
    """By order of arrival the first worker gets every task that runs alone."""
    for _ in range(6):
        task = small(Task("true"))
        task.set_scheduler(rule)
        assert run(task).outcome.worker == 1


@pytest.mark.parametrize(
    ("setter", "value", "error", "text"),
    [
        ("set_scheduler", "quick", ValueError, "'fcfs'"),
        ("set_scheduler", 7, ValueError, "'fcfs'"),
        ("set_scheduler", [], TypeError, "'fcfs'"),
        ("add_feature", "", ValueError, "not empty"),
        ("set_time_end", 1e9, ValueError, "time.time"),
        ("set_time_start", "now", TypeError, "microseconds"),
        ("set_time_min", "long", TypeError, "seconds"),
    ],
)
def test_bad_condition_is_refused(setter, value, error, text):
    with pytest.raises(error, match=text):
        getattr(Task("true"), setter)(value)
