"""What is lost is found elsewhere or made again, and nothing else is."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    LARGE,
    SchedulerHarness,
    call,
    chain,
    graph_outcomes,
    single,
    task_outcomes,
)
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.recovery import MAX_RECOMPUTATIONS
from vinecore.scheduler.transitions import ASSIGNED, RETRIEVING


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def made_again(harness):
    return {x.text.split()[1] for x in harness.instructions_of(i.LogMessage) if x.text.startswith("making ")}


def test_tasks_of_lost_worker_run_elsewhere(harness):
    """The tasks of a lost worker run elsewhere."""
    harness.compute_graph(call(1), call(2))
    first = harness.connect_worker()
    second = harness.connect_worker()
    harness.disconnect_worker(first)
    assert set(harness.assignments().values()) == {second}
    harness.complete_task(1)
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "success"}


def test_tasks_wait_for_next_worker(harness):
    """Tasks wait when the only worker is lost and run on the next one."""
    harness.compute_graph(call(1))
    harness.disconnect_worker(harness.connect_worker())
    assert not harness.assignments()
    worker = harness.connect_worker()
    assert harness.assignments() == {1: worker}


def test_replicated_file_is_not_made_again(harness):
    """A file with another copy is not made again."""
    harness.compute_graph(call(1), call(2, "r1"), call(3, "r1"), prune_depth=0)
    first = harness.connect_worker(cores=2)
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker()
    harness.worker_sends(first, m.TaskFailed(harness.assignment_of(3)[1], "crash", {}, b""))
    harness.report_cached(second, "r1")
    harness.disconnect_worker(first)
    assert not made_again(harness)
    assert harness.graph().recomputed == 0


def test_small_file_at_manager_is_not_remade(harness):
    """A small file that the manager has is not made again."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    first = harness.connect_worker()
    harness.complete_task(1, payload=b"one")
    harness.disconnect_worker(first)
    assert not made_again(harness)
    second = harness.connect_worker()
    assert i.SendObject(second, "r1") in harness.last_instructions


def test_needed_lost_file_is_made_again(harness):
    """A lost file is made again when somebody needs it."""
    harness.compute_graph(call(1), call(2, "r1"))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t1"}
    assert harness.graph().recomputed == 1
    assert (harness.graph().done, harness.graph().unfinished) == (0, 2)
    second = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "success"}
    assert second in harness.state.workers


def test_unneeded_lost_file_is_not_remade(harness):
    """A lost file that nobody needs is not made again."""
    harness.compute_graph(call(1), call(2, wanted_at_manager=("r2",)), prune_depth=0)
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    assert not made_again(harness)


def test_needed_generations_are_made_again(harness):
    """Of a chain that was pruned as it went, all of it; of what hangs on the side, nothing."""
    side = call(20, "r2", wanted_at_manager=("r20",))
    harness.compute_graph(*chain(6), side)
    first = harness.connect_worker()
    for number in range(1, 6):
        harness.complete_task(number, size=LARGE)
        if number == 3:
            harness.complete_task(20, payload=b"side")
    assert harness.assignment_of(6)[0] == first
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t1", "t2", "t3", "t4", "t5"}
    harness.connect_worker()
    assert harness.dispatched_tasks() == [1, 2, 3, 4, 5, 6]
    for number in range(1, 7):
        harness.complete_task(number, size=LARGE)
    assert graph_outcomes(harness) == {1: "success"}
    assert harness.graph().recomputed == 5


def test_recomputation_stops_at_present_files(harness):
    """Making again stops at what is still there."""
    harness.compute_graph(*chain(5), prune_depth=0)
    first = harness.connect_worker()
    for number in (1, 2):
        harness.complete_task(number, size=LARGE)
    second = harness.connect_worker()
    third = harness.connect_worker()
    harness.worker_sends(third, m.PersistentObjects(["r2"], [LARGE], [""]))
    harness.complete_task(3, size=LARGE)
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t3"}
    assert {harness.assignments()[n] for n in (3, 4, 5)} <= {second, third}


def test_long_chain_is_made_again():
    """A chain of any length can be made again."""
    harness = SchedulerHarness(validate=False)
    length = 3000
    harness.compute_graph(*(single(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, length + 1)))
    harness.connect_worker()
    for number in range(1, length):
        harness.complete_task(number, size=LARGE)
    harness.disconnect_worker(1)
    assert harness.graph().recomputed == length - 1
    harness.connect_worker()
    for number in range(1, length + 1):
        harness.complete_task(number, size=LARGE)
    assert graph_outcomes(harness) == {1: "success"}


def make_and_unpack_archive(harness):
    """Have task 1 make an archive, and task 2 begin, which reads the unpacked directory; return their worker."""
    harness.declare_file("r1")
    harness.declare_file("r2")
    harness.declare_file("folder", archive="r1", directory=True)
    first = harness.connect_worker()
    harness.submit_tasks(single(1), single(2, "folder"))
    harness.complete_task(1, size=LARGE)
    harness.report_cached(first, "folder", 0)
    assert harness.assignments() == {2: first}
    return first


