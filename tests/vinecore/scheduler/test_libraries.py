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
from vinecore.scheduler.specs import LibrarySpec
from vinecore.scheduler.tuning import Tuning


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def slots(harness, worker, name="lib"):
    instance = harness.worker(worker).libraries.get(name)
    return instance.slots if instance else 0


def test_library_starts_once_where_calls_are(harness):
    """A library is started where its calls are and once."""
    first = harness.connect_worker()
    harness.connect_worker()
    harness.submit_tasks(call(1))
    assert [worker for worker, _ in harness.messages_sent(m.Library)] == [first]
    harness.complete_task(1)
    harness.submit_tasks(call(2), call(3))
    assert [worker for worker, _ in harness.messages_sent(m.Library, harness.log)].count(first) == 1


def test_library_message_has_settings_and_files():
    """A library is told what it is and what it has."""
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


def test_unspecified_library_takes_whole_worker():
    """Without a word on resources a library takes the worker with a slot for each core."""
    harness = SchedulerHarness()
    harness.install_library(slots=None, request=ResourceRequest())
    worker = harness.connect_worker(cores=4)
    harness.submit_tasks(call(1))
    assert slots(harness, worker) == 4
    assert harness.worker(worker).free.cores == 0


def test_library_grows_with_waiting_calls(harness):
    """A library grows with the calls that wait for it."""
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


def test_idle_library_stops_for_other_library(harness):
    """An idle library is stopped when another one needs its room."""
    harness.install_library("other")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1), call(2, library="other"))
    assert not harness.messages_sent(m.RemoveLibrary)
    harness.complete_task(1)
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert harness.assignments() == {2: worker}


def test_idle_library_stops_for_single_task(harness):
    """An idle library is stopped to make room for a single task."""
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


def test_useless_stop_is_avoided(harness):
    """No library is stopped where that would not help."""
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1))
    harness.complete_task(1)
    harness.submit_tasks(single(2, request=ResourceRequest(cores=3)))
    harness.advance_time()
    assert slots(harness, worker) == 1


def test_only_needed_libraries_are_stopped(harness):
    """Only as many libraries are stopped as are in the way."""
    harness.install_library("other")
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1), call(2, library="other"))
    harness.complete_task(1)
    harness.complete_task(2)
    harness.submit_tasks(single(3))
    assert len(harness.messages_sent(m.RemoveLibrary)) == 1
    assert slots(harness, worker) + slots(harness, worker, "other") == 1


def test_idle_library_behind_many_is_found(harness):
    """A library that is behind many others is found when it is idle."""
    for _ in range(100):
        harness.connect_worker()
    harness.submit_tasks(*(call(n) for n in range(1, 101)))
    harness.submit_tasks(single(999))
    assert 999 not in harness.assignments()
    last = harness.assignments()[100]
    harness.complete_task(100)
    assert harness.assignments()[999] == last


def test_dead_library_returns_calls_and_restarts(harness):
    """A library that dies gives its calls back and is started again."""
    harness.compute_graph(*(call(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, 4)), retries=0)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    ((_, cancel),) = harness.messages_sent(m.Cancel)
    assert sorted(cancel.tasks) == [1, 2, 3]
    assert len(harness.messages_sent(m.Library)) == 1
    assert harness.dispatched_tasks() == [1, 2, 3]
    assert harness.task(1).attempts == 0, "its library has died, not the call"
    assert not graph_outcomes(harness)


def test_library_that_keeps_dying_fails_calls(harness):
    """A library that keeps dying fails its calls after a few times."""
    harness.submit_tasks(call(1), single(2))
    worker = harness.connect_worker(cores=2)
    for _ in range(Tuning().max_library_retries):
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


def test_successful_call_resets_library_failures(harness):
    """A call that succeeds proves that the library works."""
    harness.submit_tasks(*(call(n) for n in range(1, 60)))
    worker = harness.connect_worker()
    for number in range(1, 20):
        harness.complete_task(number)
        harness.worker_sends(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    assert all(outcome == "success" for outcome in task_outcomes(harness).values())


def test_unstartable_library_fails_calls_at_once(harness):
    """A library that can never come up fails its calls at once."""
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


def test_calls_after_failure_try_again(harness):
    """Calls that come after a failure try again."""
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryFailed("lib", "no", True, b""))
    harness.submit_tasks(call(2))
    assert harness.assignments() == {2: worker}
    harness.worker_sends(worker, m.LibraryReady("lib", 0.1, {}))
    harness.complete_task(2)
    assert task_outcomes(harness) == {1: "library", 2: "success"}


