"""What is lost is found elsewhere or made again, and nothing else is."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, chain, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.recovery import MAX_RECOMPUTATIONS
from vinecore.scheduler.transitions import ASSIGNED, RETRIEVING


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def made_again(vine):
    return {x.text.split()[1] for x in vine.told(i.LogMessage) if x.text.startswith("making ")}


def test_the_tasks_of_a_lost_worker_run_elsewhere(vine):
    vine.compute(call(1), call(2))
    first = vine.join()
    second = vine.join()
    vine.lose(first)
    assert set(vine.where().values()) == {second}
    vine.done(1)
    vine.done(2)
    assert endings(vine) == {1: "success"}


def test_tasks_wait_when_the_only_worker_is_lost_and_run_on_the_next_one(vine):
    vine.compute(call(1))
    vine.lose(vine.join())
    assert not vine.where()
    worker = vine.join()
    assert vine.where() == {1: worker}


def test_a_file_with_another_copy_is_not_made_again(vine):
    vine.compute(call(1), call(2, "r1"), call(3, "r1"), prune_depth=0)
    first = vine.join(cores=2)
    vine.done(1, size=LARGE)
    second = vine.join()
    vine.say(first, m.TaskFailed(vine.place(3)[1], "crash", {}, b""))
    vine.cached(second, "r1")
    vine.lose(first)
    assert not made_again(vine)
    assert vine.run().recomputed == 0


def test_a_small_file_that_the_manager_has_is_not_made_again(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    first = vine.join()
    vine.done(1, payload=b"one")
    vine.lose(first)
    assert not made_again(vine)
    second = vine.join()
    assert i.SendObject(second, "r1") in vine.out


def test_a_lost_file_is_made_again_when_somebody_needs_it(vine):
    vine.compute(call(1), call(2, "r1"))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.lose(first)
    assert made_again(vine) == {"t1"}
    assert vine.run().recomputed == 1
    assert (vine.run().done, vine.run().unfinished) == (0, 2)
    second = vine.join()
    vine.done(1, size=LARGE)
    vine.done(2)
    assert endings(vine) == {1: "success"}
    assert second in vine.tables.workers


def test_a_lost_file_that_nobody_needs_is_not_made_again(vine):
    vine.compute(call(1), call(2, wanted_at_manager=("r2",)), prune_depth=0)
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.lose(first)
    assert not made_again(vine)


def test_several_generations_are_made_again_and_only_those_that_are_needed(vine):
    """Of a chain that was pruned as it went, all of it; of what hangs on the side, nothing."""
    side = call(20, "r2", wanted_at_manager=("r20",))
    vine.compute(*chain(6), side)
    first = vine.join()
    for number in range(1, 6):
        vine.done(number, size=LARGE)
        if number == 3:
            vine.done(20, payload=b"side")
    assert vine.place(6)[0] == first
    vine.lose(first)
    assert made_again(vine) == {"t1", "t2", "t3", "t4", "t5"}
    vine.join()
    assert vine.started() == [1, 2, 3, 4, 5, 6]
    for number in range(1, 7):
        vine.done(number, size=LARGE)
    assert endings(vine) == {1: "success"}
    assert vine.run().recomputed == 5


def test_making_again_stops_at_what_is_still_there(vine):
    vine.compute(*chain(5), prune_depth=0)
    first = vine.join()
    for number in (1, 2):
        vine.done(number, size=LARGE)
    second = vine.join()
    third = vine.join()
    vine.say(third, m.PersistentObjects(["r2"], [LARGE], [""]))
    vine.done(3, size=LARGE)
    vine.lose(first)
    assert made_again(vine) == {"t3"}
    assert {vine.where()[n] for n in (3, 4, 5)} <= {second, third}


def test_a_chain_of_any_length_can_be_made_again():
    vine = Vine(validate=False)
    length = 3000
    vine.compute(*(single(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, length + 1)))
    vine.join()
    for number in range(1, length):
        vine.done(number, size=LARGE)
    vine.lose(1)
    assert vine.run().recomputed == length - 1
    vine.join()
    for number in range(1, length + 1):
        vine.done(number, size=LARGE)
    assert endings(vine) == {1: "success"}


def make_and_unpack_archive(vine):
    """Have task 1 make an archive, and task 2 begin, which reads the unpacked directory; return their worker."""
    vine.declare("r1")
    vine.declare("r2")
    vine.declare("folder", archive="r1", directory=True)
    first = vine.join()
    vine.submit(single(1), single(2, "folder"))
    vine.done(1, size=LARGE)
    vine.cached(first, "folder", 0)
    assert vine.where() == {2: first}
    return first


def test_lost_archive_is_made_again_for_reader():
    """A task that reads an unpacked directory waits if its worker is lost, until the archive is made again."""
    vine = Vine()
    vine.lose(make_and_unpack_archive(vine))
    second = vine.join()
    assert vine.where() == {1: second}
    vine.done(1, size=LARGE)
    assert vine.where() == {2: second}


def test_lost_result_and_archive_are_made_again():
    """A task is made again from an unpacked directory that is lost with its archive and the result."""
    vine = Vine()
    first = make_and_unpack_archive(vine)
    vine.done(2, size=LARGE)
    vine.lose(first)
    vine.submit(single(3, "r2"))
    second = vine.join()
    for number in (1, 2, 3):
        assert vine.where() == {number: second}
        vine.done(number, size=LARGE)


def test_a_diamond_is_made_again_with_every_vertex_once(vine):
    vine.compute(call(1), call(2, "r1"), call(3, "r1"), call(4, "r2", "r3"))
    vine.join()
    for number in (1, 2, 3):
        vine.done(number, size=LARGE)
    vine.lose(1)
    assert made_again(vine) == {"t1", "t2", "t3"}
    vine.join()
    for number in (1, 2, 3, 4):
        assert vine.task(number).recomputations == (number != 4)
        vine.done(number, size=LARGE)
    assert endings(vine) == {1: "success"}
    assert not vine.tables.tasks


def test_making_one_output_again_leaves_the_other_as_it_is():
    vine = Vine()
    vine.declare("a")
    vine.declare("b")
    vine.submit(single(1, result="", outputs=("a", "b")))
    first = vine.join()
    vine.done(1, outputs={"a": LARGE, "b": LARGE})
    vine.submit(single(2, "a"), single(3, "b"))
    second = vine.join()
    assert vine.where() == {2: first, 3: second}
    vine.say(first, m.ObjectsLost(["a"]))
    assert made_again(vine) == {"t1"}
    vine.cached(second, "b")
    while vine.tables.tasks:
        number = next(iter(vine.where()))
        vine.done(number, outputs={"a": LARGE, "b": LARGE} if number == 1 else {})
    assert outcomes(vine) == {1: "success", 2: "success", 3: "success"}


def test_a_task_that_was_reported_is_not_reported_again_when_it_is_made_again(vine):
    vine.declare("r1")
    vine.submit(call(1), call(2, "r1"))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.lose(first)
    vine.join()
    vine.done(1, size=LARGE)
    assert [x.task for x in vine.told(i.TaskFinished, vine.log)] == [1]


def test_a_vertex_is_told_once_even_if_it_ran_twice(vine):
    vine.compute(call(1), call(2, "r1"), report_each_task=True)
    vine.join()
    vine.done(1, size=LARGE)
    vine.lose(1)
    vine.join()
    vine.done(1, size=LARGE)
    vine.done(2)
    assert [x.task for x in vine.told(i.GraphTaskFinished, vine.log)] == [1, 2]


def test_retries_are_bounded_and_every_lost_worker_is_in_the_evidence(vine):
    vine.compute(call(1), retries=2)
    for _ in range(3):
        vine.lose(vine.join(), "the connection broke")
    (ended,) = vine.told(i.GraphFinished)
    assert (ended.outcome, ended.task, ended.info["attempts"]) == ("crash", 1, 3)
    assert ended.info["evidence"] == [
        f"worker {n} on host{n} was lost (the connection broke)" for n in (1, 2, 3)
    ]


def test_a_task_that_raises_runs_again_as_often_as_it_asks_for(vine):
    vine.join()
    vine.compute(call(1, exception_retries=2), retries=0)
    for again in (1, 2):
        vine.failed(1, "exception", b"error", text="OSError: busy")
        assert not endings(vine)
        assert f"it is run again, {again} of 2" in vine.told(i.LogMessage)[0].text
    vine.failed(1, "exception", b"the last", text="OSError: busy")
    (ended,) = vine.told(i.GraphFinished)
    assert (ended.outcome, ended.info["attempt"], ended.payload) == ("exception", 3, b"the last")


def test_a_worker_that_says_goodbye_blames_nobody(vine):
    vine.compute(call(1), retries=0)
    worker = vine.join()
    vine.say(worker, m.Draining("its time is over"))
    assert vine.out == [i.Disconnect(worker, "its time is over")]
    vine.lose(worker)
    assert vine.task(1).attempts == 0
    assert not endings(vine)


def test_a_file_can_be_lost_only_so_many_times(vine):
    vine.compute(call(1), call(2, "r1"), retries=99)
    for _ in range(MAX_RECOMPUTATIONS + 1):
        worker = vine.join()
        vine.done(1, size=LARGE)
        assert not endings(vine)
        vine.lose(worker)
    (ended,) = vine.told(i.GraphFinished)
    assert ended.outcome == "input missing"
    assert "the result of t1 was lost 21 times" in ended.info["reason"]


def test_a_wanted_result_that_is_lost_on_its_way_is_made_again(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)))
    first = vine.join()
    vine.done(1, size=LARGE)
    assert vine.state(1) == RETRIEVING
    vine.lose(first)
    assert made_again(vine) == {"t1"}
    second = vine.join()
    vine.done(1, size=LARGE)
    assert vine.sent(m.Upload) == [(second, m.Upload("r1"))]
    vine.feed(e.ObjectStored("r1", LARGE))
    assert endings(vine) == {1: "success"}


def test_a_wanted_result_with_another_copy_is_brought_from_there(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)), prune_depth=0)
    first = vine.join()
    vine.done(1, size=LARGE)
    second = vine.join()
    vine.say(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    vine.lose(first)
    assert vine.sent(m.Upload) == [(second, m.Upload("r1"))]
    assert not made_again(vine)


def test_a_result_that_could_not_be_brought_is_made_again(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)))
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.say(worker, m.UploadFailed("r1", "its disk has failed"))
    assert made_again(vine) == {"t1"}
    assert vine.state(1) == ASSIGNED


def test_a_result_that_came_just_before_its_worker_was_lost_counts(vine):
    """The worker's loss is known before the upload is: what is made again is not needed any more."""
    vine.compute(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.lose(first)
    vine.feed(e.ObjectStored("r1", LARGE))
    vine.join()
    assert 2 in vine.where()


def test_nothing_of_a_run_that_has_failed_is_made_again(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)), call(2), call(3, "r1"))
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.failed(2, "exception")
    vine.lose(worker)
    assert not made_again(vine)
    assert not vine.tables.tasks