def test_lost_archive_is_made_again_for_reader():
    """A task that reads an unpacked directory waits if its worker is lost, until the archive is made again."""
    harness = SchedulerHarness()
    harness.disconnect_worker(make_and_unpack_archive(harness))
    second = harness.connect_worker()
    assert harness.assignments() == {1: second}
    harness.complete_task(1, size=LARGE)
    assert harness.assignments() == {2: second}


def test_lost_result_and_archive_are_made_again():
    """A task is made again from an unpacked directory that is lost with its archive and the result."""
    harness = SchedulerHarness()
    first = make_and_unpack_archive(harness)
    harness.complete_task(2, size=LARGE)
    harness.disconnect_worker(first)
    harness.submit_tasks(single(3, "r2"))
    second = harness.connect_worker()
    for number in (1, 2, 3):
        assert harness.assignments() == {number: second}
        harness.complete_task(number, size=LARGE)


def test_diamond_is_made_again_once(harness):
    """A diamond is made again with every vertex once."""
    harness.compute_graph(call(1), call(2, "r1"), call(3, "r1"), call(4, "r2", "r3"))
    harness.connect_worker()
    for number in (1, 2, 3):
        harness.complete_task(number, size=LARGE)
    harness.disconnect_worker(1)
    assert made_again(harness) == {"t1", "t2", "t3"}
    harness.connect_worker()
    for number in (1, 2, 3, 4):
        assert harness.task(number).recomputations == (number != 4)
        harness.complete_task(number, size=LARGE)
    assert graph_outcomes(harness) == {1: "success"}
    assert not harness.state.tasks


def test_other_output_stays_as_it_is():
    """Making one output again leaves the other as it is."""
    harness = SchedulerHarness()
    harness.declare_file("a")
    harness.declare_file("b")
    harness.submit_tasks(single(1, result="", outputs=("a", "b")))
    first = harness.connect_worker()
    harness.complete_task(1, outputs={"a": LARGE, "b": LARGE})
    harness.submit_tasks(single(2, "a"), single(3, "b"))
    second = harness.connect_worker()
    assert harness.assignments() == {2: first, 3: second}
    harness.worker_sends(first, m.ObjectsLost(["a"]))
    assert made_again(harness) == {"t1"}
    harness.report_cached(second, "b")
    while harness.state.tasks:
        number = next(iter(harness.assignments()))
        harness.complete_task(number, outputs={"a": LARGE, "b": LARGE} if number == 1 else {})
    assert task_outcomes(harness) == {1: "success", 2: "success", 3: "success"}


def test_remade_task_is_reported_once(harness):
    """A task that was reported is not reported again when it is made again."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1), call(2, "r1"))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert [x.task for x in harness.instructions_of(i.TaskFinished, harness.log)] == [1]


def test_remade_vertex_is_reported_once(harness):
    """A vertex is told once even if it ran twice."""
    harness.compute_graph(call(1), call(2, "r1"), report_each_task=True)
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(1)
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2)
    assert [x.task for x in harness.instructions_of(i.GraphTaskFinished, harness.log)] == [1, 2]


def test_retries_are_bounded_and_recorded(harness):
    """Retries are bounded and every lost worker is in the evidence."""
    harness.compute_graph(call(1), retries=2)
    for _ in range(3):
        harness.disconnect_worker(harness.connect_worker(), "the connection broke")
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert (ended.outcome, ended.task, ended.info["attempts"]) == ("crash", 1, 3)
    assert ended.info["evidence"] == [
        f"worker {n} on host{n} was lost (the connection broke)" for n in (1, 2, 3)
    ]


def test_raising_task_is_retried_as_requested(harness):
    """A task that raises runs again as often as it asks for."""
    harness.connect_worker()
    harness.compute_graph(call(1, exception_retries=2), retries=0)
    for again in (1, 2):
        harness.fail_task(1, "exception", b"error", text="OSError: busy")
        assert not graph_outcomes(harness)
        assert f"it is run again, {again} of 2" in harness.instructions_of(i.LogMessage)[0].text
    harness.fail_task(1, "exception", b"the last", text="OSError: busy")
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert (ended.outcome, ended.info["attempt"], ended.payload) == ("exception", 3, b"the last")


def test_a_worker_that_says_goodbye_blames_nobody(harness):
    harness.compute_graph(call(1), retries=0)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.Draining("its time is over"))
    assert harness.last_instructions == [i.Disconnect(worker, "its time is over")]
    harness.disconnect_worker(worker)
    assert harness.task(1).attempts == 0
    assert not graph_outcomes(harness)


def test_file_losses_are_bounded(harness):
    """A file can be lost only so many times."""
    harness.compute_graph(call(1), call(2, "r1"), retries=99)
    for _ in range(MAX_RECOMPUTATIONS + 1):
        worker = harness.connect_worker()
        harness.complete_task(1, size=LARGE)
        assert not graph_outcomes(harness)
        harness.disconnect_worker(worker)
    (ended,) = harness.instructions_of(i.GraphFinished)
    assert ended.outcome == "input missing"
    assert "the result of t1 was lost 21 times" in ended.info["reason"]


def test_target_lost_in_upload_is_made_again(harness):
    """A wanted result that is lost on its way is made again."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert harness.state_of(1) == RETRIEVING
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t1"}
    second = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert harness.messages_sent(m.Upload) == [(second, m.Upload("r1"))]
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert graph_outcomes(harness) == {1: "success"}


