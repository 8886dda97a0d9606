"""A task that needs a whole worker gets one, however many small ones there are."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, outcomes, single
from vinecore.protocol import messages as m
from vinecore.resources.amounts import UNSPECIFIED, ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler.reservation import PATIENCE_S

WHOLE = UNSPECIFIED


@pytest.fixture
def vine():
    return Vine()


class Flood:
    """Small tasks without an end: whenever one is done there is another one."""

    def __init__(self, vine, priority=10.0, ready=20, make=single, **spec):
        self.vine, self.priority, self.make, self.spec = vine, priority, make, spec
        self._number = 100
        self.more(ready)

    def more(self, count):
        for _ in range(count):
            self._number += 1
            self.vine.submit(self.make(self._number, priority=self.priority, **self.spec))

    def turn(self, count=1):
        """End the oldest small tasks, one after another."""
        for _ in range(count):
            small = [number for number in self.vine.where() if number > 100]
            if not small:
                return
            self.more(1)
            self.vine.done(min(small), wall_s=1.0)


def test_a_more_urgent_task_that_needs_a_whole_worker_gets_one_soon(vine):
    worker = vine.join(cores=4)
    flood = Flood(vine)
    vine.submit(single(1, request=WHOLE, priority=0))
    assert 1 not in vine.where()
    flood.turn(5)  # the first one lets it be seen that it starves, then all four end
    assert vine.where() == {1: worker}
    vine.done(1)
    assert len(vine.where()) == 4


def test_of_several_workers_one_is_kept_and_the_others_go_on(vine):
    for _ in range(3):
        vine.join(cores=4)
    flood = Flood(vine, ready=40)
    vine.submit(single(1, request=WHOLE, priority=0), single(2, request=WHOLE, priority=0))
    seen = set()
    for _ in range(40):
        flood.turn()
        seen |= set(vine.where())
        assert len(vine.where()) >= 8 or {1, 2} & set(vine.where())
    assert {1, 2} <= seen


def test_a_task_of_several_cores_gets_them(vine):
    worker = vine.join(cores=4)
    flood = Flood(vine)
    vine.submit(single(1, request=ResourceRequest(cores=3), priority=0))
    flood.turn(4)
    assert vine.where()[1] == worker
    assert len(vine.where()) == 2


def test_what_is_less_urgent_waits_and_nothing_is_reserved(vine):
    vine.join(cores=4)
    flood = Flood(vine, priority=0.0)
    vine.submit(single(1, request=WHOLE, priority=10))
    flood.turn(30)
    assert vine.mind.tables.reservation.worker is None
    assert 1 not in vine.where()


def test_what_is_only_older_gets_its_turn_after_a_while(vine):
    worker = vine.join(cores=4)
    flood = Flood(vine, priority=5.0, ready=4)
    vine.submit(single(1, request=WHOLE, priority=5.0))
    flood.turn(10)
    assert 1 not in vine.where()
    vine.tick(PATIENCE_S + 1)
    flood.turn(5)
    assert vine.where() == {1: worker}


def test_something_more_urgent_still_may_have_a_worker_that_is_kept(vine):
    worker = vine.join(cores=4)
    flood = Flood(vine)
    vine.submit(single(1, request=WHOLE, priority=0))
    flood.turn(2)
    assert vine.mind.tables.reservation.worker is not None
    assert len(vine.where()) == 3
    vine.submit(single(2, priority=-5))
    assert vine.where()[2] == worker
    vine.done(2)
    flood.turn(6)
    assert vine.where() == {1: worker}


def test_a_task_that_finds_room_elsewhere_needs_no_worker_of_its_own(vine):
    vine.join(cores=4)
    flood = Flood(vine)
    vine.submit(single(1, request=WHOLE, priority=0))
    flood.turn(2)
    other = vine.join(cores=4)
    assert vine.where()[1] == other
    assert vine.mind.tables.reservation.worker is None
    assert len(vine.where()) == 5


@pytest.mark.parametrize("end", ["cancel", "lose the worker", "the worker leaves", "lose an input"])
def test_a_reservation_ends_with_its_purpose(vine, end):
    worker, other = vine.join(cores=4), vine.join(cores=4)
    flood = Flood(vine, ready=30)
    vine.submit(single(3, priority=-9), single(1, "r3", request=WHOLE, priority=0))
    while 3 not in vine.where():
        flood.turn()
    vine.done(3, size=LARGE)
    flood.turn(3)
    kept = vine.mind.tables.reservation.worker.id
    assert kept in (worker, other)
    if end == "cancel":
        vine.feed(e.TasksCancelled([1]))
    elif end == "lose the worker":
        vine.lose(kept)
    elif end == "the worker leaves":
        vine.say(kept, m.Draining("it is time", 100.0))
    else:
        (holder,) = vine.holders("r3")
        vine.say(holder, m.ObjectsLost(["r3"]))
    vine.tick()
    flood.turn(30)
    running = set(vine.where())
    assert len(running) >= 4 or 1 in running
    for _ in range(40):
        flood.turn()
        if 3 in vine.where():  # what was lost is made again
            vine.done(3, size=LARGE)
        if 1 in vine.where():
            break
    assert (1 in vine.where()) == (end != "cancel")


def test_a_worker_that_is_too_small_is_not_kept(vine):
    small, large = vine.join(cores=2), vine.join(cores=8)
    flood = Flood(vine, ready=40)
    vine.submit(single(1, request=ResourceRequest(cores=6), priority=0))
    for _ in range(30):
        flood.turn()
        assert sum(where == small for where in vine.where().values()) == 2
        if 1 in vine.where():
            break
    assert vine.where()[1] == large


def test_what_no_worker_can_hold_keeps_none(vine):
    vine.join(cores=4)
    flood = Flood(vine)
    vine.submit(single(1, request=ResourceRequest(cores=16), priority=0))
    flood.turn(20)
    assert len(vine.where()) == 4
    assert vine.mind.tables.reservation.worker is None


def test_a_library_that_needs_a_whole_worker_gets_one(vine):
    worker = vine.join(cores=4)
    flood = Flood(vine)
    vine.library("whole", slots=4, request=WHOLE)
    vine.submit(call(1, library="whole", priority=0))
    flood.turn(5)
    assert vine.where()[1] == worker


def test_a_task_that_needs_a_whole_worker_does_not_starve_behind_calls(vine):
    worker = vine.join(cores=4)
    vine.library("lib", slots=4, request=ResourceRequest(cores=4))
    flood = Flood(vine, ready=40, make=call)
    vine.submit(single(1, request=WHOLE, priority=0))
    for _ in range(60):
        flood.turn()
        if 1 in vine.where():
            break
    assert vine.where() == {1: worker}
    vine.done(1)
    assert len(vine.where()) >= 4, "the library is up again"


def test_libraries_that_keep_each_other_out_do_not_take_turns_all_the_time(vine):
    vine.join(cores=4)
    for name in ("first", "second"):
        vine.library(name, slots=4, request=WHOLE)
    for number in range(1, 200, 2):
        vine.submit(
            call(number, library="first", priority=number),
            call(number + 1, library="second", priority=number + 1),
        )
    started = len(vine.sent(m.Library, vine.log))
    while vine.where():
        vine.done(min(vine.where()), wall_s=1.0)
        vine.tick(0.1)
    assert set(outcomes(vine)) == set(range(1, 201))
    assert len(vine.sent(m.Library, vine.log)) - started <= 5


def test_calls_that_follow_each_other_do_not_hold_a_worker_that_is_kept(vine):
    worker = vine.join(cores=1)
    vine.library("lib", slots=1, request=ONE_CORE)
    vine.compute(*(call(n, *([f"r{n - 1}"] if n > 1 else []), priority=100 + n) for n in range(1, 300)))
    vine.submit(single(900, request=WHOLE, priority=0))
    turns = 0
    while 900 not in vine.where() and turns < 250:
        turns += 1
        vine.done(min(vine.where()), wall_s=0.2)
    assert vine.where() == {900: worker}
    assert turns < 100
    vine.done(900)
    while vine.where():
        vine.done(min(vine.where()), wall_s=0.2)
    assert not vine.run().unfinished


def test_a_task_that_waits_for_disk_keeps_no_worker(vine):
    worker = vine.join(cores=4, disk_mb=100)
    flood = Flood(vine, ready=8)
    vine.submit(single(1, request=ResourceRequest(cores=4, disk=100), priority=0))
    vine.declare("kept", size=60 << 20, at_manager=True)
    vine.submit(single(50, "kept", priority=-5))
    for _ in range(40):
        flood.turn()
        vine.tick(0.3)
    assert vine.where(), "somebody works"
    assert vine.where().get(1, worker) == worker
