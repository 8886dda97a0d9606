"""Files that only tasks can make again are brought to more workers than one, where the user asks for that."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    vine.feed(e.SettingChanged("temp-replica-count", 2))
    return vine


def test_what_a_task_has_made_is_copied_to_another_worker(vine):
    first = vine.join()
    vine.compute(call(1), call(2, "r1"))
    second = vine.join()
    third = vine.join()
    vine.done(1, size=LARGE)
    ((receiver, name, _source),) = vine.fetches()
    assert name == "r1"
    assert receiver in {second, third} != {first}


def test_what_nobody_needs_is_not_copied(vine):
    vine.join()
    vine.compute(call(1))
    vine.join()
    vine.done(1, size=LARGE)
    assert not vine.fetches(vine.log)


def test_with_one_copy_nothing_is_copied(vine):
    vine.feed(e.SettingChanged("temp-replica-count", 1))
    vine.join()
    vine.compute(call(1), call(2, "r1"))
    vine.join()
    vine.done(1, size=LARGE)
    assert not vine.fetches(vine.log)


def test_a_lost_worker_costs_nothing_where_there_are_copies_and_they_are_made_up_for(vine):
    first, second = vine.join(), vine.join()
    vine.compute(call(1), call(2, "r1"))
    maker = vine.place(1)[0]
    vine.done(1, size=LARGE)
    other = second if maker == first else first
    vine.cached(other, "r1")
    third = vine.join()
    vine.lose(maker)
    assert vine.run().recomputed == 0
    assert (third, "r1", "host2:7" if other == second else "host1:7") in vine.fetches()


def test_a_copy_that_fails_is_tried_with_another_worker(vine):
    first, second, third = (vine.join() for _ in range(3))
    vine.compute(call(1), call(2, "r1"))
    maker = vine.place(1)[0]
    vine.done(1, size=LARGE)
    ((receiver, _name, source),) = vine.fetches()
    vine.say(receiver, m.FetchFailed("r1", source, "no route", False))
    assert {worker for worker, _, _ in vine.fetches(vine.log)} == {first, second, third} - {maker}


def test_copies_go_when_nobody_needs_the_file(vine):
    first, second = vine.join(), vine.join()
    vine.compute(call(1), call(2, "r1"))
    maker = vine.place(1)[0]
    vine.done(1, size=LARGE)
    vine.cached(second if maker == first else first, "r1")
    vine.done(2)
    assert {(first, "r1"), (second, "r1")} <= vine.unlinked()
    assert endings(vine) == {1: "success"}