def test_what_another_run_needs_is_made_again_even_if_its_own_run_is_over(vine):
    vine.compute(call(1), prune_depth=0)
    vine.declare("r1")
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.feed(e.GraphClosed(1))
    vine.compute(call(2, "r1", wanted_at_manager=("r2",)), run=2)
    vine.lose(first)
    assert made_again(vine) == {"t1"}
    vine.join()
    vine.done(1, size=LARGE)
    vine.done(2, payload=b"2")
    assert endings(vine) == {1: "success", 2: "success"}
    vine.feed(e.GraphClosed(2), e.FilesReleased(["r1"], prune=False))
    assert set(vine.tables.files) == {"setup"}


def test_what_nobody_can_name_any_more_is_made_again_for_what_descends_from_it(vine):
    vine.declare("r1")
    vine.declare("r2")
    vine.submit(call(1), call(2, "r1"))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.done(2, size=LARGE)
    vine.feed(e.FilesReleased(["r1"], prune=False))
    assert "r1" not in vine.tables.files
    vine.submit(call(3, "r2"))
    vine.lose(first)
    assert made_again(vine) == {"t1", "t2"}
    vine.join()
    for number in (1, 2, 3):
        vine.done(number, size=LARGE)
    assert outcomes(vine) == {1: "success", 2: "success", 3: "success"}
    assert "r1" not in vine.tables.files


