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


def test_a_worker_that_has_nothing_is_let_go_at_once(harness):
    worker = harness.connect_worker()
    leave(harness, worker)
    assert let_go(harness) == [worker]
    assert [x.worker for x in harness.instructions_of(i.Disconnect)] == [worker]


def test_what_only_it_has_is_brought_to_a_worker_that_stays(harness):
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


def test_what_no_task_asks_for_now_is_brought_away_too(harness):
    harness.compute_graph(call(1), call(2), call(3, "r1", "r2"))
    first = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    assert harness.requested_fetches() == [(second, "r1", "host1:7")]


def test_it_comes_to_the_manager_where_no_other_worker_can_take_it(harness):
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


def test_what_nobody_can_fetch_from_it_comes_to_the_manager(harness):
    first = half_done(harness, port=0)
    harness.connect_worker()
    leave(harness, first)
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]


def test_what_could_not_be_brought_away_is_tried_again_another_way(harness):
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    harness.report_failed_fetch(second, "r1", "host1:7")
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    assert let_go(harness) == []


def test_a_copy_that_is_not_compared_yet_does_not_count(harness):
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    leave(harness, first)
    harness.worker_sends(second, m.Cached("r1", LARGE, "", verified=False))
    assert let_go(harness) == []
    harness.worker_sends(second, m.Verified("r1"))
    assert let_go(harness) == [first]


def test_two_that_leave_together_do_not_rely_on_each_other(harness):
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    leave(harness, first)
    assert let_go(harness) == [first]
    leave(harness, second)
    assert let_go(harness) == []
    assert [name for _worker, upload in harness.messages_sent(m.Upload) for name in [upload.name]] == ["r1"]


def test_what_it_runs_is_run_elsewhere_at_once_and_not_blamed(harness):
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
        harness.scheduler.diagnostics.explain_queue(harness.task(11).bucket)[0]
        == "all workers that are connected are leaving"
    )


def test_it_is_not_waited_for_when_its_grace_is_over(harness):
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


def test_many_files_go_a_few_at_a_time_the_dearest_first(harness):
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


def test_when_the_manager_ends_nobody_is_waited_for(harness):
    first = half_done(harness)
    second = harness.connect_worker(port=0)
    leave(harness, first)
    harness.send_events(e.ShutdownAnnounced())
    assert let_go(harness) == [first]
    leave(harness, second)
    assert let_go(harness) == [second]


def test_a_worker_that_leaves_is_no_reason_to_say_another_one_is_dispensable(harness):
    first = half_done(harness)
    second = harness.connect_worker(port=8)
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert is_idle_and_safe_to_remove(harness.worker(second))
    harness.scheduler.tables.workers[first].draining = True
    assert not is_idle_and_safe_to_remove(harness.worker(second))


def test_a_worker_gets_no_task_that_would_not_be_over_in_time(harness):
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


def test_as_its_end_comes_nearer_fewer_tasks_fit(harness):
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


def test_it_is_drained_before_its_end_the_earlier_the_more_it_holds(harness):
    five_seconds_of_network = 500_000_000
    first = half_done(harness, five_seconds_of_network, time_left_s=100.0, disk_mb=10_000)
    harness.advance_time(94)
    assert harness.assignments() == {2: first}
    harness.advance_time(1)
    assert harness.messages_sent(m.Upload) == [(first, m.Upload("r1"))]
    assert harness.assignments() == {2: first}  # it may still be over in time
    leave(harness, first)
    assert harness.assignments() == {}


def test_tasks_of_a_worker_whose_time_was_over_are_not_blamed(harness):
    worker = harness.connect_worker(time_left_s=10.0)
    harness.submit_tasks(single(1, retries=0, request=ONE_CORE))
    harness.advance_time(11)
    harness.disconnect_worker(worker)
    assert harness.task(1).attempts == 0
