"""Files that only tasks can make again are brought to more workers than one, where the user asks for that."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    harness.send_events(e.SettingChanged("temp-replica-count", 2))
    return harness


def test_output_is_copied_to_another_worker(harness):
    """What a task has made is copied to another worker."""
    first = harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    second = harness.connect_worker()
    third = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    ((receiver, name, _source),) = harness.requested_fetches()
    assert name == "r1"
    assert receiver in {second, third} != {first}


def test_what_nobody_needs_is_not_copied(harness):
    harness.connect_worker()
    harness.compute_graph(call(1))
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert not harness.requested_fetches(harness.log)


def test_with_one_copy_nothing_is_copied(harness):
    harness.send_events(e.SettingChanged("temp-replica-count", 1))
    harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert not harness.requested_fetches(harness.log)


def test_lost_replica_is_replaced_at_no_cost(harness):
    """A lost worker costs nothing where there are copies and they are made up for."""
    first, second = harness.connect_worker(), harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    maker = harness.assignment_of(1)[0]
    harness.complete_task(1, size=LARGE)
    other = second if maker == first else first
    harness.report_cached(other, "r1")
    third = harness.connect_worker()
    harness.disconnect_worker(maker)
    assert harness.graph().recomputed == 0
    assert (third, "r1", "host2:7" if other == second else "host1:7") in harness.requested_fetches()


def test_failed_copy_is_tried_elsewhere(harness):
    """A copy that fails is tried with another worker."""
    first, second, third = (harness.connect_worker() for _ in range(3))
    harness.compute_graph(call(1), call(2, "r1"))
    maker = harness.assignment_of(1)[0]
    harness.complete_task(1, size=LARGE)
    ((receiver, _name, source),) = harness.requested_fetches()
    harness.worker_sends(receiver, m.FetchFailed("r1", source, "no route", False))
    assert {worker for worker, _, _ in harness.requested_fetches(harness.log)} == {first, second, third} - {
        maker
    }


def test_copies_go_when_nobody_needs_the_file(harness):
    first, second = harness.connect_worker(), harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    maker = harness.assignment_of(1)[0]
    harness.complete_task(1, size=LARGE)
    harness.report_cached(second if maker == first else first, "r1")
    harness.complete_task(2)
    assert {(first, "r1"), (second, "r1")} <= harness.removed_objects()
    assert graph_outcomes(harness) == {1: "success"}
