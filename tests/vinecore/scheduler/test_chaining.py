"""Successors that are sent to the worker that is making their inputs, before those exist."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.transitions import ASSIGNED, READY, WAITING


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def chain(length, first=1, **spec):
    return [call(n, *([f"r{n - 1}"] if n > first else []), **spec) for n in range(first, first + length)]


def instance(vine, worker, name="lib"):
    return vine.worker(worker).libraries[name]


def test_a_chain_is_sent_to_one_worker_at_once(vine):
    vine.compute(*chain(5))
    worker = vine.join()
    assert vine.started() == [1, 2, 3, 4, 5]
    assert set(vine.where().values()) == {worker}
    assert (instance(vine, worker).assigned, instance(vine, worker).chained) == (1, 4)


def test_a_chain_runs_to_its_end_without_another_word_to_the_worker(vine):
    vine.compute(*chain(5), prune_depth=0)
    vine.join()
    for number in range(1, 6):
        vine.done(number, size=LARGE)
        assert not vine.told(i.Send)
    assert endings(vine) == {1: "success"}


def test_chains_are_spread_over_the_workers(vine):
    workers = {vine.join(), vine.join()}
    vine.compute(*chain(4), *chain(4, first=10))
    where = vine.where()
    assert {where[n] for n in range(1, 5)} | {where[n] for n in range(10, 14)} == workers
    assert len({where[n] for n in range(1, 5)}) == 1
    assert len({where[n] for n in range(10, 14)}) == 1


def test_a_task_whose_inputs_are_made_on_two_workers_is_not_sent_ahead(vine):
    vine.join()
    vine.join()
    vine.compute(call(1), call(2), call(3, "r1", "r2"))
    assert len(set(vine.where().values())) == 2
    assert vine.state(3) == WAITING


def test_a_task_whose_other_input_is_here_already_is_sent_ahead(vine):
    vine.declare("r1")
    worker = vine.join()
    vine.submit(call(1))
    vine.done(1, size=LARGE)
    vine.compute(call(2), call(3, "r1", "r2"))
    assert vine.task(3).chained
    assert vine.where() == {2: worker, 3: worker}


def test_an_input_that_is_elsewhere_keeps_a_task_back(vine):
    vine.declare("r1")
    first = vine.join()
    vine.submit(call(1))
    vine.done(1, size=LARGE, wall_s=60.0)
    vine.submit(call(8))
    second = vine.join()
    vine.compute(call(2), call(3, "r1", "r2"))
    assert vine.where() == {8: first, 2: second}
    assert vine.state(3) == WAITING


def test_tasks_sent_ahead_are_bounded(vine):
    vine.compute(*chain(100))
    worker = vine.join()
    ahead = instance(vine, worker).chained
    assert 1 < ahead <= 32
    vine.done(1)
    assert instance(vine, worker).chained == ahead, "with every step another one follows"
    assert vine.started() == [ahead + 2]


def test_of_long_tasks_only_a_few_are_sent_ahead(vine):
    vine.submit(call(1, options={}))
    vine.join()
    vine.done(1, wall_s=60.0)
    vine.compute(*chain(10, first=10))
    assert vine.started() == [10, 11]


def test_a_task_that_reads_many_files_is_not_sent_ahead(vine):
    vine.library("wide", slots=64)
    vine.compute(
        *(call(n, library="wide") for n in range(1, 50)),
        call(50, *(f"r{n}" for n in range(1, 50)), library="wide"),
    )
    vine.join()
    assert vine.state(50) == WAITING


@pytest.mark.parametrize("mode", ["FIFO", "breadth-first", "random", "largest-input-first"])
def test_in_orders_that_are_not_depth_first_nothing_overtakes(vine, mode):
    vine.join()
    vine.compute(*chain(3), priority_mode=mode)
    assert vine.started() == [1]


def test_a_task_with_a_process_of_its_own_is_not_sent_ahead():
    vine = Vine()
    vine.join()
    vine.compute(single(1), single(2, "r1"))
    assert vine.started() == [1]


def test_when_the_maker_fails_in_a_run_the_chain_is_cancelled(vine):
    vine.compute(*chain(4))
    worker = vine.join()
    vine.failed(1, "exception")
    assert endings(vine) == {1: "exception"}
    assert vine.sent(m.Cancel) == [(worker, m.Cancel([2, 3, 4]))]
    assert instance(vine, worker).idle


def test_when_the_maker_fails_by_itself_its_followers_fail_and_the_worker_drops_them(vine):
    for n in (1, 2, 3):
        vine.declare(f"r{n}")
    vine.submit(*chain(3))
    worker = vine.join()
    vine.failed(1, "exception")
    assert outcomes(vine) == {1: "exception", 2: "input missing", 3: "input missing"}
    ((where, cancel),) = vine.sent(m.Cancel)
    assert (where, sorted(cancel.tasks)) == (worker, [2, 3])


def test_when_a_slot_crashes_what_was_sent_after_the_call_is_taken_back_with_it(vine):
    vine.compute(*chain(4))
    worker = vine.join()
    vine.feed(e.MessageReceived(worker, m.TaskFailed(1, "crash", {"reason": "signal 11"}, b"")))
    ((where, cancel),) = vine.sent(m.Cancel)
    assert (where, sorted(cancel.tasks)) == (worker, [2, 3, 4])
    assert vine.started() == [1, 2, 3, 4], "and all of it starts again"
    assert instance(vine, worker).chained == 3
    assert vine.task(1).attempts == 1
    assert [vine.task(n).attempts for n in (2, 3, 4)] == [0, 0, 0], "which were not to blame"


def test_followers_go_where_the_maker_goes(vine):
    vine.compute(*chain(3))
    first = vine.join()
    second = vine.join()
    vine.lose(first)
    assert vine.where() == {1: second, 2: second, 3: second}


def test_when_the_worker_is_lost_only_what_may_have_been_running_is_suspected(vine):
    vine.library("two", slots=2)
    vine.compute(*(call(n, library="two") for n in (1, 2, 3)), call(4, "r1", library="two"))
    first = vine.join()
    assert set(vine.where().values()) == {first}
    vine.lose(first)
    assert [vine.task(n).attempts for n in (1, 2, 3, 4)] == [1, 1, 0, 0]


def test_a_follower_in_another_library_is_taken_back_as_well(vine):
    vine.library("other")
    vine.compute(call(1), call(2, library="other"), call(3, "r1", "r2", library="other"))
    worker = vine.join(cores=2)
    assert vine.task(3).chained
    vine.say(worker, m.TaskFailed(1, "crash", {}, b""), m.TaskFailed(2, "crash", {}, b""))
    tickets = [t for _w, cancel in vine.sent(m.Cancel) for t in cancel.tasks]
    assert 3 in tickets


def test_a_follower_waits_in_a_row_for_all_of_its_makers(vine):
    vine.library("two", slots=2)
    vine.compute(call(1, library="two"), call(2, library="two"), call(3, "r1", "r2", library="two"))
    worker = vine.join()
    assert vine.task(3).chained
    vine.done(1)
    assert vine.task(3).chained
    assert instance(vine, worker, "two").chained == 1
    vine.done(2)
    assert not vine.task(3).chained
    assert (instance(vine, worker, "two").assigned, instance(vine, worker, "two").chained) == (1, 0)


def test_an_input_that_is_lost_elsewhere_takes_its_reader_back(vine):
    """It would hold the only slot, which the input may have to be made in."""
    vine.library("long")
    vine.declare("r1")
    first = vine.join()
    vine.submit(call(1, library="long"))
    vine.done(1, size=LARGE, wall_s=60.0)
    vine.submit(*(call(n, library="long") for n in (8, 9)))
    assert vine.where() == {8: first}
    second = vine.join()
    assert vine.where() == {8: first, 9: second}
    vine.submit(call(2, "r1", library="long", wanted_at_manager=("r2",)))
    vine.done(9, wall_s=60.0)
    assert vine.where()[2] == second
    assert vine.fetches() == [(second, "r1", "host1:7")]
    vine.lose(first)
    assert vine.sent(m.Cancel) == [(second, m.Cancel([2]))]
    assert vine.where()[1] == second, "the slot is free to make the input again"
    assert vine.state(2) in (WAITING, ASSIGNED)


def test_what_was_recalled_runs_again_elsewhere(vine):
    vine.submit(*(call(n) for n in range(1, 4)))
    first = vine.join()
    assert set(vine.where()) == {1, 2}
    second = vine.join()
    assert vine.where()[3] == second
    vine.done(3, wall_s=1.0)
    assert vine.sent(m.StealRequest) == [(first, m.StealRequest("lib", 1))]
    vine.say(first, m.StealResponse("lib", [2]))
    assert vine.where() == {1: first, 2: second}
    assert vine.task(2).attempts == 0


def test_a_worker_that_has_nothing_to_give_back_is_asked_again_later(vine):
    vine.submit(*(call(n) for n in range(1, 3)))
    first = vine.join()
    vine.join()
    assert vine.sent(m.StealRequest) == [(first, m.StealRequest("lib", 1))]
    vine.say(first, m.StealResponse("lib", []))
    assert not instance(vine, first).steal_pending


def test_a_ready_task_is_ready_again_after_its_input_was_lost_and_made(vine):
    vine.declare("r1")
    vine.submit(call(1))
    first = vine.join()
    vine.done(1, size=LARGE)
    vine.feed(
        e.LibraryInstalled(
            vine.tables.libraries["lib"].spec._replace(name="huge", request=ONE_CORE._replace(cores=9))
        )
    )
    vine.submit(call(2, "r1", library="huge"))
    assert vine.state(2) == READY
    vine.lose(first)
    assert vine.state(2) == WAITING
    vine.join(cores=1)
    vine.done(1, size=LARGE)
    assert vine.state(2) == READY
