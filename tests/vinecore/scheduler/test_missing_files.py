"""A task may be submitted before the one that makes what it reads."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    LARGE,
    ONE_CORE,
    SchedulerHarness,
    call,
    end_without_output,
    maker,
    single,
    task_outcomes,
)
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.connect_worker(cores=2)
    return harness


def missing(harness):
    texts = [told.text for told in harness.instructions_of(i.Stalled, harness.log)]
    return texts[-1] if texts else ""


@pytest.mark.parametrize("how", ["inputs", "mounts"])
def test_a_task_waits_for_who_makes_its_input(harness, how):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, mounts=("temp",)) if how == "mounts" else single(1, "temp"))
    assert not harness.assignments()
    harness.submit_tasks(maker(2, "temp"))
    assert list(harness.assignments()) == [2]
    harness.complete_task(2, outputs={"temp": LARGE})
    assert list(harness.assignments()) == [1]
    harness.complete_task(1)
    assert task_outcomes(harness) == {1: "success", 2: "success"}
    assert not harness.scheduler.missing_files.stalled_reason()


def test_it_is_said_what_a_task_waits_for_and_no_longer_when_that_is_submitted(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S + 1)
    assert "t1 waits for a file that no task makes yet (temp): submit the task" in missing(harness)
    harness.submit_tasks(maker(2, "temp"))
    harness.advance_time()
    assert missing(harness) == ""


def test_nothing_is_said_as_long_as_something_runs(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(5), single(1, "temp"))
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S + 1)
    assert missing(harness) == ""


@pytest.mark.parametrize("end", ["failure", "cancel", "without it"])
def test_a_maker_that_fails_fails_who_waited_for_it(harness, end):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.submit_tasks(maker(2, "temp"))
    end_without_output(harness, 2, end)
    assert task_outcomes(harness)[1] == "input missing"


def test_what_is_undeclared_is_not_waited_for_any_more(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.send_events(e.FilesReleased(["temp"], prune=False))
    assert task_outcomes(harness) == {1: "input missing"}
    assert not harness.tables.tasks
    assert "temp" not in harness.tables.files
    harness.advance_time(10)
    assert missing(harness) == ""


def test_who_waits_can_be_cancelled(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.send_events(e.TasksCancelled([1]))
    harness.advance_time(10)
    harness.advance_time(10)
    assert task_outcomes(harness) == {1: "cancelled"}
    assert missing(harness) == ""


def test_what_was_never_declared_or_is_not_there_is_an_error_at_once(harness):
    harness.declare_file("place")
    harness.submit_tasks(single(1, "never"), single(2, "place", "never"))
    assert task_outcomes(harness) == {1: "input missing", 2: "input missing"}
    reasons = {told.task: told.info["reason"] for told in harness.instructions_of(i.TaskFinished)}
    assert reasons[1] == "never: pruned or never declared, and no task makes it"
    assert "place: not there when it was declared" in reasons[2]


def test_what_was_pruned_is_made_again_and_what_nobody_can_make_again_is_an_error(harness):
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(maker(2, "temp"))
    harness.complete_task(2, outputs={"temp": LARGE})
    harness.send_events(e.FilesReleased(["temp"], prune=True))
    harness.submit_tasks(single(1, "temp"))
    assert list(harness.assignments()) == [2]
    harness.send_events(e.FilesReleased(["temp"], prune=False))
    harness.send_events(e.TasksCancelled([1, 2]))
    harness.submit_tasks(single(3, "temp"))
    assert task_outcomes(harness)[3] == "input missing"


def test_calls_and_on_demand_makers_and_archives_wait_as_well(harness):
    for name in ("temp", "packed", "seed"):
        harness.declare_file(name, awaited=True)
    harness.declare_file("unpacked", archive="packed", directory=True)
    harness.install_library()
    harness.submit_tasks(single(8, "seed", result="", outputs=("made",), on_demand=True))
    harness.submit_tasks(call(1, "temp"), single(3, "made"), single(4, "unpacked"))
    assert not harness.assignments()
    harness.submit_tasks(maker(5, "temp", "seed"), maker(6, "packed"))
    done = []
    while harness.assignments():
        number = min(harness.assignments())
        done.append(number)
        made = {5: ["temp", "seed"], 6: ["packed"], 8: ["made"]}.get(number, ())
        harness.complete_task(number, outputs=dict.fromkeys(made, 10))
        for worker, unpack in harness.messages_sent(m.Unpack):
            harness.report_cached(worker, unpack.name)
    assert set(done) == {1, 3, 4, 5, 6, 8}


def test_a_library_waits_for_the_maker_of_its_input(harness):
    harness.declare_file("temp", awaited=True)
    harness.install_library("lib", files=("temp",), request=ONE_CORE)
    harness.submit_tasks(call(1))
    assert not harness.assignments()
    harness.submit_tasks(maker(2, "temp"))
    harness.complete_task(2, outputs={"temp": 10})
    assert list(harness.assignments()) == [1]
