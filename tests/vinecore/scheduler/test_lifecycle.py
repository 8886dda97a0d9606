"""A task from its submission to its end."""

from __future__ import annotations

import gc

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes, single, task_outcomes
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
def harness():
    """A scheduler with a library of one slot, and no worker."""
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def once(number, *inputs, **spec):
    """A call as `Manager.submit` makes it: the result goes to who waits for the task, and nowhere else."""
    options = {"once": True, **spec.pop("options", {})}
    return call(number, *inputs, wanted_at_manager=(f"r{number}",), options=options, **spec)


# ---- the table


def test_transition_table_has_known_states_only():
    """The table knows only states that there are."""
    for event, moves in TRANSITIONS.items():
        assert set(moves) <= set(STATES), event
        assert set(moves.values()) <= set(STATES), event


def test_failed_and_cancelled_are_final():
    """A task that has failed or was cancelled stays so."""
    for moves in TRANSITIONS.values():
        assert FAILED not in moves
        assert CANCELLED not in moves


def test_unfinished_tasks_can_fail_and_be_cancelled():
    """Every unfinished task can fail and can be cancelled."""
    assert set(TRANSITIONS["fail"]) == set(TRANSITIONS["cancel"]) == UNFINISHED


def test_every_state_is_reachable():
    """Every state is reached from the first one."""
    reached = {WAITING}
    for _ in STATES:
        reached |= {to for moves in TRANSITIONS.values() for at, to in moves.items() if at in reached}
    assert reached == set(STATES)


def test_impossible_transition_raises():
    """What is not in the table cannot happen."""
    with pytest.raises(InvalidTransition, match="a task that is done cannot assign"):
        next_state(DONE, "assign")


# ---- one task


def test_task_waits_runs_and_ends(harness):
    """A task waits for a worker runs there and is over."""
    harness.submit_tasks(once(1))
    assert harness.state_of(1) == READY
    worker = harness.connect_worker()
    ((where, run),) = harness.messages_sent(m.RunTask)
    assert (where, run.task, run.library, run.function, run.result, run.return_result) == (
        worker,
        1,
        "lib",
        "f",
        "r1",
        True,
    )
    assert harness.state_of(1) == ASSIGNED
    harness.complete_task(1, payload=b"value")
    assert [end[:5] for end in harness.instructions_of(i.TaskFinished)] == [
        (1, "success", worker, {}, b"value")
    ]
    assert not harness.state.tasks


def test_library_precedes_call_and_setup_precedes_library(harness):
    """A library is sent before its first call and its setup before that."""
    harness.submit_tasks(once(1))
    harness.connect_worker()
    kinds = [
        x.name if isinstance(x, i.SendObject) else type(x.message).__name__ for x in harness.last_instructions
    ]
    assert kinds == ["setup", "Library", "RunTask"]


def test_inline_result_leaves_no_file(harness):
    """A result that rides with the message leaves no file."""
    harness.submit_tasks(once(1))
    harness.connect_worker()
    harness.complete_task(1, payload=b"value")
    assert "r1" not in harness.state.files
    assert not harness.instructions_of(i.StoreObject)


def test_large_result_is_uploaded_before_report(harness):
    """A large result is brought before the task is reported."""
    harness.submit_tasks(once(1))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert harness.messages_sent(m.Upload) == [(worker, m.Upload("r1"))]
    assert not harness.instructions_of(i.TaskFinished)
    assert harness.state_of(1) == RETRIEVING
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert [end[:5] for end in harness.instructions_of(i.TaskFinished)] == [(1, "success", worker, {}, b"")]
    assert (worker, "r1") in harness.removed_objects()
    harness.send_events(e.FilesReleased(["r1"], prune=False))
    assert harness.last_instructions == [i.DropObject("r1")]
    assert "r1" not in harness.state.files


