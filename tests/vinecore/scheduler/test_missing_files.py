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
def test_task_waits_for_maker_of_input(harness, how):
    """A task waits for who makes its input."""
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


def test_awaited_input_is_named_until_submitted(harness):
    """It is said what a task waits for and no longer when that is submitted."""
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S + 1)
    assert "t1 waits for a file that no task makes yet (temp): submit the task" in missing(harness)
    harness.submit_tasks(maker(2, "temp"))
    harness.advance_time()
    assert missing(harness) == ""


def test_running_tasks_suppress_stall_message(harness):
    """Nothing is said as long as something runs."""
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(5), single(1, "temp"))
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S + 1)
    assert missing(harness) == ""


@pytest.mark.parametrize("end", ["failure", "cancel", "without it"])
def test_failed_maker_fails_waiting_reader(harness, end):
    """A maker that fails fails who waited for it."""
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.submit_tasks(maker(2, "temp"))
    end_without_output(harness, 2, end)
    assert task_outcomes(harness)[1] == "input missing"


def test_undeclared_file_is_awaited_no_longer(harness):
    """What is undeclared is not waited for any more."""
    harness.declare_file("temp", awaited=True)
    harness.submit_tasks(single(1, "temp"))
    harness.send_events(e.FilesReleased(["temp"], prune=False))
    assert task_outcomes(harness) == {1: "input missing"}
    assert not harness.state.tasks
    assert "temp" not in harness.state.files
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


def test_unknown_input_is_error_at_once(harness):
    """What was never declared or is not there is an error at once."""
    harness.declare_file("place")
    harness.submit_tasks(single(1, "never"), single(2, "place", "never"))
    assert task_outcomes(harness) == {1: "input missing", 2: "input missing"}
    reasons = {told.task: told.info["reason"] for told in harness.instructions_of(i.TaskFinished)}
    assert reasons[1] == "never: pruned or never declared, and no task makes it"
    assert "place: not there when it was declared" in reasons[2]


def test_pruned_file_is_remade_or_error(harness):
    """What was pruned is made again and what nobody can make again is an error."""
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


def test_calls_archives_and_minitasks_wait_too(harness):
    """Calls and on demand makers and archives wait as well."""
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


def test_library_waits_for_maker_of_file(harness):
    """A library waits for the maker of its input."""
    harness.declare_file("temp", awaited=True)
    harness.install_library("lib", files=("temp",), request=ONE_CORE)
    harness.submit_tasks(call(1))
    assert not harness.assignments()
    harness.submit_tasks(maker(2, "temp"))
    harness.complete_task(2, outputs={"temp": 10})
    assert list(harness.assignments()) == [1]
