"""A task from its submission to its end."""

from __future__ import annotations

import gc

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FileSpec, GraphSpec, TaskSpec
from vinecore.scheduler.state import TaskState
from vinecore.scheduler.transitions import (
    ASSIGNED,
    CANCELLED,
    DONE,
    FAILED,
    READY,
    RETRIEVING,
    TRANSITIONS,
    UNFINISHED,
    WAITING,
    InvalidTransition,
    next_state,
)

STATES = (WAITING, READY, ASSIGNED, RETRIEVING, DONE, FAILED, CANCELLED)


@pytest.fixture
def vine():
    """A mind with a library of one slot, and no worker."""
    vine = Vine()
    vine.library()
    return vine


def once(number, *inputs, **spec):
    """A call as `Manager.submit` makes it: the result goes to who waits for the task, and nowhere else."""
    options = {"once": True, **spec.pop("options", {})}
    return call(number, *inputs, wanted_at_manager=(f"r{number}",), options=options, **spec)


# ---- the table


def test_the_table_knows_only_states_that_there_are():
    for event, moves in TRANSITIONS.items():
        assert set(moves) <= set(STATES), event
        assert set(moves.values()) <= set(STATES), event


def test_a_task_that_has_failed_or_was_cancelled_stays_so():
    for moves in TRANSITIONS.values():
        assert FAILED not in moves
        assert CANCELLED not in moves


def test_every_unfinished_task_can_fail_and_can_be_cancelled():
    assert set(TRANSITIONS["fail"]) == set(TRANSITIONS["cancel"]) == UNFINISHED


def test_every_state_is_reached_from_the_first_one():
    reached = {WAITING}
    for _ in STATES:
        reached |= {to for moves in TRANSITIONS.values() for at, to in moves.items() if at in reached}
    assert reached == set(STATES)


def test_what_is_not_in_the_table_cannot_happen():
    with pytest.raises(InvalidTransition, match="a task that is done cannot assign"):
        next_state(DONE, "assign")


# ---- one task


def test_a_task_waits_for_a_worker_runs_there_and_is_over(vine):
    vine.submit(once(1))
    assert vine.state(1) == READY
    worker = vine.join()
    ((where, run),) = vine.sent(m.RunTask)
    assert (where, run.task, run.library, run.function, run.result, run.return_result) == (
        worker,
        1,
        "lib",
        "f",
        "r1",
        True,
    )
    assert vine.state(1) == ASSIGNED
    vine.done(1, payload=b"value")
    assert vine.out == [i.TaskFinished(1, "success", worker, {}, b"value")]
    assert not vine.tables.tasks


def test_a_library_is_sent_before_its_first_call_and_its_setup_before_that(vine):
    vine.submit(once(1))
    vine.join()
    kinds = [x.name if isinstance(x, i.SendObject) else type(x.message).__name__ for x in vine.out]
    assert kinds == ["setup", "Library", "RunTask"]


def test_a_result_that_rides_with_the_message_leaves_no_file(vine):
    vine.submit(once(1))
    vine.join()
    vine.done(1, payload=b"value")
    assert "r1" not in vine.tables.files
    assert not vine.told(i.StoreObject)


def test_a_large_result_is_brought_before_the_task_is_reported(vine):
    vine.submit(once(1))
    worker = vine.join()
    vine.done(1, size=LARGE)
    assert vine.sent(m.Upload) == [(worker, m.Upload("r1"))]
    assert not vine.told(i.TaskFinished)
    assert vine.state(1) == RETRIEVING
    vine.feed(e.ObjectStored("r1", LARGE))
    assert vine.told(i.TaskFinished) == [i.TaskFinished(1, "success", worker, {}, b"")]
    assert (worker, "r1") in vine.unlinked()
    vine.feed(e.FilesReleased(["r1"], prune=False))
    assert vine.out == [i.DropObject("r1")]
    assert "r1" not in vine.tables.files


def test_a_small_result_is_kept_while_other_outputs_are_being_brought():
    vine = Vine()
    vine.declare("out")
    vine.submit(single(1, outputs=("out",), wanted_at_manager=("r1", "out"), options={"once": True}))
    worker = vine.join()
    vine.done(1, payload=b"value", outputs={"out": LARGE})
    assert vine.told(i.StoreObject) == [i.StoreObject("r1", b"value")]
    assert vine.sent(m.Upload) == [(worker, m.Upload("out"))]
    vine.feed(e.ObjectStored("out", LARGE))
    assert vine.told(i.TaskFinished) == [
        i.TaskFinished(1, "success", worker, {"outputs": {"out": LARGE}}, b"")
    ]
    assert vine.file("r1").at_manager