def test_small_result_waits_for_other_outputs():
    """A small result is kept while other outputs are being brought."""
    harness = SchedulerHarness()
    harness.declare_file("out")
    harness.submit_tasks(single(1, outputs=("out",), wanted_at_manager=("r1", "out"), options={"once": True}))
    worker = harness.connect_worker()
    harness.complete_task(1, payload=b"value", outputs={"out": LARGE})
    assert harness.instructions_of(i.StoreObject) == [i.StoreObject("r1", b"value")]
    assert harness.messages_sent(m.Upload) == [(worker, m.Upload("out"))]
    harness.send_events(e.ObjectStored("out", LARGE))
    assert [end[:5] for end in harness.instructions_of(i.TaskFinished)] == [
        (1, "success", worker, {"outputs": {"out": LARGE}}, b"")
    ]
    assert harness.file("r1").at_manager


def test_task_without_result_reports_worker_info():
    """A task without any result is reported with what the worker said."""
    harness = SchedulerHarness()
    harness.submit_tasks(single(1, result=""))
    worker = harness.connect_worker()
    harness.complete_task(1, size=0, exit_code=3)
    assert [end[:5] for end in harness.instructions_of(i.TaskFinished)] == [
        (1, "success", worker, {"exit_code": 3}, b"")
    ]