def test_a_lost_file_that_cannot_be_made_again_fails_who_needs_it_and_says_so(vine):
    vine.declare("r1")
    vine.submit(call(1))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.lose(first)
    vine.feed(e.LibraryRemoved("lib"))
    vine.library("new")
    vine.submit(call(2, "r1", library="new"))
    (ended,) = vine.told(i.TaskFinished)
    assert ended.outcome == "input missing"
    assert "the result of t1 is gone, and the library that made it was removed" in ended.info["reason"]


def test_a_file_that_is_damaged_on_a_worker_is_sent_again_from_the_manager(vine):
    vine.declare("data", size=10, at_manager=True)
    vine.submit(call(1, "data"))
    worker = vine.join()
    vine.say(worker, m.ObjectsLost(["data"]))
    assert i.SendObject(worker, "data") in vine.out


def test_losing_a_worker_in_the_middle_of_everything_fails_a_run_once(vine):
    """One of its tasks fails for good while the others are being taken off the same worker."""
    vine.compute(*(single(n) for n in range(1, 6)), retries=0)
    worker = vine.join(cores=5)
    vine.lose(worker)
    assert len(vine.told(i.GraphFinished)) == 1
    assert not vine.tables.tasks
    assert vine.run().running == vine.run().unfinished == 0
    vine.join(cores=5)
    assert not vine.started()


@pytest.mark.parametrize("end", ["done", "failed"])
def test_an_output_that_is_replaced_by_an_attempt_that_was_taken_back_is_what_came_last(end):
    vine = Vine()
    vine.declare("a")
    vine.declare("b")
    vine.submit(single(1), single(2, "r1", result="", outputs=("a", "b")), single(3, "r1", "a", "b"))
    worker = vine.join()
    vine.done(1, size=LARGE)
    vine.done(2, outputs={"a": LARGE, "b": LARGE}, digests={"a": "a 1", "b": "b 1"})
    vine.say(worker, m.ObjectsLost(["a"]))
    assert made_again(vine) == {"t2"}
    _worker, ticket = vine.place(2)
    again = {"outputs": {"a": LARGE, "b": LARGE}, "digests": {"a": "a 2", "b": "b 2"}}
    late = (
        m.TaskDone(ticket, 0, 0.05, again, b"")
        if end == "done"
        else m.TaskFailed(ticket, "exception", again, b"")
    )
    vine.say(worker, m.ObjectsLost(["r1"]), late)
    assert (worker, "b") not in vine.unlinked()
    assert vine.file("b").replicas == {vine.worker(worker): "b 2"}