def test_a_task_without_any_result_is_reported_with_what_the_worker_said():
    vine = Vine()
    vine.submit(single(1, result=""))
    worker = vine.join()
    vine.done(1, size=0, exit_code=3)
    assert vine.out == [i.TaskFinished(1, "success", worker, {"exit_code": 3}, b"")]


def test_a_task_waits_for_what_is_made_for_it_and_starts_where_it_is(vine):
    vine.declare("r1")
    vine.submit(call(1), once(2, "r1", library="other"))
    assert vine.told(i.TaskFinished) == [
        i.TaskFinished(2, "library", 0, {"reason": "library other is not installed", "library": "other"}, b"")
    ]
    vine.submit(once(3, "r1"))
    assert [vine.state(1), vine.state(3)] == [READY, WAITING]
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.done(3, payload=b"3")
    assert outcomes(vine) == {2: "library", 1: "success", 3: "success"}
    assert vine.holders("r1") == {worker}, "the user has declared it and may want it later"


def test_an_input_that_was_never_declared_fails_the_task_and_names_it(vine):
    vine.submit(once(1, "nowhere"))
    (ended,) = vine.told(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "nowhere" in ended.info["reason"]
    assert not vine.tables.tasks


def test_an_input_twice_is_waited_for_once(vine):
    vine.declare("r1")
    vine.submit(call(1), once(2, "r1", "r1"))
    vine.join()
    vine.done(1, size=LARGE)
    vine.done(2, payload=b"2")
    assert outcomes(vine) == {1: "success", 2: "success"}


def test_a_task_of_many_inputs_becomes_ready_with_the_last_one():
    vine = Vine()
    numbers = range(1, 40)
    for number in numbers:
        vine.declare(f"r{number}")
    vine.submit(*(single(n) for n in numbers), single(100, *(f"r{n}" for n in numbers)))
    vine.join(cores=39)
    for number in numbers:
        assert vine.state(100) == WAITING
        vine.done(number)
    assert vine.state(100) == ASSIGNED


# ---- the bad ends


def test_an_exception_of_the_user_is_final_and_travels_as_it_is(vine):
    vine.submit(once(1, retries=5))
    worker = vine.join()
    vine.failed(1, "exception", b"pickled", text="ValueError: no")
    (ended,) = vine.told(i.TaskFinished)
    assert (ended.outcome, ended.worker, ended.payload) == ("exception", worker, b"pickled")
    assert ended.info == {"text": "ValueError: no", "attempt": 1}
    assert not vine.tables.tasks


def test_what_depends_on_a_failed_task_fails_with_it(vine):
    for name in ("r1", "r2"):
        vine.declare(name)
    vine.submit(call(1), call(2, "r1"), once(3, "r2"), once(4))
    vine.join()
    vine.failed(1, "exception")
    assert outcomes(vine) == {1: "exception", 2: "input missing", 3: "input missing"}
    assert "t2" in next(x for x in vine.told(i.TaskFinished) if x.task == 3).info["reason"]
    assert set(vine.tables.tasks) == {4}


def test_a_failed_task_leaves_no_record_of_its_result(vine):
    vine.submit(once(1))
    vine.join()
    vine.failed(1, "exception")
    assert "r1" not in vine.tables.files


def test_a_crash_is_tried_again_a_bounded_number_of_times_and_the_evidence_is_kept(vine):
    vine.submit(once(1, retries=2))
    worker = vine.join()
    for _ in range(2):
        vine.failed(1, "crash", reason="its process was killed by signal 11")
        assert not vine.told(i.TaskFinished)
        assert vine.state(1) == ASSIGNED
    vine.failed(1, "crash", reason="its process exited with code 3")
    (ended,) = vine.told(i.TaskFinished)
    assert (ended.outcome, ended.info["attempts"]) == ("crash", 3)
    signal = f"its process was killed by signal 11 on worker {worker} (host1)"
    assert ended.info["evidence"] == [
        signal,
        signal,
        f"its process exited with code 3 on worker {worker} (host1)",
    ]


def test_a_task_that_may_not_be_tried_again_fails_with_its_first_crash(vine):
    vine.submit(once(1, retries=0))
    vine.join()
    vine.failed(1, "crash")
    assert outcomes(vine) == {1: "crash"}


def test_a_task_that_is_handed_out_again_has_another_ticket(vine):
    vine.submit(once(1))
    worker = vine.join()
    vine.failed(1, "crash")
    ((_, again),) = vine.sent(m.RunTask)
    assert again.task != 1
    vine.say(worker, m.TaskDone(1, 10, 0.1, {}, b"late"))
    assert vine.out == []
    vine.done(1, payload=b"value")
    assert vine.told(i.TaskFinished)[0].payload == b"value"


def test_news_of_a_task_that_nobody_knows_changes_nothing(vine):
    worker = vine.join()
    assert vine.say(worker, m.TaskDone(77, 1, 0.1, {}, b""), m.TaskFailed(78, "crash", {}, b"")) == []
    assert vine.feed(e.MessageReceived(99, m.Pong())) == []


def test_a_task_that_ended_without_making_a_file_fails_who_reads_it():
    vine = Vine()
    for name in ("on failure", "kept"):
        vine.declare(name)
    vine.submit(
        single(1, result="", outputs=("on failure", "kept")), single(2, "on failure"), single(3, "kept")
    )
    vine.join(cores=3)
    vine.done(1, outputs={"kept": LARGE})
    (ended,) = (x for x in vine.told(i.TaskFinished) if x.task == 2)
    assert ended.outcome == "input missing"
    assert "t1 has ended without making on failure" in ended.info["reason"]
    assert vine.state(3) == ASSIGNED


# ---- cancelling


@pytest.mark.parametrize("state", [WAITING, READY, ASSIGNED, RETRIEVING])
def test_a_task_can_be_cancelled_in_every_state(vine, state):
    vine.declare("made")
    vine.submit(call(9, result="made"))
    vine.submit(once(1, "made") if state == WAITING else once(1))
    if state in (ASSIGNED, RETRIEVING):
        vine.feed(e.TasksCancelled([9]))
        worker = vine.join()
    if state == RETRIEVING:
        vine.done(1, size=LARGE)
    assert vine.state(1) == state
    vine.feed(e.TasksCancelled([1]))
    (ended,) = vine.told(i.TaskFinished)
    assert (ended.task, ended.outcome) == (1, "cancelled")
    assert 1 not in vine.tables.tasks
    assert "r1" not in vine.tables.files
    cancels = vine.sent(m.Cancel)
    assert cancels == ([(worker, m.Cancel([1]))] if state == ASSIGNED else [])
    if state in (ASSIGNED, RETRIEVING):
        assert (worker, "r1") in vine.unlinked(), "it may have been made while the message was on its way"
        assert vine.worker(worker).libraries["lib"].assigned == 0


def test_a_cancelled_task_that_was_faster_is_not_reported_twice(vine):
    vine.submit(once(1))
    worker = vine.join()
    vine.feed(e.TasksCancelled([1]))
    assert vine.say(worker, m.TaskDone(1, 10, 0.1, {}, b"value")) == []
    assert outcomes(vine) == {1: "cancelled"}


def test_a_bulky_result_that_comes_after_its_task_was_cancelled_is_forgotten(vine):
    vine.submit(once(1))
    vine.join()
    vine.done(1, size=LARGE)
    vine.feed(e.TasksCancelled([1]))
    assert vine.feed(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")]


def test_who_waits_for_a_cancelled_task_is_told(vine):
    vine.declare("r1")
    vine.submit(call(1), once(2, "r1"))
    vine.feed(e.TasksCancelled([1]))
    assert outcomes(vine) == {1: "cancelled", 2: "input missing"}


def test_tasks_that_are_cancelled_together_are_all_cancelled(vine):
    vine.declare("r1")
    vine.submit(call(1), once(2, "r1"))
    vine.feed(e.TasksCancelled([1, 2, 3]))
    assert outcomes(vine) == {1: "cancelled", 2: "cancelled"}


def test_cancelled_tasks_do_not_pile_up_in_the_queue(vine):
    vine.submit(*(once(n) for n in range(1, 1001)))
    for number in range(1, 1000):
        vine.feed(e.TasksCancelled([number]))
    (bucket,) = vine.tables.buckets.values()
    assert len(bucket.ready) < 50
    vine.join()
    assert vine.started() == [1000]


# ---- runs


def test_a_run_ends_when_its_last_task_is_done_and_what_is_wanted_is_here(vine):
    vine.compute(call(1), call(2, "r1", wanted_at_manager=("r2",)), report_each_task=True)
    worker = vine.join()
    vine.done(1, wall_s=0.2, note="n")
    assert vine.told(i.GraphTaskFinished) == [i.GraphTaskFinished(1, 1, worker, {"note": "n"})]
    vine.done(2, payload=b"two")
    assert i.StoreObject("r2", b"two") in vine.out
    assert vine.out.index(i.StoreObject("r2", b"two")) < vine.out.index(
        i.GraphFinished(1, "success", 0, {}, b"")
    )
    assert vine.run().done == 2


def test_a_run_does_not_end_before_all_of_it_was_submitted(vine):
    vine.join()
    vine.open()
    vine.submit(call(1, run=1))
    vine.done(1)
    assert not endings(vine)
    vine.feed(e.GraphSubmitted(1))
    assert endings(vine) == {1: "success"}


def test_an_empty_run_ends_at_once(vine):
    vine.compute()
    assert endings(vine) == {1: "success"}


def test_a_run_waits_for_what_is_being_brought(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)))
    vine.join()
    vine.done(1, size=LARGE)
    assert not endings(vine)
    vine.feed(e.ObjectStored("r1", LARGE))
    assert endings(vine) == {1: "success"}