def test_task_starts_where_its_input_is_made(harness):
    """A task waits for what is made for it and starts where it is."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1), once(2, "r1", library="other"))
    assert [end[:5] for end in harness.instructions_of(i.TaskFinished)] == [
        (2, "library", 0, {"reason": "library other is not installed", "library": "other"}, b"")
    ]
    harness.submit_tasks(once(3, "r1"))
    assert [harness.state_of(1), harness.state_of(3)] == [READY, WAITING]
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(3, payload=b"3")
    assert task_outcomes(harness) == {2: "library", 1: "success", 3: "success"}
    assert harness.replica_holders("r1") == {worker}, "the user has declared it and may want it later"


def test_undeclared_input_fails_task_with_name(harness):
    """An input that was never declared fails the task and names it."""
    harness.submit_tasks(once(1, "nowhere"))
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "nowhere" in ended.info["reason"]
    assert not harness.state.tasks


def test_an_input_twice_is_waited_for_once(harness):
    harness.declare_file("r1")
    harness.submit_tasks(call(1), once(2, "r1", "r1"))
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, payload=b"2")
    assert task_outcomes(harness) == {1: "success", 2: "success"}


def test_task_is_ready_with_last_input():
    """A task of many inputs becomes ready with the last one."""
    harness = SchedulerHarness()
    numbers = range(1, 40)
    for number in numbers:
        harness.declare_file(f"r{number}")
    harness.submit_tasks(*(single(n) for n in numbers), single(100, *(f"r{n}" for n in numbers)))
    harness.connect_worker(cores=39)
    for number in numbers:
        assert harness.state_of(100) == WAITING
        harness.complete_task(number)
    assert harness.state_of(100) == ASSIGNED


# ---- the bad ends


def test_user_exception_is_final(harness):
    """An exception of the user is final and travels as it is."""
    harness.submit_tasks(once(1, retries=5))
    worker = harness.connect_worker()
    harness.fail_task(1, "exception", b"pickled", text="ValueError: no")
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert (ended.outcome, ended.worker, ended.payload) == ("exception", worker, b"pickled")
    assert ended.info == {"text": "ValueError: no", "attempt": 1}
    assert not harness.state.tasks


def test_failed_task_fails_its_readers(harness):
    """What depends on a failed task fails with it."""
    for name in ("r1", "r2"):
        harness.declare_file(name)
    harness.submit_tasks(call(1), call(2, "r1"), once(3, "r2"), once(4))
    harness.connect_worker()
    harness.fail_task(1, "exception")
    assert task_outcomes(harness) == {1: "exception", 2: "input missing", 3: "input missing"}
    assert "t2" in next(x for x in harness.instructions_of(i.TaskFinished) if x.task == 3).info["reason"]
    assert set(harness.state.tasks) == {4}


def test_failed_task_leaves_no_result_record(harness):
    """A failed task leaves no record of its result."""
    harness.submit_tasks(once(1))
    harness.connect_worker()
    harness.fail_task(1, "exception")
    assert "r1" not in harness.state.files


def test_crash_retries_are_bounded_with_history(harness):
    """A crash is tried again a bounded number of times and the evidence is kept."""
    harness.submit_tasks(once(1, retries=2))
    worker = harness.connect_worker()
    for _ in range(2):
        harness.fail_task(1, "crash", reason="its process was killed by signal 11")
        assert not harness.instructions_of(i.TaskFinished)
        assert harness.state_of(1) == ASSIGNED
    harness.fail_task(1, "crash", reason="its process exited with code 3")
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert (ended.outcome, ended.info["attempts"]) == ("crash", 3)
    signal = f"its process was killed by signal 11 on worker {worker} (host1)"
    assert ended.info["evidence"] == [
        signal,
        signal,
        f"its process exited with code 3 on worker {worker} (host1)",
    ]


def test_task_without_retries_fails_at_crash(harness):
    """A task that may not be tried again fails with its first crash."""
    harness.submit_tasks(once(1, retries=0))
    harness.connect_worker()
    harness.fail_task(1, "crash")
    assert task_outcomes(harness) == {1: "crash"}


def test_second_attempt_has_new_dispatch_id(harness):
    """A task that is handed out again has another ticket."""
    harness.submit_tasks(once(1))
    worker = harness.connect_worker()
    harness.fail_task(1, "crash")
    ((_, again),) = harness.messages_sent(m.RunTask)
    assert again.task != 1
    harness.worker_sends(worker, m.TaskDone(1, 10, 0.1, {}, b"late"))
    assert harness.last_instructions == []
    harness.complete_task(1, payload=b"value")
    assert harness.instructions_of(i.TaskFinished)[0].payload == b"value"


def test_message_of_unknown_task_changes_nothing(harness):
    """News of a task that nobody knows changes nothing."""
    worker = harness.connect_worker()
    assert (
        harness.worker_sends(worker, m.TaskDone(77, 1, 0.1, {}, b""), m.TaskFailed(78, "crash", {}, b""))
        == []
    )
    assert harness.send_events(e.MessageReceived(99, m.Pong())) == []


def test_missing_output_fails_readers():
    """A task that ended without making a file fails who reads it."""
    harness = SchedulerHarness()
    for name in ("on failure", "kept"):
        harness.declare_file(name)
    harness.submit_tasks(
        single(1, result="", outputs=("on failure", "kept")), single(2, "on failure"), single(3, "kept")
    )
    harness.connect_worker(cores=3)
    harness.complete_task(1, outputs={"kept": LARGE})
    (ended,) = (x for x in harness.instructions_of(i.TaskFinished) if x.task == 2)
    assert ended.outcome == "input missing"
    assert "t1 has ended without making on failure" in ended.info["reason"]
    assert harness.state_of(3) == ASSIGNED


# ---- cancelling


@pytest.mark.parametrize("state", [WAITING, READY, ASSIGNED, RETRIEVING])
def test_task_can_be_cancelled_in_every_state(harness, state):
    """A task can be cancelled in every state."""
    harness.declare_file("made")
    harness.submit_tasks(call(9, result="made"))
    harness.submit_tasks(once(1, "made") if state == WAITING else once(1))
    if state in (ASSIGNED, RETRIEVING):
        harness.send_events(e.TasksCancelled([9]))
        worker = harness.connect_worker()
    if state == RETRIEVING:
        harness.complete_task(1, size=LARGE)
    assert harness.state_of(1) == state
    harness.send_events(e.TasksCancelled([1]))
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert (ended.task, ended.outcome) == (1, "cancelled")
    assert 1 not in harness.state.tasks
    assert "r1" not in harness.state.files
    cancels = harness.messages_sent(m.Cancel)
    assert cancels == ([(worker, m.Cancel([1]))] if state == ASSIGNED else [])
    if state in (ASSIGNED, RETRIEVING):
        assert (worker, "r1") in harness.removed_objects(), (
            "it may have been made while the message was on its way"
        )
        assert harness.worker(worker).libraries["lib"].assigned == 0


def test_faster_cancelled_task_is_reported_once(harness):
    """A cancelled task that was faster is not reported twice."""
    harness.submit_tasks(once(1))
    worker = harness.connect_worker()
    harness.send_events(e.TasksCancelled([1]))
    assert harness.worker_sends(worker, m.TaskDone(1, 10, 0.1, {}, b"value")) == []
    assert task_outcomes(harness) == {1: "cancelled"}


def test_late_large_result_of_cancelled_is_forgotten(harness):
    """A bulky result that comes after its task was cancelled is forgotten."""
    harness.submit_tasks(once(1))
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.TasksCancelled([1]))
    assert harness.send_events(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")]


def test_reader_of_cancelled_task_is_told(harness):
    """Who waits for a cancelled task is told."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1), once(2, "r1"))
    harness.send_events(e.TasksCancelled([1]))
    assert task_outcomes(harness) == {1: "cancelled", 2: "input missing"}


