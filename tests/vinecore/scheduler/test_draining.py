"""A worker that leaves takes nothing with it that somebody needs."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, SchedulerHarness, call, graph_outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.queue_stats import is_idle_and_safe_to_remove

GRACE_S = 20.0


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def leave(harness, worker, within_s=GRACE_S):
    return harness.worker_sends(worker, m.Draining("it got SIGTERM", within_s))


def let_go(harness):
    """Which workers have been told to leave in the last answer."""
    return [worker for worker, _release in harness.messages_sent(m.Shutdown)]


def half_done(harness, size=LARGE, **worker):
    """A graph whose first vertex is done, on a worker where the second one has begun."""
    harness.compute_graph(call(1), call(2, "r1"))
    first = harness.connect_worker(**worker)
    harness.complete_task(1, size)
    assert harness.assignments() == {2: first}
    return first


def test_empty_worker_is_released_at_once(harness):
    """A worker that has nothing is let go at once."""
    worker = harness.connect_worker()
    leave(harness, worker)
    assert let_go(harness) == [worker]
    assert [x.worker for x in harness.instructions_of(i.Disconnect)] == [worker]


def test_sole_replica_is_copied_to_peer(harness):
    """What only it has is brought to a worker that stays."""
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    assert harness.assignments() == {2: second}
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]
    assert let_go(harness) == []
    harness.report_cached(second, "r1")
    assert let_go(harness) == [first]
    harness.disconnect_worker(first)
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "success"}
    assert harness.graph().recomputed == 0


def test_unused_sole_replica_is_copied_too(harness):
    """What no task asks for now is brought away too."""
    harness.compute_graph(call(1), call(2), call(3, "r1", "r2"))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]


def test_sole_replica_without_peer_is_uploaded(harness):
    """It comes to the manager where no other worker can take it."""
    first = half_done(harness)
    leave(harness, first)
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    harness.send_events(e.ObjectStored("r1", LARGE, ""))
    assert let_go(harness) == [first]
    harness.disconnect_worker(first)
    harness.connect_worker()
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "success"}
    assert harness.graph().recomputed == 0


def test_unreachable_sole_replica_is_uploaded(harness):
    """What nobody can fetch from it comes to the manager."""
    first = half_done(harness, port=0)
    harness.connect_worker()
    leave(harness, first)
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]


def test_failed_copy_is_tried_another_way(harness):
    """What could not be brought away is tried again another way."""
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    harness.report_failed_fetch(second, "r1", "host1:7")
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    assert let_go(harness) == []


def test_unverified_copy_does_not_count(harness):
    """A copy that is not compared yet does not count."""
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    harness.worker_sends(second, m.Cached("r1", LARGE, "", verified=False))
    assert let_go(harness) == []
    harness.worker_sends(second, m.Verified("r1"))
    assert let_go(harness) == [first]


def test_draining_peers_do_not_rely_on_another(harness):
    """Two that leave together do not rely on each other."""
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    leave(harness, first)
    assert let_go(harness) == [first]
    leave(harness, second)
    assert let_go(harness) == []
    assert [name for _worker, upload in harness.messages_sent(m.Upload) for name in [upload.name]] == ["r1"]


def test_running_tasks_move_without_blame(harness):
    """What it runs is run elsewhere at once and not blamed."""
    harness.compute_graph(call(1), retries=0)
    first = harness.connect_worker()
    leave(harness, first)
    assert harness.messages_sent(m.Cancel) == [(first, m.Cancel([1]))]
    second = harness.connect_worker()
    assert harness.assignments() == {1: second}
    assert harness.task(1).attempts == 0


def test_it_gets_nothing_more(harness):
    first = half_done(harness)
    leave(harness, first)
    harness.submit_tasks(single(11), call(12))
    assert harness.assignments() == {}
    assert (
        harness.scheduler.diagnostics.explain_queue(harness.task(11).queue)[0]
        == "all workers that are connected are leaving"
    )


def test_grace_end_releases_worker(harness):
    """It is not waited for when its grace is over."""
    first = half_done(harness)
    leave(harness, first)
    harness.advance_time(GRACE_S - 1)
    assert let_go(harness) == []
    harness.advance_time(5)
    assert let_go(harness) == [first]
    assert "1 files that only it has could not be brought" in harness.instructions_of(i.LogMessage)[-1].text
    harness.disconnect_worker(first)
    harness.connect_worker()
    harness.complete_task(1)
    harness.complete_task(2)
    assert graph_outcomes(harness) == {1: "success"}
    assert harness.graph().recomputed == 1


def test_many_files_go_dearest_first(harness):
    """Many files go a few at a time the dearest first."""
    count = 20
    harness.compute_graph(
        *(call(n) for n in range(1, count + 1)), call(99, *(f"r{n}" for n in range(1, count + 1)))
    )
    first = harness.connect_worker(cores=4)
    for n in range(1, count):
        harness.complete_task(n, size=LARGE, wall_s=n)
    second = harness.connect_worker(port=8, cores=4)
    leave(harness, first)
    asked = [name for _worker, name, _source in harness.requested_fetches()]
    assert asked == [f"r{n}" for n in range(count - 1, count - 9, -1)]
    for name in asked:
        harness.report_cached(second, name)
    assert len(harness.file(f"r{count - 9}").fetching) == 1


def test_manager_end_waits_for_no_drain(harness):
    """When the manager ends nobody is waited for."""
    first = half_done(harness)
    second = harness.connect_worker(port=0)
    leave(harness, first)
    harness.send_events(e.ShutdownAnnounced())
    assert let_go(harness) == [first]
    leave(harness, second)
    assert let_go(harness) == [second]


def test_draining_worker_makes_no_other_dispensable(harness):
    """A worker that leaves is no reason to say another one is dispensable."""
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert is_idle_and_safe_to_remove(harness.worker(second))
    harness.scheduler.state.workers[first].draining = True
    assert not is_idle_and_safe_to_remove(harness.worker(second))


def test_worker_gets_no_task_beyond_its_time(harness):
    """A worker gets no task that would not be over in time."""
    harness.submit_tasks(single(1, options={"time_max": 50.0}, category="long"))
    short = harness.connect_worker(time_left_s=40.0)
    assert harness.assignments() == {}
    harness.advance_time(0)
    harness.advance_time(3)
    assert harness.instructions_of(i.Stalled)[-1].text.startswith(
        "no worker stays long enough: tasks take 50 s"
    )
    long = harness.connect_worker(time_left_s=100.0)
    assert harness.assignments() == {1: long}
    harness.complete_task(1, wall_s=10.0)
    harness.submit_tasks(single(2, category="long"), single(3, category="long"))
    assert set(harness.assignments().values()) == {short, long}  # as long as the first one has taken


def test_fewer_tasks_fit_near_end(harness):
    """As its end comes nearer fewer tasks fit."""
    worker = harness.connect_worker(time_left_s=100.0)
    harness.submit_tasks(call(1), single(2))
    harness.complete_task(1, wall_s=30.0)
    harness.complete_task(2, wall_s=30.0)
    harness.advance_time(60)
    harness.submit_tasks(call(3))
    assert harness.assignments() == {3: worker}
    harness.complete_task(3, wall_s=30.0)
    harness.advance_time(20)
    harness.submit_tasks(call(4), single(5))
    assert harness.assignments() == {}


def test_drain_starts_earlier_with_more_data(harness):
    """It is drained before its end the earlier the more it holds."""
    five_seconds_of_network = 500_000_000
    first = half_done(harness, five_seconds_of_network, time_left_s=100.0, disk_mb=10_000)
    harness.advance_time(94)
    assert harness.assignments() == {2: first}
    harness.advance_time(1)
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    assert harness.assignments() == {2: first}  # it may still be over in time
    leave(harness, first)
    assert harness.assignments() == {}


def test_tasks_of_expired_worker_are_not_blamed(harness):
    """Tasks of a worker whose time was over are not blamed."""
    worker = harness.connect_worker(time_left_s=10.0)
    harness.submit_tasks(single(1, retries=0, request=ONE_CORE))
    harness.advance_time(11)
    harness.disconnect_worker(worker)
    assert harness.task(1).attempts == 0