def test_an_exception_ends_a_run_at_once_and_cancels_the_rest(vine):
    vine.library("other", slots=2)
    vine.compute(*(call(n, library="other") for n in range(1, 8)), call(8, "r1", "r7"))
    worker = vine.join(cores=2)
    on_worker = vine.where()
    assert set(on_worker) == set(range(1, 8))
    vine.failed(1, "exception", b"pickled", text="no")
    (ended,) = vine.told(i.GraphFinished)
    assert ended == i.GraphFinished(
        1, "exception", 1, {"text": "no", "attempt": 1, "worker": worker}, b"pickled"
    )
    ((_, cancel),) = vine.sent(m.Cancel)
    assert sorted(cancel.tasks) == sorted(set(on_worker) - {1})
    assert not vine.tables.tasks
    assert vine.run().unfinished == vine.run().running == 0
    assert not vine.told(i.TaskFinished), "the tasks of a run are not reported one by one"


def test_after_a_run_has_failed_its_further_tasks_are_not_taken(vine):
    vine.join()
    vine.open()
    vine.submit(call(1, run=1))
    vine.failed(1, "exception")
    vine.submit(call(2, run=1))
    vine.feed(e.GraphSubmitted(1))
    assert not vine.tables.tasks
    assert endings(vine) == {1: "exception"}