def test_tasks_cancelled_together_are_cancelled(harness):
    """Tasks that are cancelled together are all cancelled."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1), once(2, "r1"))
    harness.send_events(e.TasksCancelled([1, 2, 3]))
    assert task_outcomes(harness) == {1: "cancelled", 2: "cancelled"}


def test_cancelled_tasks_leave_the_queue(harness):
    """Cancelled tasks do not pile up in the queue."""
    harness.submit_tasks(*(once(n) for n in range(1, 1001)))
    for number in range(1, 1000):
        harness.send_events(e.TasksCancelled([number]))
    (queue,) = harness.state.queues.values()
    assert len(queue.ready) < 50
    harness.connect_worker()
    assert harness.dispatched_tasks() == [1000]


# ---- runs


def test_graph_ends_with_last_task_and_target(harness):
    """A run ends when its last task is done and what is wanted is here."""
    harness.compute_graph(call(1), call(2, "r1", wanted_at_manager=("r2",)), report_each_task=True)
    worker = harness.connect_worker()
    harness.complete_task(1, wall_s=0.2, note="n")
    assert harness.instructions_of(i.GraphTaskFinished) == [i.GraphTaskFinished(1, 1, worker, {"note": "n"})]
    harness.complete_task(2, payload=b"two")
    assert i.StoreObject("r2", b"two") in harness.last_instructions
    assert harness.last_instructions.index(i.StoreObject("r2", b"two")) < harness.last_instructions.index(
        i.GraphFinished(1, "success", 0, {}, b"")
    )
    assert harness.graph().done == 2


def test_graph_ends_after_submission_only(harness):
    """A run does not end before all of it was submitted."""
    harness.connect_worker()
    harness.open_graph()
    harness.submit_tasks(call(1, graph=1))
    harness.complete_task(1)
    assert not graph_outcomes(harness)
    harness.send_events(e.GraphSubmitted(1))
    assert graph_outcomes(harness) == {1: "success"}


def test_an_empty_run_ends_at_once(harness):
    harness.compute_graph()
    assert graph_outcomes(harness) == {1: "success"}


def test_graph_waits_for_uploads(harness):
    """A run waits for what is being brought."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)))
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert not graph_outcomes(harness)
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert graph_outcomes(harness) == {1: "success"}


def test_exception_ends_graph_and_cancels_rest(harness):
    """An exception ends a run at once and cancels the rest."""
    harness.install_library("other", slots=2)
    harness.compute_graph(*(call(n, library="other") for n in range(1, 8)), call(8, "r1", "r7"))
    worker = harness.connect_worker(cores=2)
    on_worker = harness.assignments()
    assert set(on_worker) == set(range(1, 8))
    harness.fail_task(1, "exception", b"pickled", text="no")
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert ended == i.GraphFinished(
        1, "exception", 1, {"text": "no", "attempt": 1, "worker": worker}, b"pickled"
    )
    ((_, cancel),) = harness.messages_sent(m.Cancel)
    assert sorted(cancel.tasks) == sorted(set(on_worker) - {1})
    assert not harness.state.tasks
    assert harness.graph().unfinished == harness.graph().running == 0
    assert not harness.instructions_of(i.TaskFinished), "the tasks of a run are not reported one by one"


