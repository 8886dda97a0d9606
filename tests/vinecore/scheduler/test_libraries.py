"""Libraries on workers: started once, grown, stopped, and what happens when they do not come up."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    LARGE,
    ONE_CORE,
    SchedulerHarness,
    call,
    graph_outcomes,
    single,
    task_outcomes,
)
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.libraries import MAX_LIBRARY_FAILURES
from vinecore.scheduler.specs import LibrarySpec


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def slots(harness, worker, name="lib"):
    instance = harness.worker(worker).libraries.get(name)
    return instance.slots if instance else 0


def test_a_library_is_started_where_its_calls_are_and_once(harness):
    first = harness.connect_worker()
    harness.connect_worker()
    harness.submit_tasks(call(1))
    assert [worker for worker, _ in harness.messages_sent(m.Library)] == [first]
    harness.complete_task(1)
    harness.submit_tasks(call(2), call(3))
    assert [worker for worker, _ in harness.messages_sent(m.Library, harness.log)].count(first) == 1


def test_a_library_is_told_what_it_is_and_what_it_has():
    harness = SchedulerHarness()
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.install_library(
        "own",
        slots=3,
        request=ResourceRequest(cores=2),
        exec_mode="fork",
        files=("data",),
        options={"label": "l"},
    )
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(call(1, library="own"))
    ((_, library),) = harness.messages_sent(m.Library)
    assert library == m.Library("own", "setup", "", 3, "fork", {"label": "l", "cores": 2, "memory": 2000})
    assert harness.requested_fetches() == [(worker, "data", "manager")]
    assert i.SendObject(worker, "setup") in harness.last_instructions


def test_without_a_word_on_resources_a_library_takes_the_worker_with_a_slot_for_each_core():
    harness = SchedulerHarness()
    harness.install_library(slots=None, request=ResourceRequest())
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(call(1))
    assert slots(harness, worker) == 4
    assert harness.worker(worker).free.cores == 0


def test_a_library_grows_with_the_calls_that_wait_for_it(harness):
    worker = harness.connect_worker(cores=3)
    harness.submit_tasks(call(1))
    assert slots(harness, worker) == 1
    harness.submit_tasks(call(2))
    assert slots(harness, worker) == 2
    harness.submit_tasks(*(call(n) for n in range(3, 20)))
    assert slots(harness, worker) == 3, "and no further than the worker goes"
    assert [library.slots for _, library in harness.messages_sent(m.Library, harness.log)] == [1, 2, 3]
    assert harness.worker(worker).free.cores == 0


def test_several_libraries_share_a_worker(harness):
    harness.install_library("other")
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1), call(2, library="other"))
    assert (slots(harness, worker), slots(harness, worker, "other")) == (1, 1)


def test_an_idle_library_is_stopped_when_another_one_needs_its_room(harness):
    harness.install_library("other")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1), call(2, library="other"))
    assert not harness.messages_sent(m.RemoveLibrary)
    harness.complete_task(1)
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert harness.assignments() == {2: worker}


def test_an_idle_library_is_stopped_to_make_room_for_a_single_task(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1)
    harness.submit_tasks(single(2))
    order = [type(x.message).__name__ for x in harness.instructions_of(i.Send)]
    assert order == ["RemoveLibrary", "RunTask"]
    assert harness.assignments() == {2: worker}
    harness.complete_task(2)
    assert harness.worker(worker).free == harness.worker(worker).total


def test_a_busy_library_is_not_stopped(harness):
    harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.submit_tasks(single(2))
    assert not harness.messages_sent(m.RemoveLibrary)
    assert list(harness.assignments()) == [1]


def test_no_library_is_stopped_where_that_would_not_help(harness):
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1))
    harness.complete_task(1)
    harness.submit_tasks(single(2, request=ResourceRequest(cores=3)))
    harness.advance_time()
    assert slots(harness, worker) == 1


def test_only_as_many_libraries_are_stopped_as_are_in_the_way(harness):
    harness.install_library("other")
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1), call(2, library="other"))
    harness.complete_task(1)
    harness.complete_task(2)
    harness.submit_tasks(single(3))
    assert len(harness.messages_sent(m.RemoveLibrary)) == 1
    assert slots(harness, worker) + slots(harness, worker, "other") == 1


def test_a_library_that_is_behind_many_others_is_found_when_it_is_idle(harness):
    for _ in range(100):
        harness.connect_worker()
    harness.submit_tasks(*(call(n) for n in range(1, 101)))
    harness.submit_tasks(single(999))
    assert 999 not in harness.assignments()
    last = harness.assignments()[100]
    harness.complete_task(100)
    assert harness.assignments()[999] == last


def test_a_library_that_dies_gives_its_calls_back_and_is_started_again(harness):
    harness.compute_graph(*(call(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, 4)), retries=0)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    ((_, cancel),) = harness.messages_sent(m.Cancel)
    assert sorted(cancel.tasks) == [1, 2, 3]
    assert len(harness.messages_sent(m.Library)) == 1
    assert harness.dispatched_tasks() == [1, 2, 3]
    assert harness.task(1).attempts == 0, "its library has died, not the call"
    assert not graph_outcomes(harness)


def test_a_library_that_keeps_dying_fails_its_calls_after_a_few_times(harness):
    harness.submit_tasks(call(1), single(2))
    worker = harness.connect_worker(cores=2)
    for _ in range(MAX_LIBRARY_FAILURES):
        harness.worker_sends(
            worker, m.LibraryReady("lib", 0.1, {}), m.LibraryFailed("lib", "its slots die", False, b"")
        )
        assert not harness.instructions_of(i.TaskFinished)
    harness.worker_sends(worker, m.LibraryFailed("lib", "its slots die", False, b""))
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert (ended.task, ended.outcome) == (1, "library")
    assert ended.info == {"reason": "its slots die", "library": "lib"}
    assert harness.assignments() == {2: worker}
    harness.complete_task(2)
    assert harness.worker(worker).free == harness.worker(worker).total


def test_a_call_that_succeeds_proves_that_the_library_works(harness):
    harness.submit_tasks(*(call(n) for n in range(1, 60)))
    worker = harness.connect_worker()
    for number in range(1, 20):
        harness.complete_task(number)
        harness.worker_sends(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    assert all(outcome == "success" for outcome in task_outcomes(harness).values())


def test_a_library_that_can_never_come_up_fails_its_calls_at_once(harness):
    harness.compute_graph(call(1), call(2))
    worker = harness.connect_worker()
    harness.worker_sends(
        worker, m.LibraryFailed("lib", "ImportError: no module named uproot", True, b"pickled")
    )
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert ended.outcome == "library"
    assert ended.payload == b"pickled"
    assert ended.info["reason"] == "ImportError: no module named uproot"
    assert harness.worker(worker).free == harness.worker(worker).total


def test_calls_that_come_after_a_failure_try_again(harness):
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryFailed("lib", "no", True, b""))
    harness.submit_tasks(call(2))
    assert harness.assignments() == {2: worker}
    harness.worker_sends(worker, m.LibraryReady("lib", 0.1, {}))
    harness.complete_task(2)
    assert task_outcomes(harness) == {1: "library", 2: "success"}


def test_a_library_that_is_up_says_which_versions_it_has(harness):
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryReady("lib", 0.5, {"numpy": "2.0"}))
    assert harness.last_instructions == [i.LibraryStarted(worker, "lib", {"numpy": "2.0"})]
    assert harness.worker_sends(worker, m.LibraryReady("other", 0.5, {})) == []


def test_a_removed_library_ends_everywhere_and_its_calls_with_it(harness):
    workers = [harness.connect_worker(), harness.connect_worker()]
    harness.submit_tasks(call(1), call(2))
    harness.send_events(e.LibraryRemoved("lib"))
    assert [worker for worker, _ in harness.messages_sent(m.RemoveLibrary)] == workers
    assert task_outcomes(harness) == {1: "library", 2: "library"}
    assert all(harness.worker(w).free == harness.worker(w).total for w in workers)
    assert not harness.tables.buckets
    harness.submit_tasks(call(3))
    assert task_outcomes(harness)[3] == "library"


def test_a_library_that_is_replaced_goes_when_its_calls_are_over(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(call(1), call(2))
    assert not harness.messages_sent(m.RemoveLibrary, harness.send_events(e.LibraryRetired("lib")))
    harness.complete_task(1)
    assert not harness.messages_sent(m.RemoveLibrary)
    harness.complete_task(2)
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert "lib" not in harness.tables.libraries
    assert not harness.tables.buckets


def test_a_library_without_calls_goes_at_once_when_it_is_replaced(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1)
    harness.send_events(e.LibraryRetired("lib"), e.LibraryRetired("nothing"))
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]


def test_a_library_that_is_installed_again_before_it_has_gone_stays(harness):
    harness.connect_worker()
    harness.submit_tasks(call(1))
    spec = harness.tables.libraries["lib"].spec
    harness.send_events(e.LibraryRetired("lib"), e.LibraryInstalled(spec))
    harness.complete_task(1)
    assert "lib" in harness.tables.libraries


def test_a_restart_stops_all_libraries_and_runs_their_calls_again(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(call(1), call(2))
    harness.send_events(e.Restarted())
    assert (worker, m.RemoveLibrary("lib")) in harness.messages_sent(m.RemoveLibrary)
    assert harness.messages_sent(m.Restart) == [(worker, m.Restart())]
    assert set(harness.dispatched_tasks()) == {1, 2}
    assert harness.task(1).attempts == 0
    harness.complete_task(1)
    harness.complete_task(2)
    assert task_outcomes(harness) == {1: "success", 2: "success"}


def test_removing_a_library_that_is_not_there_does_nothing(harness):
    assert harness.send_events(e.LibraryRemoved("nothing")) == []


def test_a_library_is_installed_once_and_holds_its_files(harness):
    harness.declare_file("data", size=10, at_manager=True)
    spec = LibrarySpec("own", "setup", files=("data",), request=ONE_CORE)
    harness.send_events(e.LibraryInstalled(spec), e.LibraryInstalled(spec))
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert "data" in harness.tables.files
    harness.send_events(e.LibraryRemoved("own"))
    assert i.DropObject("data") in harness.last_instructions
    assert "data" not in harness.tables.files


def test_a_call_that_was_on_its_way_while_its_library_died_runs_again(harness):
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(
        worker, m.TaskFailed(1, "library", {"reason": "the library is not on this worker"}, b"")
    )
    assert harness.dispatched_tasks() == [1]
    assert harness.task(1).attempts == 0


def test_a_single_task_whose_python_does_not_start_is_tried_a_bounded_number_of_times():
    harness = SchedulerHarness()
    harness.submit_tasks(single(1, retries=2))
    harness.connect_worker()
    for _ in range(3):
        harness.fail_task(1, "library", reason="its Python has ended with code 1")
    assert task_outcomes(harness) == {1: "crash"}


def test_a_library_whose_file_cannot_be_had_fails_its_calls_and_is_not_tried_for_ever():
    harness = SchedulerHarness()
    harness.declare_file("data", url="https://example.org/x")
    harness.install_library("own", files=("data",))
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, library="own"))
    harness.report_failed_fetch(worker, "data", "https://example.org/x", gone=True)
    assert task_outcomes(harness) == {1: "input missing"}
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("own"))]
    for _ in range(10):
        assert not harness.advance_time(60.0)


def test_an_environment_is_unpacked_on_the_worker_before_the_library_starts():
    harness = SchedulerHarness()
    harness.declare_file("env.tar", size=LARGE, at_manager=True)
    harness.declare_file("env", archive="env.tar", directory=True)
    harness.install_library("own", environment="env")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, library="own"))
    kinds = [type(x.message).__name__ for x in harness.instructions_of(i.Send)]
    assert kinds == ["Fetch", "Unpack", "Library", "RunTask"]
    assert harness.requested_fetches() == [(worker, "env.tar", "manager")]
    harness.report_cached(worker, "env.tar")
    harness.report_cached(worker, "env", 0)
    assert harness.replica_holders("env") == harness.replica_holders("env.tar") == {worker}


def test_a_library_that_takes_long_to_start_is_named_until_it_is_up(harness):
    harness.install_library("own", options={"label": "fits"})
    harness.submit_tasks(call(1, library="own"))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibrarySlow("own", "it builds its context: line 3 of a.py, in build"))
    harness.advance_time()
    harness.advance_time(3)
    (missing,) = harness.instructions_of(i.Stalled)
    assert f"library fits has been starting for more than 5 s on worker {worker}" in missing.text
    assert missing.text.endswith("it builds its context: line 3 of a.py, in build")
    assert not harness.advance_time(0.5), "the text changes in few steps only"
    harness.worker_sends(worker, m.LibraryReady("own", 9.0, {}))
    harness.advance_time()
    assert harness.scheduler.stalled_reason == ""


@pytest.mark.parametrize("end", ["over", "silent", "failed", "lost"])
def test_a_slot_that_has_started_after_all_is_named_no_more(harness, end):
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.connect_worker()
    harness.worker_sends(
        worker, m.LibraryReady("lib", 0.1, {}), m.LibrarySlow("lib", "it builds its context")
    )
    harness.advance_time()
    harness.advance_time(3)
    assert "it builds its context" in harness.scheduler.stalled_reason
    if end == "over":
        harness.worker_sends(worker, m.LibrarySlow("lib", ""))
    elif end == "failed":
        harness.worker_sends(worker, m.LibraryFailed("lib", "no", True, b""))
    elif end == "lost":
        harness.send_events(e.WorkerDisconnected(worker, "it is gone"))
    harness.advance_time(16 if end == "silent" else 1)
    assert harness.scheduler.stalled_reason == ""
