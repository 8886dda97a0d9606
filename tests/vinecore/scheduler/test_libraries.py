"""Libraries on workers: started once, grown, stopped, and what happens when they do not come up."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.libraries import MAX_LIBRARY_FAILURES
from vinecore.scheduler.specs import LibrarySpec


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def slots(vine, worker, name="lib"):
    instance = vine.worker(worker).libraries.get(name)
    return instance.slots if instance else 0


def test_a_library_is_started_where_its_calls_are_and_once(vine):
    first = vine.join()
    vine.join()
    vine.submit(call(1))
    assert [worker for worker, _ in vine.sent(m.Library)] == [first]
    vine.done(1)
    vine.submit(call(2), call(3))
    assert [worker for worker, _ in vine.sent(m.Library, vine.log)].count(first) == 1


def test_a_library_is_told_what_it_is_and_what_it_has():
    vine = Vine()
    vine.declare("data", size=LARGE, at_manager=True)
    vine.library(
        "own",
        slots=3,
        request=ResourceRequest(cores=2),
        exec_mode="fork",
        files=("data",),
        options={"label": "l"},
    )
    worker = vine.join(cores=4)
    vine.submit(call(1, library="own"))
    ((_, library),) = vine.sent(m.Library)
    assert library == m.Library("own", "setup", "", 3, "fork", {"label": "l", "cores": 2, "memory": 2000})
    assert vine.fetches() == [(worker, "data", "manager")]
    assert i.SendObject(worker, "setup") in vine.out


def test_without_a_word_on_resources_a_library_takes_the_worker_with_a_slot_for_each_core():
    vine = Vine()
    vine.library(slots=None, request=ResourceRequest())
    worker = vine.join(cores=4)
    vine.submit(call(1))
    assert slots(vine, worker) == 4
    assert vine.worker(worker).free.cores == 0


def test_a_library_grows_with_the_calls_that_wait_for_it(vine):
    worker = vine.join(cores=3)
    vine.submit(call(1))
    assert slots(vine, worker) == 1
    vine.submit(call(2))
    assert slots(vine, worker) == 2
    vine.submit(*(call(n) for n in range(3, 20)))
    assert slots(vine, worker) == 3, "and no further than the worker goes"
    assert [library.slots for _, library in vine.sent(m.Library, vine.log)] == [1, 2, 3]
    assert vine.worker(worker).free.cores == 0


def test_several_libraries_share_a_worker(vine):
    vine.library("other")
    worker = vine.join(cores=2)
    vine.submit(call(1), call(2, library="other"))
    assert (slots(vine, worker), slots(vine, worker, "other")) == (1, 1)


def test_an_idle_library_is_stopped_when_another_one_needs_its_room(vine):
    vine.library("other")
    worker = vine.join()
    vine.submit(call(1), call(2, library="other"))
    assert not vine.sent(m.RemoveLibrary)
    vine.done(1)
    assert vine.sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert vine.where() == {2: worker}


def test_an_idle_library_is_stopped_to_make_room_for_a_single_task(vine):
    worker = vine.join()
    vine.submit(call(1))
    vine.done(1)
    vine.submit(single(2))
    order = [type(x.message).__name__ for x in vine.told(i.Send)]
    assert order == ["RemoveLibrary", "RunTask"]
    assert vine.where() == {2: worker}
    vine.done(2)
    assert vine.worker(worker).free == vine.worker(worker).total


def test_a_busy_library_is_not_stopped(vine):
    vine.join()
    vine.submit(call(1))
    vine.submit(single(2))
    assert not vine.sent(m.RemoveLibrary)
    assert list(vine.where()) == [1]


def test_no_library_is_stopped_where_that_would_not_help(vine):
    worker = vine.join(cores=2)
    vine.submit(call(1))
    vine.done(1)
    vine.submit(single(2, request=ResourceRequest(cores=3)))
    vine.tick()
    assert slots(vine, worker) == 1


def test_only_as_many_libraries_are_stopped_as_are_in_the_way(vine):
    vine.library("other")
    worker = vine.join(cores=2)
    vine.submit(call(1), call(2, library="other"))
    vine.done(1)
    vine.done(2)
    vine.submit(single(3))
    assert len(vine.sent(m.RemoveLibrary)) == 1
    assert slots(vine, worker) + slots(vine, worker, "other") == 1


def test_a_library_that_is_behind_many_others_is_found_when_it_is_idle(vine):
    for _ in range(100):
        vine.join()
    vine.submit(*(call(n) for n in range(1, 101)))
    vine.submit(single(999))
    assert 999 not in vine.where()
    last = vine.where()[100]
    vine.done(100)
    assert vine.where()[999] == last


def test_a_library_that_dies_gives_its_calls_back_and_is_started_again(vine):
    vine.compute(*(call(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, 4)), retries=0)
    worker = vine.join()
    vine.say(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    ((_, cancel),) = vine.sent(m.Cancel)
    assert sorted(cancel.tasks) == [1, 2, 3]
    assert len(vine.sent(m.Library)) == 1
    assert vine.started() == [1, 2, 3]
    assert vine.task(1).attempts == 0, "its library has died, not the call"
    assert not endings(vine)


def test_a_library_that_keeps_dying_fails_its_calls_after_a_few_times(vine):
    vine.submit(call(1), single(2))
    worker = vine.join(cores=2)
    for _ in range(MAX_LIBRARY_FAILURES):
        vine.say(worker, m.LibraryReady("lib", 0.1, {}), m.LibraryFailed("lib", "its slots die", False, b""))
        assert not vine.told(i.TaskFinished)
    vine.say(worker, m.LibraryFailed("lib", "its slots die", False, b""))
    (ended,) = vine.told(i.TaskFinished)
    assert (ended.task, ended.outcome) == (1, "library")
    assert ended.info == {"reason": "its slots die", "library": "lib"}
    assert vine.where() == {2: worker}
    vine.done(2)
    assert vine.worker(worker).free == vine.worker(worker).total


def test_a_call_that_succeeds_proves_that_the_library_works(vine):
    vine.submit(*(call(n) for n in range(1, 60)))
    worker = vine.join()
    for number in range(1, 20):
        vine.done(number)
        vine.say(worker, m.LibraryFailed("lib", "its process was killed", False, b""))
    assert all(outcome == "success" for outcome in outcomes(vine).values())


def test_a_library_that_can_never_come_up_fails_its_calls_at_once(vine):
    vine.compute(call(1), call(2))
    worker = vine.join()
    vine.say(worker, m.LibraryFailed("lib", "ImportError: no module named uproot", True, b"pickled"))
    (ended,) = vine.told(i.GraphFinished)
    assert ended.outcome == "library"
    assert ended.payload == b"pickled"
    assert ended.info["reason"] == "ImportError: no module named uproot"
    assert vine.worker(worker).free == vine.worker(worker).total


def test_calls_that_come_after_a_failure_try_again(vine):
    vine.submit(call(1))
    worker = vine.join()
    vine.say(worker, m.LibraryFailed("lib", "no", True, b""))
    vine.submit(call(2))
    assert vine.where() == {2: worker}
    vine.say(worker, m.LibraryReady("lib", 0.1, {}))
    vine.done(2)
    assert outcomes(vine) == {1: "library", 2: "success"}


def test_a_library_that_is_up_says_which_versions_it_has(vine):
    vine.submit(call(1))
    worker = vine.join()
    vine.say(worker, m.LibraryReady("lib", 0.5, {"numpy": "2.0"}))
    assert vine.out == [i.LibraryStarted(worker, "lib", {"numpy": "2.0"})]
    assert vine.say(worker, m.LibraryReady("other", 0.5, {})) == []


def test_a_removed_library_ends_everywhere_and_its_calls_with_it(vine):
    workers = [vine.join(), vine.join()]
    vine.submit(call(1), call(2))
    vine.feed(e.LibraryRemoved("lib"))
    assert [worker for worker, _ in vine.sent(m.RemoveLibrary)] == workers
    assert outcomes(vine) == {1: "library", 2: "library"}
    assert all(vine.worker(w).free == vine.worker(w).total for w in workers)
    assert not vine.tables.buckets
    vine.submit(call(3))
    assert outcomes(vine)[3] == "library"


def test_a_library_that_is_replaced_goes_when_its_calls_are_over(vine):
    worker = vine.join()
    vine.submit(call(1), call(2))
    assert not vine.sent(m.RemoveLibrary, vine.feed(e.LibraryRetired("lib")))
    vine.done(1)
    assert not vine.sent(m.RemoveLibrary)
    vine.done(2)
    assert vine.sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]
    assert "lib" not in vine.tables.libraries
    assert not vine.tables.buckets


def test_a_library_without_calls_goes_at_once_when_it_is_replaced(vine):
    worker = vine.join()
    vine.submit(call(1))
    vine.done(1)
    vine.feed(e.LibraryRetired("lib"), e.LibraryRetired("nothing"))
    assert vine.sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("lib"))]


def test_a_library_that_is_installed_again_before_it_has_gone_stays(vine):
    vine.join()
    vine.submit(call(1))
    spec = vine.tables.libraries["lib"].spec
    vine.feed(e.LibraryRetired("lib"), e.LibraryInstalled(spec))
    vine.done(1)
    assert "lib" in vine.tables.libraries


def test_a_restart_stops_all_libraries_and_runs_their_calls_again(vine):
    worker = vine.join()
    vine.submit(call(1), call(2))
    vine.feed(e.Restarted())
    assert (worker, m.RemoveLibrary("lib")) in vine.sent(m.RemoveLibrary)
    assert vine.sent(m.Restart) == [(worker, m.Restart())]
    assert set(vine.started()) == {1, 2}
    assert vine.task(1).attempts == 0
    vine.done(1)
    vine.done(2)
    assert outcomes(vine) == {1: "success", 2: "success"}


def test_removing_a_library_that_is_not_there_does_nothing(vine):
    assert vine.feed(e.LibraryRemoved("nothing")) == []


def test_a_library_is_installed_once_and_holds_its_files(vine):
    vine.declare("data", size=10, at_manager=True)
    spec = LibrarySpec("own", "setup", files=("data",), request=ONE_CORE)
    vine.feed(e.LibraryInstalled(spec), e.LibraryInstalled(spec))
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert "data" in vine.tables.files
    vine.feed(e.LibraryRemoved("own"))
    assert i.DropObject("data") in vine.out
    assert "data" not in vine.tables.files


def test_a_call_that_was_on_its_way_while_its_library_died_runs_again(vine):
    vine.submit(call(1))
    worker = vine.join()
    vine.say(worker, m.TaskFailed(1, "library", {"reason": "the library is not on this worker"}, b""))
    assert vine.started() == [1]
    assert vine.task(1).attempts == 0


def test_a_single_task_whose_python_does_not_start_is_tried_a_bounded_number_of_times():
    vine = Vine()
    vine.submit(single(1, retries=2))
    vine.join()
    for _ in range(3):
        vine.failed(1, "library", reason="its Python has ended with code 1")
    assert outcomes(vine) == {1: "crash"}


def test_a_library_whose_file_cannot_be_had_fails_its_calls_and_is_not_tried_for_ever():
    vine = Vine()
    vine.declare("data", url="https://example.org/x")
    vine.library("own", files=("data",))
    worker = vine.join()
    vine.submit(call(1, library="own"))
    vine.fetch_failed(worker, "data", "https://example.org/x", gone=True)
    assert outcomes(vine) == {1: "input missing"}
    assert vine.sent(m.RemoveLibrary) == [(worker, m.RemoveLibrary("own"))]
    for _ in range(10):
        assert not vine.tick(60.0)


def test_an_environment_is_unpacked_on_the_worker_before_the_library_starts():
    vine = Vine()
    vine.declare("env.tar", size=LARGE, at_manager=True)
    vine.declare("env", archive="env.tar", directory=True)
    vine.library("own", environment="env")
    worker = vine.join()
    vine.submit(call(1, library="own"))
    kinds = [type(x.message).__name__ for x in vine.told(i.Send)]
    assert kinds == ["Fetch", "Unpack", "Library", "RunTask"]
    assert vine.fetches() == [(worker, "env.tar", "manager")]
    vine.cached(worker, "env.tar")
    vine.cached(worker, "env", 0)
    assert vine.holders("env") == vine.holders("env.tar") == {worker}


def test_a_library_that_takes_long_to_start_is_named_until_it_is_up(vine):
    vine.library("own", options={"label": "fits"})
    vine.submit(call(1, library="own"))
    worker = vine.join()
    vine.say(worker, m.LibrarySlow("own", "it builds its context: line 3 of a.py, in build"))
    vine.tick()
    vine.tick(3)
    (missing,) = vine.told(i.Stalled)
    assert f"library fits has been starting for more than 5 s on worker {worker}" in missing.text
    assert missing.text.endswith("it builds its context: line 3 of a.py, in build")
    assert not vine.tick(0.5), "the text changes in few steps only"
    vine.say(worker, m.LibraryReady("own", 9.0, {}))
    vine.tick()
    assert vine.mind.stalled_reason == ""


@pytest.mark.parametrize("end", ["over", "silent", "failed", "lost"])
def test_a_slot_that_has_started_after_all_is_named_no_more(vine, end):
    vine.submit(call(1))
    worker = vine.join()
    vine.join()
    vine.say(worker, m.LibraryReady("lib", 0.1, {}), m.LibrarySlow("lib", "it builds its context"))
    vine.tick()
    vine.tick(3)
    assert "it builds its context" in vine.mind.stalled_reason
    if end == "over":
        vine.say(worker, m.LibrarySlow("lib", ""))
    elif end == "failed":
        vine.say(worker, m.LibraryFailed("lib", "no", True, b""))
    elif end == "lost":
        vine.feed(e.WorkerDisconnected(worker, "it is gone"))
    vine.tick(16 if end == "silent" else 1)
    assert vine.mind.stalled_reason == ""