def test_the_retries_of_a_run_count_for_each_of_its_tasks(vine):
    vine.compute(call(1, retries=99), call(2, retries=0), retries=1)
    vine.join()
    vine.failed(1, "crash")
    vine.failed(2, "crash")
    assert not endings(vine)
    vine.failed(2, "crash")
    assert endings(vine) == {1: "crash"}


def test_a_run_that_fails_does_not_touch_another_one(vine):
    vine.compute(call(1), run=1)
    vine.compute(call(2), run=2)
    vine.join()
    vine.failed(1, "exception")
    vine.done(2)
    assert endings(vine) == {1: "exception", 2: "success"}


def test_a_task_that_needs_what_another_run_could_not_make_fails_too(vine):
    vine.open(1)
    vine.submit(call(1, run=1, reader_count=1))
    vine.compute(call(2, "r1"), run=2)
    vine.join()
    vine.failed(1, "exception")
    assert endings(vine) == {1: "exception", 2: "input missing"}
    assert not vine.tables.tasks


# ---- files that were asked for


def test_a_file_that_was_asked_for_is_brought_once_and_announced(vine):
    vine.declare("r1")
    vine.submit(call(1))
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.feed(e.FileRequested("r1"), e.FileRequested("r1"))
    assert vine.out == [i.Send(worker, m.Upload("r1"))]
    vine.feed(e.ObjectStored("r1", LARGE))
    assert vine.out == [i.FileAvailable("r1", "")]
    vine.feed(e.FileRequested("r1"))
    assert vine.out == [i.FileAvailable("r1", "")]