def test_target_is_uploaded_from_other_replica(harness):
    """A wanted result with another copy is brought from there."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), prune_depth=0)
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker()
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    harness.disconnect_worker(first)
    assert harness.messages_sent(m.Upload) == [(second, m.Upload("r1"))]
    assert not made_again(harness)


def test_failed_upload_makes_result_again(harness):
    """A result that could not be brought is made again."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.worker_sends(worker, m.UploadFailed("r1", "its disk has failed"))
    assert made_again(harness) == {"t1"}
    assert harness.state_of(1) == ASSIGNED


def test_result_just_before_worker_loss_counts(harness):
    """The worker's loss is known before the upload is: what is made again is not needed any more."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    harness.send_events(e.ObjectStored("r1", LARGE))
    harness.connect_worker()
    assert 2 in harness.assignments()


def test_failed_graph_makes_nothing_again(harness):
    """Nothing of a run that has failed is made again."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), call(2), call(3, "r1"))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.fail_task(2, "exception")
    harness.disconnect_worker(worker)
    assert not made_again(harness)
    assert not harness.state.tasks


def test_closed_graphs_result_is_remade_for_other(harness):
    """What another run needs is made again even if its own run is over."""
    harness.compute_graph(call(1), prune_depth=0)
    harness.declare_file("r1")
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.GraphClosed(1))
    harness.compute_graph(call(2, "r1", wanted_at_manager=("r2",)), number=2)
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t1"}
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, payload=b"2")
    assert graph_outcomes(harness) == {1: "success", 2: "success"}
    harness.send_events(e.GraphClosed(2), e.FilesReleased(["r1"], prune=False))
    assert set(harness.state.files) == {"setup"}


def test_unnamed_file_is_remade_for_descendants(harness):
    """What nobody can name any more is made again for what descends from it."""
    harness.declare_file("r1")
    harness.declare_file("r2")
    harness.submit_tasks(call(1), call(2, "r1"))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, size=LARGE)
    harness.send_events(e.FilesReleased(["r1"], prune=False))
    assert "r1" not in harness.state.files
    harness.submit_tasks(call(3, "r2"))
    harness.disconnect_worker(first)
    assert made_again(harness) == {"t1", "t2"}
    harness.connect_worker()
    for number in (1, 2, 3):
        harness.complete_task(number, size=LARGE)
    assert task_outcomes(harness) == {1: "success", 2: "success", 3: "success"}
    assert "r1" not in harness.state.files


def test_unrecoverable_file_fails_readers_with_reason(harness):
    """A lost file that cannot be made again fails who needs it and says so."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    harness.send_events(e.LibraryRemoved("lib"))
    harness.install_library("new")
    harness.submit_tasks(call(2, "r1", library="new"))
    (ended,) = harness.instructions_of(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "the result of t1 is gone, and the library that made it was removed" in ended.info["reason"]


def test_damaged_replica_is_sent_again(harness):
    """A file that is damaged on a worker is sent again from the manager."""
    harness.declare_file("data", size=10, at_manager=True)
    harness.submit_tasks(call(1, "data"))
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.ObjectsLost(["data"]))
    assert i.SendObject(worker, "data") in harness.last_instructions


def test_worker_loss_fails_graph_once(harness):
    """One of its tasks fails for good while the others are being taken off the same worker."""
    harness.compute_graph(*(single(n) for n in range(1, 6)), retries=0)
    worker = harness.connect_worker(cores=5)
    harness.disconnect_worker(worker)
    assert len(harness.instructions_of(i.GraphFinished)) == 1
    assert not harness.state.tasks
    assert harness.graph().running == harness.graph().unfinished == 0
    harness.connect_worker(cores=5)
    assert not harness.dispatched_tasks()


@pytest.mark.parametrize("end", ["done", "failed"])
def test_output_of_returned_attempt_is_replaced(end):
    """An output that is replaced by an attempt that was taken back is what came last."""
    harness = SchedulerHarness()
    harness.declare_file("a")
    harness.declare_file("b")
    harness.submit_tasks(single(1), single(2, "r1", result="", outputs=("a", "b")), single(3, "r1", "a", "b"))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, outputs={"a": LARGE, "b": LARGE}, digests={"a": "a 1", "b": "b 1"})
    harness.worker_sends(worker, m.ObjectsLost(["a"]))
    assert made_again(harness) == {"t2"}
    _worker, ticket = harness.assignment_of(2)
    again = {"outputs": {"a": LARGE, "b": LARGE}, "digests": {"a": "a 2", "b": "b 2"}}
    late = (
        m.TaskDone(ticket, 0, 0.05, again, b"")
        if end == "done"
        else m.TaskFailed(ticket, "exception", again, b"")
    )
    harness.worker_sends(worker, m.ObjectsLost(["r1"]), late)
    assert (worker, "b") not in harness.removed_objects()
    assert harness.file("b").replicas == {harness.worker(worker): "b 2"}