def test_failed_graph_takes_no_further_tasks(harness):
    """After a run has failed its further tasks are not taken."""
    harness.connect_worker()
    harness.open_graph()
    harness.submit_tasks(call(1, graph=1))
    harness.fail_task(1, "exception")
    harness.submit_tasks(call(2, graph=1))
    harness.send_events(e.GraphSubmitted(1))
    assert not harness.state.tasks
    assert graph_outcomes(harness) == {1: "exception"}


def test_graph_retries_count_per_task(harness):
    """The retries of a run count for each of its tasks."""
    harness.compute_graph(call(1, retries=99), call(2, retries=0), retries=1)
    harness.connect_worker()
    harness.fail_task(1, "crash")
    harness.fail_task(2, "crash")
    assert not graph_outcomes(harness)
    harness.fail_task(2, "crash")
    assert graph_outcomes(harness) == {1: "crash"}


def test_failed_graph_does_not_affect_other(harness):
    """A run that fails does not touch another one."""
    harness.compute_graph(call(1), number=1)
    harness.compute_graph(call(2), number=2)
    harness.connect_worker()
    harness.fail_task(1, "exception")
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "exception", 2: "success"}


def test_reader_of_failed_graphs_result_fails(harness):
    """A task that needs what another run could not make fails too."""
    harness.open_graph(1)
    harness.submit_tasks(call(1, graph=1, reader_count=1))
    harness.compute_graph(call(2, "r1"), number=2)
    harness.connect_worker()
    harness.fail_task(1, "exception")
    assert graph_outcomes(harness) == {1: "exception", 2: "input missing"}
    assert not harness.state.tasks


# ---- files that were asked for


def test_requested_file_is_uploaded_once_and_announced(harness):
    """A file that was asked for is brought once and announced."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.FileRequested("r1"), e.FileRequested("r1"))
    assert harness.last_instructions == [i.Send(worker, m.Upload("r1"))]
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert harness.last_instructions == [i.FileAvailable("r1", "")]
    harness.send_events(e.FileRequested("r1"))
    assert harness.last_instructions == [i.FileAvailable("r1", "")]


def test_early_requested_file_is_announced_when_made(harness):
    """A file that was asked for before it was made is announced when it is."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    harness.send_events(e.FileRequested("r1"))
    assert harness.last_instructions == []
    harness.connect_worker()
    harness.complete_task(1, payload=b"one")
    assert harness.instructions_of(i.FileAvailable) == [i.FileAvailable("r1", "")]
    assert harness.last_instructions.index(i.StoreObject("r1", b"one")) < harness.last_instructions.index(
        i.FileAvailable("r1", "")
    )


@pytest.mark.parametrize("end", ["failed", "cancelled", "undeclared"])
def test_request_of_lost_file_gets_reason(harness, end):
    """Who asked for a file that will not come is told why."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    harness.connect_worker()
    harness.send_events(e.FileRequested("r1"))
    if end == "failed":
        harness.fail_task(1, "exception")
    elif end == "cancelled":
        harness.send_events(e.TasksCancelled([1]))
    else:
        harness.send_events(e.FilesReleased(["r1"], prune=False))
    (obtained,) = harness.instructions_of(i.FileAvailable)
    assert obtained.name == "r1"
    assert obtained.reason


def test_undeclared_file_cannot_be_requested(harness):
    """A file that nobody declared cannot be asked for."""
    (obtained,) = harness.send_events(e.FileRequested("nothing"))
    assert obtained == i.FileAvailable("nothing", "no such file is declared")


def test_target_of_graph_is_not_announced(harness):
    """What a run wants is not announced to anybody."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)))
    harness.connect_worker()
    harness.complete_task(1, payload=b"one")
    assert not harness.instructions_of(i.FileAvailable)


# ---- what is left