def test_a_file_that_was_asked_for_before_it_was_made_is_announced_when_it_is(vine):
    vine.declare("r1")
    vine.submit(call(1))
    vine.feed(e.FileRequested("r1"))
    assert vine.out == []
    vine.join()
    vine.done(1, payload=b"one")
    assert vine.told(i.FileAvailable) == [i.FileAvailable("r1", "")]
    assert vine.out.index(i.StoreObject("r1", b"one")) < vine.out.index(i.FileAvailable("r1", ""))


@pytest.mark.parametrize("end", ["failed", "cancelled", "undeclared"])
def test_who_asked_for_a_file_that_will_not_come_is_told_why(vine, end):
    vine.declare("r1")
    vine.submit(call(1))
    vine.join()
    vine.feed(e.FileRequested("r1"))
    if end == "failed":
        vine.failed(1, "exception")
    elif end == "cancelled":
        vine.feed(e.TasksCancelled([1]))
    else:
        vine.feed(e.FilesReleased(["r1"], prune=False))
    (obtained,) = vine.told(i.FileAvailable)
    assert obtained.name == "r1"
    assert obtained.reason


def test_a_file_that_nobody_declared_cannot_be_asked_for(vine):
    (obtained,) = vine.feed(e.FileRequested("nothing"))
    assert obtained == i.FileAvailable("nothing", "no such file is declared")


def test_what_a_run_wants_is_not_announced_to_anybody(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)))
    vine.join()
    vine.done(1, payload=b"one")
    assert not vine.told(i.FileAvailable)


# ---- what is left