def test_ready_library_reports_versions(harness):
    """A library that is up says which versions it has."""
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryReady("lib", 0.5, {"numpy": "2.0"}))
    assert harness.last_instructions == [i.LibraryStarted(worker, "lib", {"numpy": "2.0"})]
    assert harness.worker_sends(worker, m.LibraryReady("other", 0.5, {})) == []


def test_removed_library_ends_with_its_calls(harness):
    """A removed library ends everywhere and its calls with it."""
    workers = [harness.connect_worker(), harness.connect_worker()]
    harness.submit_tasks(call(1), call(2))
    harness.send_events(e.LibraryRemoved("lib"))
    assert [worker for worker, _ in harness.messages_sent(m.RemoveLibrary)] == workers
    assert task_outcomes(harness) == {1: "library", 2: "library"}
    assert all(harness.worker(w).free == harness.worker(w).total for w in workers)
    assert not harness.state.queues
    harness.submit_tasks(call(3))
    assert task_outcomes(harness)[3] == "library"


def test_replaced_library_goes_after_its_calls(harness):
    """A library that is replaced goes when its calls are over."""
    worker = harness.connect_worker()
    harness.submit_tasks(call(1), call(2))
    assert not harness.messages_sent(m.RemoveLibrary, harness.send_events(e.LibraryRetired("lib")))
    harness.complete_task(1)
    assert not harness.messages_sent(m.RemoveLibrary)
    harness.complete_task(2)
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert "lib" not in harness.state.libraries
    assert not harness.state.queues


def test_unused_replaced_library_goes_at_once(harness):
    """A library without calls goes at once when it is replaced."""
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1)
    harness.send_events(e.LibraryRetired("lib"), e.LibraryRetired("nothing"))
    assert harness.messages_sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]


def test_reinstalled_retired_library_stays(harness):
    """A library that is installed again before it has gone stays."""
    harness.connect_worker()
    harness.submit_tasks(call(1))
    spec = harness.state.libraries["lib"].spec
    harness.send_events(e.LibraryRetired("lib"), e.LibraryInstalled(spec))
    harness.complete_task(1)
    assert "lib" in harness.state.libraries


def test_restart_stops_libraries_and_reruns_calls(harness):
    """A restart stops all libraries and runs their calls again."""
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


def test_removal_of_unknown_library_does_nothing(harness):
    """Removing a library that is not there does nothing."""
    assert harness.send_events(e.LibraryRemoved("nothing")) == []


def test_library_is_installed_once_with_files(harness):
    """A library is installed once and holds its files."""
    harness.declare_file("data", size=10, at_manager=True)
    spec = LibrarySpec("own", "setup", files=("data",), request=ONE_CORE)
    harness.send_events(e.LibraryInstalled(spec), e.LibraryInstalled(spec))
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert "data" in harness.state.files
    harness.send_events(e.LibraryRemoved("own"))
    assert i.DropObject("data") in harness.last_instructions
    assert "data" not in harness.state.files


def test_call_crossing_library_death_runs_again(harness):
    """A call that was on its way while its library died runs again."""
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(
        worker, m.TaskFailed(1, "library", {"reason": "the library is not on this worker"}, b"")
    )
    assert harness.dispatched_tasks() == [1]
    assert harness.task(1).attempts == 0


def test_unstartable_python_fails_task_after_retries():
    """A single task whose python does not start is tried a bounded number of times."""
    harness = SchedulerHarness()
    harness.submit_tasks(single(1, retries=2))
    harness.connect_worker()
    for _ in range(3):
        harness.fail_task(1, "library", reason="its Python has ended with code 1")
    assert task_outcomes(harness) == {1: "crash"}


def test_unobtainable_library_file_fails_calls():
    """A library whose file cannot be had fails its calls and is not tried for ever."""
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


def test_environment_is_unpacked_before_library():
    """An environment is unpacked on the worker before the library starts."""
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


def test_slow_library_start_is_named(harness):
    """A library that takes long to start is named until it is up."""
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


def test_slow_import_names_task_until_it_ends(harness):
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.LibraryReady("lib", 0.1, {}), m.LibrarySlow("lib", "own (a/own.py)", 1))
    harness.advance_time()
    harness.advance_time(3)
    said = f"has been importing own (a/own.py) for more than 5 s on worker {worker} "
    assert said in harness.scheduler.stalled_reason
    assert harness.scheduler.stalled_reason.startswith(harness.scheduler.state.tasks[1].spec.label)
    harness.send_events(e.TasksCancelled([1]))
    harness.advance_time()
    assert harness.scheduler.stalled_reason == ""


@pytest.mark.parametrize("end", ["over", "silent", "failed", "lost"])
def test_late_slot_start_ends_warning(harness, end):
    """A slot that has started after all is named no more."""
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
