"""Successors that are sent to the worker that is making their inputs, before those exist."""

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
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.transitions import ASSIGNED, READY, WAITING


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def chain(length, first=1, **spec):
    return [call(n, *([f"r{n - 1}"] if n > first else []), **spec) for n in range(first, first + length)]


def instance(harness, worker, name="lib"):
    return harness.worker(worker).libraries[name]


def test_a_chain_is_sent_to_one_worker_at_once(harness):
    harness.compute_graph(*chain(5))
    worker = harness.connect_worker()
    assert harness.dispatched_tasks() == [1, 2, 3, 4, 5]
    assert set(harness.assignments().values()) == {worker}
    assert (instance(harness, worker).assigned, instance(harness, worker).chained) == (1, 4)


def test_a_chain_runs_to_its_end_without_another_word_to_the_worker(harness):
    harness.compute_graph(*chain(5), prune_depth=0)
    harness.connect_worker()
    for number in range(1, 6):
        harness.complete_task(number, size=LARGE)
        assert not harness.instructions_of(i.Send)
    assert graph_outcomes(harness) == {1: "success"}


def test_chains_are_spread_over_the_workers(harness):
    workers = {harness.connect_worker(), harness.connect_worker()}
    harness.compute_graph(*chain(4), *chain(4, first=10))
    where = harness.assignments()
    assert {where[n] for n in range(1, 5)} | {where[n] for n in range(10, 14)} == workers
    assert len({where[n] for n in range(1, 5)}) == 1
    assert len({where[n] for n in range(10, 14)}) == 1


def test_a_task_whose_inputs_are_made_on_two_workers_is_not_sent_ahead(harness):
    harness.connect_worker()
    harness.connect_worker()
    harness.compute_graph(call(1), call(2), call(3, "r1", "r2"))
    assert len(set(harness.assignments().values())) == 2
    assert harness.state_of(3) == WAITING


def test_a_task_whose_other_input_is_here_already_is_sent_ahead(harness):
    harness.declare_file("r1")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1, size=LARGE)
    harness.compute_graph(call(2), call(3, "r1", "r2"))
    assert harness.task(3).chained
    assert harness.assignments() == {2: worker, 3: worker}


def test_an_input_that_is_elsewhere_keeps_a_task_back(harness):
    harness.declare_file("r1")
    first = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1, size=LARGE, wall_s=60.0)
    harness.submit_tasks(call(8))
    second = harness.connect_worker()
    harness.compute_graph(call(2), call(3, "r1", "r2"))
    assert harness.assignments() == {8: first, 2: second}
    assert harness.state_of(3) == WAITING


def test_tasks_sent_ahead_are_bounded(harness):
    harness.compute_graph(*chain(100))
    worker = harness.connect_worker()
    ahead = instance(harness, worker).chained
    assert 1 < ahead <= 32
    harness.complete_task(1)
    assert instance(harness, worker).chained == ahead, "with every step another one follows"
    assert harness.dispatched_tasks() == [ahead + 2]


def test_of_long_tasks_only_a_few_are_sent_ahead(harness):
    harness.submit_tasks(call(1, options={}))
    harness.connect_worker()
    harness.complete_task(1, wall_s=60.0)
    harness.compute_graph(*chain(10, first=10))
    assert harness.dispatched_tasks() == [10, 11]


def test_a_task_that_reads_many_files_is_not_sent_ahead(harness):
    harness.install_library("wide", slots=64)
    harness.compute_graph(
        *(call(n, library="wide") for n in range(1, 50)),
        call(50, *(f"r{n}" for n in range(1, 50)), library="wide"),
    )
    harness.connect_worker()
    assert harness.state_of(50) == WAITING


@pytest.mark.parametrize("mode", ["FIFO", "breadth-first", "random", "largest-input-first"])
def test_in_orders_that_are_not_depth_first_nothing_overtakes(harness, mode):
    harness.connect_worker()
    harness.compute_graph(*chain(3), priority_mode=mode)
    assert harness.dispatched_tasks() == [1]


def test_a_task_with_a_process_of_its_own_is_not_sent_ahead():
    harness = SchedulerHarness()
    harness.connect_worker()
    harness.compute_graph(single(1), single(2, "r1"))
    assert harness.dispatched_tasks() == [1]


def test_when_the_maker_fails_in_a_run_the_chain_is_cancelled(harness):
    harness.compute_graph(*chain(4))
    worker = harness.connect_worker()
    harness.fail_task(1, "exception")
    assert graph_outcomes(harness) == {1: "exception"}
    assert harness.messages_sent(m.Cancel) == [(worker, m.Cancel([2, 3, 4]))]
    assert instance(harness, worker).idle


def test_when_the_maker_fails_by_itself_its_followers_fail_and_the_worker_drops_them(harness):
    for n in (1, 2, 3):
        harness.declare_file(f"r{n}")
    harness.submit_tasks(*chain(3))
    worker = harness.connect_worker()
    harness.fail_task(1, "exception")
    assert task_outcomes(harness) == {1: "exception", 2: "input missing", 3: "input missing"}
    ((where, cancel),) = harness.messages_sent(m.Cancel)
    assert (where, sorted(cancel.tasks)) == (worker, [2, 3])


