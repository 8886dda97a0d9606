"""A task that needs a whole worker gets one, however many small ones there are."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, SchedulerHarness, call, single, task_outcomes
from vinecore.protocol import messages as m
from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler.reservation import PATIENCE_S

WHOLE = UNSPECIFIED


@pytest.fixture
def harness():
    return SchedulerHarness()


class Flood:
    """Small tasks without an end: whenever one is done there is another one."""

    def __init__(self, harness, priority=10.0, ready=20, make=single, **spec):
        self.harness, self.priority, self.make, self.spec = harness, priority, make, spec
        self._number = 100
        self.more(ready)

    def more(self, count):
        for _ in range(count):
            self._number += 1
            self.harness.submit_tasks(self.make(self._number, priority=self.priority, **self.spec))

    def turn(self, count=1):
        """End the oldest small tasks, one after another."""
        for _ in range(count):
            small = [number for number in self.harness.assignments() if number > 100]
            if not small:
                return
            self.more(1)
            self.harness.complete_task(min(small), wall_s=1.0)


def test_urgent_task_gets_whole_worker(harness):
    """A more urgent task that needs a whole worker gets one soon."""
    worker = harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.submit_tasks(single(1, request=WHOLE, priority=0))
    assert 1 not in harness.assignments()
    flood.turn(5)  # the first one lets it be seen that it starves, then all four end
    assert harness.assignments() == {1: worker}
    harness.complete_task(1)
    assert len(harness.assignments()) == 4


def test_only_one_worker_is_reserved(harness):
    """Of several workers one is kept and the others go on."""
    for _ in range(3):
        harness.connect_worker(cores=4)
    flood = Flood(harness, ready=40)
    harness.submit_tasks(single(1, request=WHOLE, priority=0), single(2, request=WHOLE, priority=0))
    seen = set()
    for _ in range(40):
        flood.turn()
        seen |= set(harness.assignments())
        assert len(harness.assignments()) >= 8 or {1, 2} & set(harness.assignments())
    assert {1, 2} <= seen


def test_a_task_of_several_cores_gets_them(harness):
    worker = harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=3), priority=0))
    flood.turn(4)
    assert harness.assignments()[1] == worker
    assert len(harness.assignments()) == 2


def test_less_urgent_task_reserves_nothing(harness):
    """What is less urgent waits and nothing is reserved."""
    harness.connect_worker(cores=4)
    flood = Flood(harness, priority=0.0)
    harness.submit_tasks(single(1, request=WHOLE, priority=10))
    flood.turn(30)
    assert harness.scheduler.state.reservation.worker is None
    assert 1 not in harness.assignments()


def test_older_task_gets_turn_later(harness):
    """What is only older gets its turn after a while."""
    worker = harness.connect_worker(cores=4)
    flood = Flood(harness, priority=5.0, ready=4)
    harness.submit_tasks(single(1, request=WHOLE, priority=5.0))
    flood.turn(10)
    assert 1 not in harness.assignments()
    harness.advance_time(PATIENCE_S + 1)
    flood.turn(5)
    assert harness.assignments() == {1: worker}


def test_more_urgent_task_uses_reserved_worker(harness):
    """Something more urgent still may have a worker that is kept."""
    worker = harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.submit_tasks(single(1, request=WHOLE, priority=0))
    flood.turn(2)
    assert harness.scheduler.state.reservation.worker is not None
    assert len(harness.assignments()) == 3
    harness.submit_tasks(single(2, priority=-5))
    assert harness.assignments()[2] == worker
    harness.complete_task(2)
    flood.turn(6)
    assert harness.assignments() == {1: worker}


def test_task_with_room_elsewhere_reserves_nothing(harness):
    """A task that finds room elsewhere needs no worker of its own."""
    harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.submit_tasks(single(1, request=WHOLE, priority=0))
    flood.turn(2)
    other = harness.connect_worker(cores=4)
    assert harness.assignments()[1] == other
    assert harness.scheduler.state.reservation.worker is None
    assert len(harness.assignments()) == 5


@pytest.mark.parametrize("end", ["cancel", "lose the worker", "the worker leaves", "lose an input"])
def test_a_reservation_ends_with_its_purpose(harness, end):
    worker, other = harness.connect_worker(cores=4), harness.connect_worker(cores=4)
    flood = Flood(harness, ready=30)
    harness.submit_tasks(single(3, priority=-9), single(1, "r3", request=WHOLE, priority=0))
    while 3 not in harness.assignments():
        flood.turn()
    harness.complete_task(3, size=LARGE)
    flood.turn(3)
    kept = harness.scheduler.state.reservation.worker.id
    assert kept in (worker, other)
    if end == "cancel":
        harness.send_events(e.TasksCancelled([1]))
    elif end == "lose the worker":
        harness.disconnect_worker(kept)
    elif end == "the worker leaves":
        harness.worker_sends(kept, m.Draining("it is time", 100.0))
    else:
        (holder,) = harness.replica_holders("r3")
        harness.worker_sends(holder, m.ObjectsLost(["r3"]))
    harness.advance_time()
    flood.turn(30)
    running = set(harness.assignments())
    assert len(running) >= 4 or 1 in running
    for _ in range(40):
        flood.turn()
        if 3 in harness.assignments():  # what was lost is made again
            harness.complete_task(3, size=LARGE)
        if 1 in harness.assignments():
            break
    assert (1 in harness.assignments()) == (end != "cancel")


def test_small_worker_is_not_reserved(harness):
    """A worker that is too small is not kept."""
    small, large = harness.connect_worker(cores=2), harness.connect_worker(cores=8)
    flood = Flood(harness, ready=40)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=6), priority=0))
    for _ in range(30):
        flood.turn()
        assert sum(where == small for where in harness.assignments().values()) == 2
        if 1 in harness.assignments():
            break
    assert harness.assignments()[1] == large


def test_what_no_worker_can_hold_keeps_none(harness):
    harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=16), priority=0))
    flood.turn(20)
    assert len(harness.assignments()) == 4
    assert harness.scheduler.state.reservation.worker is None


def test_library_gets_whole_worker(harness):
    """A library that needs a whole worker gets one."""
    worker = harness.connect_worker(cores=4)
    flood = Flood(harness)
    harness.install_library("whole", slots=4, request=WHOLE)
    harness.submit_tasks(call(1, library="whole", priority=0))
    flood.turn(5)
    assert harness.assignments()[1] == worker


def test_whole_worker_task_is_not_starved(harness):
    """A task that needs a whole worker does not starve behind calls."""
    worker = harness.connect_worker(cores=4)
    harness.install_library("lib", slots=4, request=ResourceRequest(cores=4))
    flood = Flood(harness, ready=40, make=call)
    harness.submit_tasks(single(1, request=WHOLE, priority=0))
    for _ in range(60):
        flood.turn()
        if 1 in harness.assignments():
            break
    assert harness.assignments() == {1: worker}
    harness.complete_task(1)
    assert len(harness.assignments()) >= 4, "the library is up again"


def test_competing_libraries_do_not_alternate(harness):
    """Libraries that keep each other out do not take turns all the time."""
    harness.connect_worker(cores=4)
    for name in ("first", "second"):
        harness.install_library(name, slots=4, request=WHOLE)
    for number in range(1, 200, 2):
        harness.submit_tasks(
            call(number, library="first", priority=number),
            call(number + 1, library="second", priority=number + 1),
        )
    started = len(harness.messages_sent(m.Library, harness.log))
    while harness.assignments():
        harness.complete_task(min(harness.assignments()), wall_s=1.0)
        harness.advance_time(0.1)
    assert set(task_outcomes(harness)) == set(range(1, 201))
    assert len(harness.messages_sent(m.Library, harness.log)) - started <= 5


def test_chained_calls_leave_reserved_worker(harness):
    """Calls that follow each other do not hold a worker that is kept."""
    worker = harness.connect_worker(cores=1)
    harness.install_library("lib", slots=1, request=ONE_CORE)
    harness.compute_graph(
        *(call(n, *([f"r{n - 1}"] if n > 1 else []), priority=100 + n) for n in range(1, 300))
    )
    harness.submit_tasks(single(900, request=WHOLE, priority=0))
    turns = 0
    while 900 not in harness.assignments() and turns < 250:
        turns += 1
        harness.complete_task(min(harness.assignments()), wall_s=0.2)
    assert harness.assignments() == {900: worker}
    assert turns < 100
    harness.complete_task(900)
    while harness.assignments():
        harness.complete_task(min(harness.assignments()), wall_s=0.2)
    assert not harness.graph().unfinished


def test_task_waiting_for_disk_reserves_nothing(harness):
    """A task that waits for disk keeps no worker."""
    worker = harness.connect_worker(cores=4, disk_mb=100)
    flood = Flood(harness, ready=8)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=4, disk=100), priority=0))
    harness.declare_file("kept", size=60 << 20, at_manager=True)
    harness.submit_tasks(single(50, "kept", priority=-5))
    for _ in range(40):
        flood.turn()
        harness.advance_time(0.3)
    assert harness.assignments(), "somebody works"
    assert harness.assignments().get(1, worker) == worker