def test_undeclared_files_go_when_the_last_task_that_needs_them_is_over(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    vine.submit(once(1, "data"))
    worker = vine.join()
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert "data" in vine.tables.files
    vine.cached(worker, "data")
    vine.done(1, payload=b"1")
    assert (worker, "data") in vine.unlinked()
    assert i.DropObject("data") in vine.out
    assert "data" not in vine.tables.files


def test_a_shared_object_that_was_released_stays_while_tasks_need_it(vine):
    vine.declare("function", size=10, at_manager=True)
    vine.submit(once(1, shared=("function",)), once(2, shared=("function",)))
    vine.feed(e.FilesReleased(["function"], prune=False))
    worker = vine.join()
    vine.done(1, payload=b"1")
    assert "function" in vine.tables.files
    vine.done(2, payload=b"2")
    assert (worker, "function") in vine.unlinked()
    assert "function" not in vine.tables.files


def test_a_file_that_is_declared_twice_is_released_twice(vine):
    vine.declare("data", size=10, at_manager=True)
    vine.declare("data", size=10, at_manager=True)
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert "data" in vine.tables.files
    assert vine.feed(e.FilesReleased(["data"], prune=False)) == [i.DropObject("data")]


def test_pruning_frees_replicas_and_keeps_the_name(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    vine.submit(once(1, "data"))
    worker = vine.join()
    vine.cached(worker, "data")
    vine.feed(e.FilesReleased(["data"], prune=True))
    assert not vine.unlinked(), "a task still reads it"
    vine.done(1, payload=b"1")
    vine.feed(e.FilesReleased(["data"], prune=True))
    assert vine.unlinked() == {(worker, "data")}
    assert vine.file("data").at_manager


def test_a_long_session_of_single_tasks_leaves_nothing_behind(vine):
    before = count_tasks()  # of the other vines of this process
    vine.declare("data", size=10, at_manager=True)
    worker = vine.join(cores=2)
    for number in range(1, 200):
        vine.declare(f"r{number}")
        vine.submit(call(number, "data", *([f"r{number - 1}"] if number > 1 else [])))
        vine.done(number, size=LARGE)
        if number > 1:
            vine.feed(e.FilesReleased([f"r{number - 1}"], prune=False))
    vine.feed(e.FilesReleased(["r199"], prune=False))
    assert set(vine.tables.files) == {"data", "setup"}
    assert not vine.file("data").consumers
    assert {file.name for file in vine.worker(worker).files} == {"data", "setup"}
    assert not vine.tables.tasks
    assert count_tasks() < before + 10


def count_tasks():
    gc.collect()
    return sum(type(thing) is TaskState for thing in gc.get_objects())


def test_buckets_of_many_different_requests_do_not_stay():
    vine = Vine()
    vine.join()
    for number in range(1, 100):
        vine.submit(single(number, request=ResourceRequest(cores=1, memory=number)))
        vine.done(number)
    assert not vine.tables.buckets


def test_a_closed_run_leaves_no_trace(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    vine.compute(
        *(
            call(n, "data", *([f"r{n - 1}"] if n > 1 else []), wanted_at_manager=(f"r{n}",) if n % 2 else ())
            for n in range(1, 10)
        ),
        prune_depth=0,
    )
    worker = vine.join(cores=2)
    vine.cached(worker, "data")
    vine.done(1, size=LARGE)
    vine.done(2, size=LARGE)
    vine.done(3, payload=b"3")
    running = vine.place(4)[1]
    vine.feed(e.GraphClosed(1))
    assert set(vine.tables.files) == {"data", "setup"}
    assert set(vine.tables.runs) == {0}
    assert not vine.tables.tasks
    assert {(worker, "r1"), (worker, "r2"), (worker, "r3")} <= vine.unlinked()
    assert i.DropObject("r3") in vine.out
    ((_, cancelled),) = vine.sent(m.Cancel)
    assert running in cancelled.tasks
    data = vine.file("data")
    assert (data.pending_readers, data.pin_count, dict(data.consumers)) == (0, 1, {})
    (instance,) = vine.worker(worker).libraries.values()
    assert instance.idle
    assert vine.feed(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")], "it was on its way"
    assert vine.feed(e.GraphClosed(1)) == []


def test_a_run_that_has_failed_leaves_no_trace_either(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    vine.compute(call(1, "data"), call(2, "r1"), call(3, "data"))
    vine.join()
    vine.failed(1, "exception")
    vine.feed(e.GraphClosed(1))
    assert set(vine.tables.files) == {"data", "setup"}
    assert not vine.tables.tasks
    assert vine.file("data").pending_readers == 0


def test_a_run_that_was_closed_while_it_was_submitted_leaves_no_trace(vine):
    vine.open(prune_depth=2)
    vine.submit(call(1, run=1), call(2, "r1", run=1))
    vine.feed(e.GraphClosed(1))
    vine.submit(call(3, "r2", run=1))
    vine.feed(e.GraphSubmitted(1))
    assert set(vine.tables.files) == {"setup"}
    assert not vine.tables.tasks


def test_a_result_that_the_user_holds_outlives_its_run(vine):
    vine.compute(call(1))
    vine.declare("r1")
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.feed(e.GraphClosed(1))
    assert vine.holders("r1") == {worker}
    vine.compute(call(2, "r1", wanted_at_manager=("r2",)), run=2)
    vine.done(2, payload=b"2")
    assert endings(vine) == {1: "success", 2: "success"}
    vine.feed(e.GraphClosed(2))
    assert "r1" in vine.tables.files
    vine.feed(e.FilesReleased(["r1"], prune=False))
    assert vine.unlinked() == {(worker, "r1")}
    assert "r1" not in vine.tables.files


def test_a_file_that_a_running_task_of_another_run_reads_outlives_its_run(vine):
    vine.compute(call(1), prune_depth=0)
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.compute(call(2, "r1"), run=2)
    vine.feed(e.GraphClosed(1))
    assert vine.holders("r1") == {worker}
    vine.done(2)
    assert (worker, "r1") in vine.unlinked()
    assert "r1" not in vine.tables.files


def test_resources_are_given_back_exactly():
    vine = Vine()
    vine.library(slots=None, request=ResourceRequest(cores=0.7))
    worker = vine.join(cores=3)
    requests = [ResourceRequest(cores=0.1 * n, memory=n) for n in range(1, 10)]
    vine.submit(*(single(n, request=requests[n % 9]) for n in range(1, 50)), once(99))
    while vine.tables.tasks:
        number = next(iter(vine.where()))
        if number % 3:
            vine.done(number)
        elif number % 2:
            vine.failed(number, "exception")
        else:
            vine.feed(e.TasksCancelled([number]))
    vine.feed(e.LibraryRemoved("lib"))
    assert vine.worker(worker).free == vine.worker(worker).total


def test_what_is_submitted_again_after_a_failure_may_make_the_same_file(vine):
    vine.declare("out")
    vine.submit(single(1, result="", outputs=("out",)))
    vine.join(cores=2)
    vine.failed(1, "exception")
    vine.submit(single(2, result="", outputs=("out",)), single(3, "out"))
    vine.done(2, outputs={"out": LARGE})
    vine.done(3)
    assert outcomes(vine) == {1: "exception", 2: "success", 3: "success"}


def test_records_are_as_declared():
    assert GraphSpec(1).prune_depth == 1
    assert TaskSpec(1, "t", "r").retries == 5
    assert FileSpec("f").size == -1
