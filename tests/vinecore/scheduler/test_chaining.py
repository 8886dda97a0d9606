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


def test_chain_is_sent_to_one_worker(harness):
    """A chain is sent to one worker at once."""
    harness.compute_graph(*chain(5))
    worker = harness.connect_worker()
    assert harness.dispatched_tasks() == [1, 2, 3, 4, 5]
    assert set(harness.assignments().values()) == {worker}
    assert (instance(harness, worker).assigned, instance(harness, worker).chained) == (1, 4)


def test_chain_runs_without_further_messages(harness):
    """A chain runs to its end without another word to the worker."""
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


def test_inputs_on_two_workers_prevent_chaining(harness):
    """A task whose inputs are made on two workers is not sent ahead."""
    harness.connect_worker()
    harness.connect_worker()
    harness.compute_graph(call(1), call(2), call(3, "r1", "r2"))
    assert len(set(harness.assignments().values())) == 2
    assert harness.state_of(3) == WAITING


def test_present_other_input_allows_chaining(harness):
    """A task whose other input is here already is sent ahead."""
    harness.declare_file("r1")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.complete_task(1, size=LARGE)
    harness.compute_graph(call(2), call(3, "r1", "r2"))
    assert harness.task(3).chained
    assert harness.assignments() == {2: worker, 3: worker}


def test_input_elsewhere_prevents_chaining(harness):
    """An input that is elsewhere keeps a task back."""
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


def test_few_long_tasks_are_chained(harness):
    """Of long tasks only a few are sent ahead."""
    harness.submit_tasks(call(1, options={}))
    harness.connect_worker()
    harness.complete_task(1, wall_s=60.0)
    harness.compute_graph(*chain(10, first=10))
    assert harness.dispatched_tasks() == [10, 11]


def test_many_inputs_prevent_chaining(harness):
    """A task that reads many files is not sent ahead."""
    harness.install_library("wide", slots=64)
    harness.compute_graph(
        *(call(n, library="wide") for n in range(1, 50)),
        call(50, *(f"r{n}" for n in range(1, 50)), library="wide"),
    )
    harness.connect_worker()
    assert harness.state_of(50) == WAITING


@pytest.mark.parametrize("mode", ["FIFO", "breadth-first", "random", "largest-input-first"])
def test_other_priority_modes_prevent_chaining(harness, mode):
    """In orders that are not depth first nothing overtakes."""
    harness.connect_worker()
    harness.compute_graph(*chain(3), priority_mode=mode)
    assert harness.dispatched_tasks() == [1]


def test_process_task_is_not_chained():
    """A task with a process of its own is not sent ahead."""
    harness = SchedulerHarness()
    harness.connect_worker()
    harness.compute_graph(single(1), single(2, "r1"))
    assert harness.dispatched_tasks() == [1]


def test_failed_maker_in_graph_cancels_chain(harness):
    """When the maker fails in a run the chain is cancelled."""
    harness.compute_graph(*chain(4))
    worker = harness.connect_worker()
    harness.fail_task(1, "exception")
    assert graph_outcomes(harness) == {1: "exception"}
    assert harness.messages_sent(m.Cancel) == [(worker, m.Cancel([2, 3, 4]))]
    assert instance(harness, worker).idle


def test_failed_single_maker_fails_chained_tasks(harness):
    """When the maker fails by itself its followers fail and the worker drops them."""
    for n in (1, 2, 3):
        harness.declare_file(f"r{n}")
    harness.submit_tasks(*chain(3))
    worker = harness.connect_worker()
    harness.fail_task(1, "exception")
    assert task_outcomes(harness) == {1: "exception", 2: "input missing", 3: "input missing"}
    ((where, cancel),) = harness.messages_sent(m.Cancel)
    assert (where, sorted(cancel.tasks)) == (worker, [2, 3])


def test_slot_crash_takes_back_later_calls(harness):
    """When a slot crashes what was sent after the call is taken back with it."""
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


def test_worker_loss_suspects_running_calls_only(harness):
    """When the worker is lost only what may have been running is suspected."""
    harness.install_library("two", slots=2)
    harness.compute_graph(*(call(n, library="two") for n in (1, 2, 3)), call(4, "r1", library="two"))
    first = harness.connect_worker()
    assert set(harness.assignments().values()) == {first}
    harness.disconnect_worker(first)
    assert [harness.task(n).attempts for n in (1, 2, 3, 4)] == [1, 1, 0, 0]


def test_chained_call_of_other_library_returns(harness):
    """A follower in another library is taken back as well."""
    harness.install_library("other")
    harness.compute_graph(call(1), call(2, library="other"), call(3, "r1", "r2", library="other"))
    worker = harness.connect_worker(cores=2)
    assert harness.task(3).chained
    harness.worker_sends(worker, m.TaskFailed(1, "crash", {}, b""), m.TaskFailed(2, "crash", {}, b""))
    tickets = [t for _w, cancel in harness.messages_sent(m.Cancel) for t in cancel.tasks]
    assert 3 in tickets


def test_chained_call_waits_for_all_makers(harness):
    """A follower waits in a row for all of its makers."""
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


def test_input_lost_elsewhere_returns_reader(harness):
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


def test_empty_steal_response_is_asked_again(harness):
    """A worker that has nothing to give back is asked again later."""
    harness.submit_tasks(*(call(n) for n in range(1, 3)))
    first = harness.connect_worker()
    harness.connect_worker()
    assert harness.messages_sent(m.StealRequest) == [(first, m.StealRequest("lib", 1))]
    harness.worker_sends(first, m.StealResponse("lib", []))
    assert not instance(harness, first).steal_pending


def test_ready_task_waits_for_recomputed_input(harness):
    """A ready task is ready again after its input was lost and made."""
    harness.declare_file("r1")
    harness.submit_tasks(call(1))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.send_events(
        e.LibraryInstalled(
            harness.state.libraries["lib"].spec._replace(name="huge", request=ONE_CORE._replace(cores=9))
        )
    )
    harness.submit_tasks(call(2, "r1", library="huge"))
    assert harness.state_of(2) == READY
    harness.disconnect_worker(first)
    assert harness.state_of(2) == WAITING
    harness.connect_worker(cores=1)
    harness.complete_task(1, size=LARGE)
    assert harness.state_of(2) == READY
