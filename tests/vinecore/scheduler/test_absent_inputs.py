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
def test_who_reads_it_fails_when_the_user_waits(harness, how):
    assert len(harness.instructions_of(i.InputsAbsent, reader(harness, how))) == 1
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}
    assert "place: " in reasons(harness)[1]
    assert TEXT in reasons(harness)[1]
    assert not harness.tables.tasks


def test_it_needs_no_worker_to_fail():
    harness = SchedulerHarness()
    harness.declare_file("place", awaited=True, absent=True)
    harness.submit_tasks(single(1, "place"))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}


def test_it_is_asked_once_whether_the_user_waits_and_again_after_that(harness):
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


def test_outputs_and_what_is_there_ask_for_nothing(harness):
    harness.declare_file("data", at_manager=True, size=10)
    assert not harness.instructions_of(
        i.InputsAbsent, harness.submit_tasks(maker(1, "place"), single(2, "data"), single(3, "place"))
    )


@pytest.mark.parametrize("end", ["failure", "cancel", "without it", "refused"])
def test_a_maker_that_does_not_make_it_after_the_wait_fails_who_waited(harness, end):
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


def test_what_the_user_waits_for_by_another_name_goes_on_waiting(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "place"), single(2, "temp"))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "input missing"}
    harness.submit_tasks(maker(3, "temp"))
    harness.complete_task(3, outputs={"temp": 10})
    assert list(harness.assignments()) == [2]


def test_who_waits_can_be_cancelled_and_what_it_waited_for_undeclared(harness):
    harness.submit_tasks(single(1, "place"), single(2, "place"))
    harness.send_events(e.TasksCancelled([1]))
    harness.send_events(e.FilesReleased(["place"], prune=False))
    harness.send_events(e.Waited())
    assert task_outcomes(harness) == {1: "cancelled", 2: "input missing"}
    assert "place" not in harness.tables.files
    assert not harness.scheduler.missing_files.awaited


@pytest.mark.parametrize("reuse", [False, True])
def test_a_graph_that_reads_it_fails_with_the_same_words(harness, reuse):
    harness.compute_graph(
        single(1, "place", on_demand=reuse, content_addressed=reuse, wanted_at_manager=("r1",))
    )
    harness.advance_time(60)
    assert not graph_outcomes(harness)
    harness.send_events(e.Waited())
    [ended] = harness.instructions_of(i.GraphFinished)
    assert ended.outcome == "input missing"
    assert TEXT in ended.info["reason"]


def test_a_graph_laid_down_before_its_file_was_undeclared_says_the_same(harness):
    harness.open_graph()
    harness.submit_tasks(
        single(1, "place", run=1, on_demand=True, content_addressed=True, wanted_at_manager=("r1",))
    )
    harness.send_events(e.FilesReleased(["place"], prune=False))
    harness.send_events(e.GraphSubmitted(1))
    harness.advance_time(60)
    [ended] = harness.instructions_of(i.GraphFinished, harness.log)
    assert TEXT in ended.info["reason"]


def test_a_task_that_reads_what_it_makes_fails(harness):
    harness.submit_tasks(maker(1, "place", mounts=("place",)))
    assert task_outcomes(harness) == {1: "input missing"}
    assert "is made by the same task that reads it" in reasons(harness)[1]


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("length", [2, 3, 50])
def test_tasks_that_wait_for_each_other_in_a_circle_fail(harness, absent, length):
    for number in range(length):
        harness.declare_file(f"f{number}", awaited=True, absent=absent)
    for number in range(length):
        harness.submit_tasks(maker(number + 1, f"f{number}", mounts=(f"f{(number + 1) % length}",)))
    assert task_outcomes(harness) == dict.fromkeys(range(1, length + 1), "input missing")
    assert "no task of such a circle can begin" in reasons(harness)[length]
    assert not harness.tables.tasks


def test_a_circle_over_a_mini_task_fails(harness):
    harness.submit_tasks(single(9, "place", result="", outputs=("made",), on_demand=True))
    harness.submit_tasks(maker(1, "place", mounts=("made",)))
    assert task_outcomes(harness) == {1: "input missing"}
    assert "no task of such a circle can begin" in reasons(harness)[1]


def test_tasks_that_are_submitted_last_first_are_no_circle(harness):
    for number in range(50):
        harness.declare_file(f"f{number}", awaited=True, absent=True)
    for number in reversed(range(1, 50)):
        harness.submit_tasks(maker(number, f"f{number}", mounts=(f"f{number - 1}",)))
    harness.submit_tasks(maker(50, "f0"))
    harness.send_events(e.Waited())
    assert list(harness.assignments()) == [50]