def test_undeclared_files_go_after_last_reader(harness):
    """Undeclared files go when the last task that needs them is over."""
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.submit_tasks(once(1, "data"))
    worker = harness.connect_worker()
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert "data" in harness.state.files
    harness.report_cached(worker, "data")
    harness.complete_task(1, payload=b"1")
    assert (worker, "data") in harness.removed_objects()
    assert i.DropObject("data") in harness.last_instructions
    assert "data" not in harness.state.files


def test_released_shared_object_stays_while_needed(harness):
    """A shared object that was released stays while tasks need it."""
    harness.declare_file("function", size=10, at_manager=True)
    harness.submit_tasks(once(1, shared=("function",)), once(2, shared=("function",)))
    harness.send_events(e.FilesReleased(["function"], prune=False))
    worker = harness.connect_worker()
    harness.complete_task(1, payload=b"1")
    assert "function" in harness.state.files
    harness.complete_task(2, payload=b"2")
    assert (worker, "function") in harness.removed_objects()
    assert "function" not in harness.state.files


def test_file_declared_twice_is_released_twice(harness):
    """A file that is declared twice is released twice."""
    harness.declare_file("data", size=10, at_manager=True)
    harness.declare_file("data", size=10, at_manager=True)
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert "data" in harness.state.files
    assert harness.send_events(e.FilesReleased(["data"], prune=False)) == [i.DropObject("data")]


def test_pruning_frees_replicas_and_keeps_the_name(harness):
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.submit_tasks(once(1, "data"))
    worker = harness.connect_worker()
    harness.report_cached(worker, "data")
    harness.send_events(e.FilesReleased(["data"], prune=True))
    assert not harness.removed_objects(), "a task still reads it"
    harness.complete_task(1, payload=b"1")
    harness.send_events(e.FilesReleased(["data"], prune=True))
    assert harness.removed_objects() == {(worker, "data")}
    assert harness.file("data").at_manager


def test_many_single_tasks_leave_no_records(harness):
    """A long session of single tasks leaves nothing behind."""
    before = count_tasks()  # of the other vines of this process
    harness.declare_file("data", size=10, at_manager=True)
    worker = harness.connect_worker(cores=2)
    for number in range(1, 200):
        harness.declare_file(f"r{number}")
        harness.submit_tasks(call(number, "data", *([f"r{number - 1}"] if number > 1 else [])))
        harness.complete_task(number, size=LARGE)
        if number > 1:
            harness.send_events(e.FilesReleased([f"r{number - 1}"], prune=False))
    harness.send_events(e.FilesReleased(["r199"], prune=False))
    assert set(harness.state.files) == {"data", "setup"}
    assert not harness.file("data").consumers
    assert {file.name for file in harness.worker(worker).files} == {"data", "setup"}
    assert not harness.state.tasks
    assert count_tasks() < before + 10


def count_tasks():
    gc.collect()
    return sum(type(thing) is TaskState for thing in gc.get_objects())


def test_queues_of_past_requests_are_removed():
    """Buckets of many different requests do not stay."""
    harness = SchedulerHarness()
    harness.connect_worker()
    for number in range(1, 100):
        harness.submit_tasks(single(number, request=ResourceRequest(cores=1, memory=number)))
        harness.complete_task(number)
    assert not harness.state.queues


def test_a_closed_run_leaves_no_trace(harness):
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.compute_graph(
        *(
            call(n, "data", *([f"r{n - 1}"] if n > 1 else []), wanted_at_manager=(f"r{n}",) if n % 2 else ())
            for n in range(1, 10)
        ),
        prune_depth=0,
    )
    worker = harness.connect_worker(cores=2)
    harness.report_cached(worker, "data")
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, size=LARGE)
    harness.complete_task(3, payload=b"3")
    running = harness.assignment_of(4)[1]
    harness.send_events(e.GraphClosed(1))
    assert set(harness.state.files) == {"data", "setup"}
    assert set(harness.state.graphs) == {0}
    assert not harness.state.tasks
    assert {(worker, "r1"), (worker, "r2"), (worker, "r3")} <= harness.removed_objects()
    assert i.DropObject("r3") in harness.last_instructions
    ((_, cancelled),) = harness.messages_sent(m.Cancel)
    assert running in cancelled.tasks
    data = harness.file("data")
    assert (data.pending_readers, data.pin_count, dict(data.consumers)) == (0, 1, {})
    (instance,) = harness.worker(worker).libraries.values()
    assert instance.idle
    assert harness.send_events(e.ObjectStored("r1", LARGE)) == [i.DropObject("r1")], "it was on its way"
    assert harness.send_events(e.GraphClosed(1)) == []