def test_when_a_slot_crashes_what_was_sent_after_the_call_is_taken_back_with_it(harness):
    harness.compute_graph(*chain(4))
    worker = harness.connect_worker()
    harness.send_events(e.MessageReceived(worker, m.TaskFailed(1, "crash", {"reason": "signal 11"}, b"")))
    ((where, cancel),) = harness.messages_sent(m.Cancel)
    assert (where, sorted(cancel.tasks)) == (worker, [2, 3, 4])
    assert harness.dispatched_tasks() == [1, 2, 3, 4], "and all of it starts again"
    assert instance(harness, worker).chained == 3
    assert harness.task(1).attempts == 1
    assert [harness.task(n).attempts for n in (2, 3, 4)] == [0, 0, 0], "which were not to blame"


def test_followers_go_where_the_maker_goes(harness):
    harness.compute_graph(*chain(3))
    first = harness.connect_worker()
    second = harness.connect_worker()
    harness.disconnect_worker(first)
    assert harness.assignments() == {1: second, 2: second, 3: second}


def test_when_the_worker_is_lost_only_what_may_have_been_running_is_suspected(harness):
    harness.install_library("two", slots=2)
    harness.compute_graph(*(call(n, library="two") for n in (1, 2, 3)), call(4, "r1", library="two"))
    first = harness.connect_worker()
    assert set(harness.assignments().values()) == {first}
    harness.disconnect_worker(first)
    assert [harness.task(n).attempts for n in (1, 2, 3, 4)] == [1, 1, 0, 0]


def test_a_follower_in_another_library_is_taken_back_as_well(harness):
    harness.install_library("other")
    harness.compute_graph(call(1), call(2, library="other"), call(3, "r1", "r2", library="other"))
    worker = harness.connect_worker(cores=2)
    assert harness.task(3).chained
    harness.worker_sends(worker, m.TaskFailed(1, "crash", {}, b""), m.TaskFailed(2, "crash", {}, b""))
    tickets = [t for _w, cancel in harness.messages_sent(m.Cancel) for t in cancel.tasks]
    assert 3 in tickets


def test_a_follower_waits_in_a_row_for_all_of_its_makers(harness):
    harness.install_library("two", slots=2)
    harness.compute_graph(call(1, library="two"), call(2, library="two"), call(3, "r1", "r2", library="two"))
    worker = harness.connect_worker()
    assert harness.task(3).chained
    harness.complete_task(1)
    assert harness.task(3).chained
    assert instance(harness, worker, "two").chained == 1
    harness.complete_task(2)
    assert not harness.task(3).chained
    assert (instance(harness, worker, "two").assigned, instance(harness, worker, "two").chained) == (1, 0)


def test_an_input_that_is_lost_elsewhere_takes_its_reader_back(harness):
    """It would hold the only slot, which the input may have to be made in."""
    harness.install_library("long")
    harness.declare_file("r1")
    first = harness.connect_worker()
    harness.submit_tasks(call(1, library="long"))
    harness.complete_task(1, size=LARGE, wall_s=60.0)
    harness.submit_tasks(*(call(n, library="long") for n in (8, 9)))
    assert harness.assignments() == {8: first}
    second = harness.connect_worker()
    assert harness.assignments() == {8: first, 9: second}
    harness.submit_tasks(call(2, "r1", library="long", wanted_at_manager=("r2",)))
    harness.complete_task(9, wall_s=60.0)
    assert harness.assignments()[2] == second
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]
    harness.disconnect_worker(first)
    assert harness.messages_sent(m.Cancel) == [(second, m.Cancel([2]))]
    assert harness.assignments()[1] == second, "the slot is free to make the input again"
    assert harness.state_of(2) in (WAITING, ASSIGNED)


def test_what_was_recalled_runs_again_elsewhere(harness):
    harness.submit_tasks(*(call(n) for n in range(1, 4)))
    first = harness.connect_worker()
    assert set(harness.assignments()) == {1, 2}
    second = harness.connect_worker()
    assert harness.assignments()[3] == second
    harness.complete_task(3, wall_s=1.0)
    assert harness.messages_sent(m.StealRequest) == [(first, m.StealRequest("lib", 1))]
    harness.worker_sends(first, m.StealResponse("lib", [2]))
    assert harness.assignments() == {1: first, 2: second}
    assert harness.task(2).attempts == 0


def test_a_worker_that_has_nothing_to_give_back_is_asked_again_later(harness):
    harness.submit_tasks(*(call(n) for n in range(1, 3)))
    first = harness.connect_worker()
    harness.connect_worker()
    assert harness.messages_sent(m.StealRequest) == [(first, m.StealRequest("lib", 1))]
    harness.worker_sends(first, m.StealResponse("lib", []))
    assert not instance(harness, first).steal_pending


def test_a_ready_task_is_ready_again_after_its_input_was_lost_and_made(harness):
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(
        e.LibraryInstalled(
            harness.tables.libraries["lib"].spec._replace(name="huge", request=ONE_CORE._replace(cores=9))
        )
    )
    harness.submit_tasks(call(2, "r1", library="huge"))
    assert harness.state_of(2) == READY
    harness.disconnect_worker(first)
    assert harness.state_of(2) == WAITING
    harness.connect_worker(cores=1)
    harness.complete_task(1, size=LARGE)
    assert harness.state_of(2) == READY
