"""What was not there when it was declared is waited for until the user waits; nobody waits for itself."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    ONE_CORE,
    SchedulerHarness,
    call,
    end_without_output,
    graph_outcomes,
    maker,
    single,
    task_outcomes,
)
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i

TEXT = (
    "did not exist when it was declared, and no submitted task makes it: check the path, or submit the task"
)


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.connect_worker(cores=4)
    harness.declare_file("place", awaited=True, absent=True)
    return harness


def reasons(harness):
    return {
        told.task: told.info.get("reason", "")
        for told in harness.instructions_of(i.TaskFinished, harness.log)
    }


def reader(harness, how):
    """Submit a task, 1, that needs the place in some way."""
    if how == "library":
        harness.install_library("lib", files=("place",), request=ONE_CORE)
        return harness.submit_tasks(call(1))
    if how == "environment of a library":
        harness.declare_file("unpacked", archive="place", directory=True)
        harness.install_library("lib", environment="unpacked", request=ONE_CORE)
        return harness.submit_tasks(call(1))
    if how == "environment":
        return harness.submit_tasks(single(1, environment="place"))
    if how == "archive":
        harness.declare_file("unpacked", archive="place", directory=True)
        return harness.submit_tasks(single(1, "unpacked"))
    if how == "mini task":
        harness.declare_file("made")
        harness.submit_tasks(single(9, "place", result="", outputs=("made",), on_demand=True))
        return harness.submit_tasks(single(1, "made"))
    if how == "mount":
        return harness.submit_tasks(single(1, mounts=("place",)))
    return harness.submit_tasks(single(1, "place"))


WAYS = ["input", "mount", "environment", "archive", "mini task", "library", "environment of a library"]


@pytest.mark.parametrize("how", WAYS)
def test_its_maker_may_be_submitted_later(harness, how):
    reader(harness, how)
    assert not task_outcomes(harness)
    harness.submit_tasks(maker(2, "place"))
    harness.send_events(e.Waited())
    assert list(harness.assignments()) == [2]
    assert not task_outcomes(harness)
    harness.fail_task(2, "exception")
    assert task_outcomes(harness) == {1: "input missing", 2: "exception"}


@pytest.mark.parametrize("how", WAYS)
def test_absent_input_fails_reader_at_wait(harness, how):
    """Who reads it fails when the user waits."""
    assert len(harness.instructions_of(i.InputsAbsent, reader(harness, how))) == 1
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}
    assert "place: " in reasons(harness)[1]
    assert TEXT in reasons(harness)[1]
    assert not harness.state.tasks


def test_it_needs_no_worker_to_fail():
    harness = SchedulerHarness()
    harness.declare_file("place", awaited=True, absent=True)
    harness.submit_tasks(single(1, "place"))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}


def test_absence_is_asked_once_per_wait(harness):
    """It is asked once whether the user waits and again after that."""
    assert (
        len(
            harness.instructions_of(
                i.InputsAbsent, harness.submit_tasks(single(1, "place"), single(2, "place"))
            )
        )
        == 1
    )
    assert not harness.instructions_of(i.InputsAbsent, harness.submit_tasks(single(3, "place")))
    harness.send_events(e.Waited())
    assert set(task_outcomes(harness)) == {1, 2, 3}
    assert harness.instructions_of(i.InputsAbsent, harness.submit_tasks(single(4, "place")))
    harness.send_events(e.Waited())
    assert task_outcomes(harness)[4] == "input missing"


def test_outputs_and_present_inputs_ask_nothing(harness):
    """Outputs and what is there ask for nothing."""
    harness.declare_file("data", at_manager=True, size=10)
    assert not harness.instructions_of(
        i.InputsAbsent, harness.submit_tasks(maker(1, "place"), single(2, "data"), single(3, "place"))
    )


@pytest.mark.parametrize("end", ["failure", "cancel", "without it", "refused"])
def test_failed_maker_after_wait_fails_reader(harness, end):
    """A maker that does not make it after the wait fails who waited."""
    harness.submit_tasks(single(1, "place"))
    if end == "refused":
        harness.submit_tasks(call(2, library="nowhere", outputs=("place",)))
        assert task_outcomes(harness) == {1: "input missing", 2: "library"}
        assert "t2 was to make it, but library nowhere is not installed" in reasons(harness)[1]
        harness.submit_tasks(single(3, "place"))
        assert task_outcomes(harness)[3] == "input missing"
        return
    harness.submit_tasks(maker(2, "place"))
    harness.send_events(e.Waited())
    end_without_output(harness, 2, end)
    assert task_outcomes(harness)[1] == "input missing"


def test_awaited_input_without_absence_keeps_waiting(harness):
    """What the user waits for by another name goes on waiting."""
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "place"), single(2, "temp"))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}
    harness.submit_tasks(maker(3, "temp"))
    harness.complete_task(3, outputs={"temp": 10})
    assert list(harness.assignments()) == [2]


def test_waiting_reader_can_be_cancelled(harness):
    """Who waits can be cancelled and what it waited for undeclared."""
    harness.submit_tasks(single(1, "place"), single(2, "place"))
    harness.send_events(e.TasksCancelled([1]))
    harness.send_events(e.FilesReleased(["place"], prune=False))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "cancelled", 2: "input missing"}
    assert "place" not in harness.state.files
    assert not harness.scheduler.missing_files.awaited


@pytest.mark.parametrize("reuse", [False, True])
def test_graph_with_absent_input_fails_alike(harness, reuse):
    """A graph that reads it fails with the same words."""
    harness.compute_graph(
        single(1, "place", on_demand=reuse, content_addressed=reuse, wanted_at_manager=("r1",))
    )
    harness.advance_time(60)
    assert not graph_outcomes(harness)
    harness.send_events(e.Waited())
    [ended] = harness.instructions_of(i.GraphFinished)
    assert ended.outcome == "input missing"
    assert TEXT in ended.info["reason"]


def test_graph_before_undeclared_file_fails_alike(harness):
    """A graph laid down before its file was undeclared says the same."""
    harness.open_graph()
    harness.submit_tasks(
        single(1, "place", graph=1, on_demand=True, content_addressed=True, wanted_at_manager=("r1",))
    )
    harness.send_events(e.FilesReleased(["place"], prune=False))
    harness.send_events(e.GraphSubmitted(1))
    harness.advance_time(60)
    [ended] = harness.instructions_of(i.GraphFinished, harness.log)
    assert TEXT in ended.info["reason"]


def test_task_reading_its_output_fails(harness):
    """A task that reads what it makes fails."""
    harness.submit_tasks(maker(1, "place", mounts=("place",)))
    assert task_outcomes(harness) == {1: "input missing"}
    assert "is made by the same task that reads it" in reasons(harness)[1]


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("length", [2, 3, 50])
def test_tasks_in_circle_fail(harness, absent, length):
    """Tasks that wait for each other in a circle fail."""
    for number in range(length):
        harness.declare_file(f"f{number}", awaited=True, absent=absent)
    for number in range(length):
        harness.submit_tasks(maker(number + 1, f"f{number}", mounts=(f"f{(number + 1) % length}",)))
    assert task_outcomes(harness) == dict.fromkeys(range(1, length + 1), "input missing")
    assert "no task of such a circle can begin" in reasons(harness)[length]
    assert not harness.state.tasks


def test_a_circle_over_a_mini_task_fails(harness):
    harness.submit_tasks(single(9, "place", result="", outputs=("made",), on_demand=True))
    harness.submit_tasks(maker(1, "place", mounts=("made",)))
    assert task_outcomes(harness) == {1: "input missing"}
    assert "no task of such a circle can begin" in reasons(harness)[1]


def test_reverse_submission_is_no_circle(harness):
    """Tasks that are submitted last first are no circle."""
    for number in range(50):
        harness.declare_file(f"f{number}", awaited=True, absent=True)
    for number in reversed(range(1, 50)):
        harness.submit_tasks(maker(number, f"f{number}", mounts=(f"f{number - 1}",)))
    harness.submit_tasks(maker(50, "f0"))
    harness.send_events(e.Waited())
    assert list(harness.assignments()) == [50]