def test_failed_graph_leaves_no_records(harness):
    """A run that has failed leaves no trace either."""
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.compute_graph(call(1, "data"), call(2, "r1"), call(3, "data"))
    harness.connect_worker()
    harness.fail_task(1, "exception")
    harness.send_events(e.GraphClosed(1))
    assert set(harness.state.files) == {"data", "setup"}
    assert not harness.state.tasks
    assert harness.file("data").pending_readers == 0


def test_graph_closed_early_leaves_no_records(harness):
    """A run that was closed while it was submitted leaves no trace."""
    harness.open_graph(prune_depth=2)
    harness.submit_tasks(call(1, graph=1), call(2, "r1", graph=1))
    harness.send_events(e.GraphClosed(1))
    harness.submit_tasks(call(3, "r2", graph=1))
    harness.send_events(e.GraphSubmitted(1))
    assert set(harness.state.files) == {"setup"}
    assert not harness.state.tasks


def test_pinned_result_outlives_graph(harness):
    """A result that the user holds outlives its run."""
    harness.compute_graph(call(1))
    harness.declare_file("r1")
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.GraphClosed(1))
    assert harness.replica_holders("r1") == {worker}
    harness.compute_graph(call(2, "r1", wanted_at_manager=("r2",)), number=2)
    harness.complete_task(2, payload=b"2")
    assert graph_outcomes(harness) == {1: "success", 2: "success"}
    harness.send_events(e.GraphClosed(2))
    assert "r1" in harness.state.files
    harness.send_events(e.FilesReleased(["r1"], prune=False))
    assert harness.removed_objects() == {(worker, "r1")}
    assert "r1" not in harness.state.files


def test_file_read_by_other_graph_outlives(harness):
    """A file that a running task of another run reads outlives its run."""
    harness.compute_graph(call(1), prune_depth=0)
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.compute_graph(call(2, "r1"), number=2)
    harness.send_events(e.GraphClosed(1))
    assert harness.replica_holders("r1") == {worker}
    harness.complete_task(2)
    assert (worker, "r1") in harness.removed_objects()
    assert "r1" not in harness.state.files


def test_resources_are_given_back_exactly():
    harness = SchedulerHarness()
    harness.install_library(slots=None, request=ResourceRequest(cores=0.7))
    worker = harness.connect_worker(cores=3)
    requests = [ResourceRequest(cores=0.1 * n, memory=n) for n in range(1, 10)]
    harness.submit_tasks(*(single(n, request=requests[n % 9]) for n in range(1, 50)), once(99))
    while harness.state.tasks:
        number = next(iter(harness.assignments()))
        if number % 3:
            harness.complete_task(number)
        elif number % 2:
            harness.fail_task(number, "exception")
        else:
            harness.send_events(e.TasksCancelled([number]))
    harness.send_events(e.LibraryRemoved("lib"))
    assert harness.worker(worker).free == harness.worker(worker).total


def test_resubmission_may_make_same_file(harness):
    """What is submitted again after a failure may make the same file."""
    harness.declare_file("out")
    harness.submit_tasks(single(1, result="", outputs=("out",)))
    harness.connect_worker(cores=2)
    harness.fail_task(1, "exception")
    harness.submit_tasks(single(2, result="", outputs=("out",)), single(3, "out"))
    harness.complete_task(2, outputs={"out": LARGE})
    harness.complete_task(3)
    assert task_outcomes(harness) == {1: "exception", 2: "success", 3: "success"}


def test_records_are_as_declared():
    assert GraphSpec(1).prune_depth == 1
    assert TaskSpec(1, "t", "r").retries == 5
    assert FileSpec("f").size == -1
