"""A worker that leaves takes nothing with it that somebody needs."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, endings, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.queue_stats import is_idle_and_safe_to_remove

GRACE_S = 20.0


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def leave(vine, worker, within_s=GRACE_S):
    return vine.say(worker, m.Draining("it got SIGTERM", within_s))


def let_go(vine):
    """Which workers have been told to leave in the last answer."""
    return [worker for worker, _release in vine.sent(m.Shutdown)]


def half_done(vine, size=LARGE, **worker):
    """A graph whose first vertex is done, on a worker where the second one has begun."""
    vine.compute(call(1), call(2, "r1"))
    first = vine.join(**worker)
    vine.done(1, size)
    assert vine.where() == {2: first}
    return first


def test_a_worker_that_has_nothing_is_let_go_at_once(vine):
    worker = vine.join()
    leave(vine, worker)
    assert let_go(vine) == [worker]
    assert [x.worker for x in vine.told(i.Disconnect)] == [worker]


def test_what_only_it_has_is_brought_to_a_worker_that_stays(vine):
    first = half_done(vine)
    second = vine.join(port=8)
    leave(vine, first)
    assert vine.where() == {2: second}
    assert vine.fetches() == [(second, "r1", "host1:7")]
    assert let_go(vine) == []
    vine.cached(second, "r1")
    assert let_go(vine) == [first]
    vine.lose(first)
    vine.done(2)
    assert endings(vine) == {1: "success"}
    assert vine.run().recomputed == 0


def test_what_no_task_asks_for_now_is_brought_away_too(vine):
    vine.compute(call(1), call(2), call(3, "r1", "r2"))
    first = vine.join()
    vine.done(1, size=LARGE)
    second = vine.join(port=8)
    leave(vine, first)
    assert vine.fetches() == [(second, "r1", "host1:7")]


def test_it_comes_to_the_manager_where_no_other_worker_can_take_it(vine):
    first = half_done(vine)
    leave(vine, first)
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]
    vine.feed(e.ObjectStored("r1", LARGE, ""))
    assert let_go(vine) == [first]
    vine.lose(first)
    vine.join()
    vine.done(2)
    assert endings(vine) == {1: "success"}
    assert vine.run().recomputed == 0


def test_what_nobody_can_fetch_from_it_comes_to_the_manager(vine):
    first = half_done(vine, port=0)
    vine.join()
    leave(vine, first)
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]


def test_what_could_not_be_brought_away_is_tried_again_another_way(vine):
    first = half_done(vine)
    second = vine.join(port=8)
    leave(vine, first)
    vine.fetch_failed(second, "r1", "host1:7")
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]
    assert let_go(vine) == []


def test_a_copy_that_is_not_compared_yet_does_not_count(vine):
    first = half_done(vine)
    second = vine.join(port=8)
    leave(vine, first)
    vine.say(second, m.Cached("r1", LARGE, "", verified=False))
    assert let_go(vine) == []
    vine.say(second, m.Verified("r1"))
    assert let_go(vine) == [first]


def test_two_that_leave_together_do_not_rely_on_each_other(vine):
    first = half_done(vine)
    second = vine.join(port=8)
    vine.say(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    leave(vine, first)
    assert let_go(vine) == [first]
    leave(vine, second)
    assert let_go(vine) == []
    assert [name for _worker, upload in vine.sent(m.Upload) for name in [upload.name]] == ["r1"]


def test_what_it_runs_is_run_elsewhere_at_once_and_not_blamed(vine):
    vine.compute(call(1), retries=0)
    first = vine.join()
    leave(vine, first)
    assert vine.sent(m.Cancel) == [(first, m.Cancel([1]))]
    second = vine.join()
    assert vine.where() == {1: second}
    assert vine.task(1).attempts == 0


def test_it_gets_nothing_more(vine):
    first = half_done(vine)
    leave(vine, first)
    vine.submit(single(11), call(12))
    assert vine.where() == {}
    assert (
        vine.mind.diagnostics.explain_queue(vine.task(11).bucket)[0]
        == "all workers that are connected are leaving"
    )


def test_it_is_not_waited_for_when_its_grace_is_over(vine):
    first = half_done(vine)
    leave(vine, first)
    vine.tick(GRACE_S - 1)
    assert let_go(vine) == []
    vine.tick(5)
    assert let_go(vine) == [first]
    assert "1 files that only it has could not be brought" in vine.told(i.LogMessage)[-1].text
    vine.lose(first)
    vine.join()
    vine.done(1)
    vine.done(2)
    assert endings(vine) == {1: "success"}
    assert vine.run().recomputed == 1


def test_many_files_go_a_few_at_a_time_the_dearest_first(vine):
    count = 20
    vine.compute(*(call(n) for n in range(1, count + 1)), call(99, *(f"r{n}" for n in range(1, count + 1))))
    first = vine.join(cores=4)
    for n in range(1, count):
        vine.done(n, size=LARGE, wall_s=n)
    second = vine.join(port=8, cores=4)
    leave(vine, first)
    asked = [name for _worker, name, _source in vine.fetches()]
    assert asked == [f"r{n}" for n in range(count - 1, count - 9, -1)]
    for name in asked:
        vine.cached(second, name)
    assert len(vine.file(f"r{count - 9}").fetching) == 1


def test_when_the_manager_ends_nobody_is_waited_for(vine):
    first = half_done(vine)
    second = vine.join(port=0)
    leave(vine, first)
    vine.feed(e.ShutdownAnnounced())
    assert let_go(vine) == [first]
    leave(vine, second)
    assert let_go(vine) == [second]


def test_a_worker_that_leaves_is_no_reason_to_say_another_one_is_dispensable(vine):
    first = half_done(vine)
    second = vine.join(port=8)
    vine.say(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert is_idle_and_safe_to_remove(vine.worker(second))
    vine.mind.tables.workers[first].draining = True
    assert not is_idle_and_safe_to_remove(vine.worker(second))


def test_a_worker_gets_no_task_that_would_not_be_over_in_time(vine):
    vine.submit(single(1, options={"time_max": 50.0}, category="long"))
    short = vine.join(time_left_s=40.0)
    assert vine.where() == {}
    vine.tick(0)
    vine.tick(3)
    assert vine.told(i.Stalled)[-1].text.startswith("no worker stays long enough: tasks take 50 s")
    long = vine.join(time_left_s=100.0)
    assert vine.where() == {1: long}
    vine.done(1, wall_s=10.0)
    vine.submit(single(2, category="long"), single(3, category="long"))
    assert set(vine.where().values()) == {short, long}  # as long as the first one has taken


def test_as_its_end_comes_nearer_fewer_tasks_fit(vine):
    worker = vine.join(time_left_s=100.0)
    vine.submit(call(1), single(2))
    vine.done(1, wall_s=30.0)
    vine.done(2, wall_s=30.0)
    vine.tick(60)
    vine.submit(call(3))
    assert vine.where() == {3: worker}
    vine.done(3, wall_s=30.0)
    vine.tick(20)
    vine.submit(call(4), single(5))
    assert vine.where() == {}


def test_it_is_drained_before_its_end_the_earlier_the_more_it_holds(vine):
    five_seconds_of_network = 500_000_000
    first = half_done(vine, five_seconds_of_network, time_left_s=100.0, disk_mb=10_000)
    vine.tick(94)
    assert vine.where() == {2: first}
    vine.tick(1)
    assert vine.sent(m.Upload) == [(first, m.Upload("r1"))]
    assert vine.where() == {2: first}  # it may still be over in time
    leave(vine, first)
    assert vine.where() == {}


def test_tasks_of_a_worker_whose_time_was_over_are_not_blamed(vine):
    worker = vine.join(time_left_s=10.0)
    vine.submit(single(1, retries=0, request=ONE_CORE))
    vine.tick(11)
    vine.lose(worker)
    assert vine.task(1).attempts == 0
