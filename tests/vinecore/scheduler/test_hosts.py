"""Which workers get work: hosts that are blocked or drained, slow workers, and bounds on their number."""

from __future__ import annotations

import math

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.slow_workers import MIN_TASKS


@pytest.fixture
def harness():
    return SchedulerHarness()


def running_on(harness):
    return {number: task.worker and task.worker.id for number, task in harness.state.tasks.items()}


# ---- blocked hosts


@pytest.mark.parametrize("name", ["host1", "10.0.0.1"], ids=["by name", "by address"])
def test_blocked_host_gets_no_new_tasks(harness, name):
    """What runs there goes on."""
    harness.connect_worker(2)
    harness.state.workers[1].host = "10.0.0.1"
    harness.submit_tasks(single(1))
    harness.send_events(e.HostBlocked(name, math.inf))
    harness.submit_tasks(single(2))
    assert running_on(harness) == {1: 1, 2: None}
    harness.complete_task(1)
    harness.connect_worker()
    assert running_on(harness) == {2: 2}


def test_later_worker_of_blocked_host_waits(harness):
    harness.send_events(e.HostBlocked("host1", math.inf))
    harness.connect_worker()
    harness.submit_tasks(single(1))
    assert running_on(harness) == {1: None}
    harness.send_events(e.HostUnblocked("host1"))
    assert running_on(harness) == {1: 1}


def test_all_hosts_are_unblocked(harness):
    for number in (1, 2):
        harness.connect_worker()
        harness.send_events(e.HostBlocked(f"host{number}", math.inf))
    harness.submit_tasks(single(1), single(2))
    assert set(running_on(harness).values()) == {None}
    harness.send_events(e.HostUnblocked(""))
    assert set(running_on(harness).values()) == {1, 2}


def test_block_ends_with_its_time(harness):
    harness.connect_worker()
    harness.send_events(e.HostBlocked("host1", 5.0))
    harness.submit_tasks(single(1))
    harness.advance_time(4.9)
    assert running_on(harness) == {1: None}
    harness.advance_time(0.2)
    assert running_on(harness) == {1: 1}


def test_user_learns_of_blocked_workers(harness):
    harness.connect_worker()
    harness.send_events(e.HostBlocked("host1", math.inf))
    harness.submit_tasks(single(1))
    for _ in range(4):
        harness.advance_time()
    assert "all workers that are connected are blocked" in harness.scheduler.stalled_reason


def test_blocked_worker_gets_no_calls(harness):
    """Neither successors of what runs there, nor calls that are queued elsewhere."""
    harness.install_library(slots=1)
    harness.connect_worker()
    harness.compute_graph(call(1), number=1)
    harness.send_events(e.HostBlocked("host1", math.inf))
    harness.compute_graph(call(11), call(12, "r11"), number=2)
    assert running_on(harness) == {1: 1, 11: None, 12: None}


# ---- drained hosts


def test_drained_host_leaves_when_done(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.send_events(e.HostDrained("host1", True))
    harness.submit_tasks(single(2))
    assert running_on(harness) == {1: 1, 2: None}
    assert not released(harness, worker)
    harness.complete_task(1)
    harness.advance_time(0.25)
    assert released(harness, worker)


def test_drained_host_is_kept_again(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.send_events(e.HostDrained("host1", True))
    harness.submit_tasks(single(2))
    harness.send_events(e.HostDrained("host1", False))
    harness.complete_task(1)
    harness.advance_time(0.25)
    assert not released(harness, worker)
    assert running_on(harness) == {2: 1}


def test_leaving_worker_is_not_kept(harness):
    worker = harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.worker_sends(worker, m.Draining("its job ends", 30.0))
    harness.send_events(e.HostDrained("host1", False))
    assert harness.state.workers[worker].draining


def released(harness, worker):
    return [one for one in harness.log if isinstance(one, i.Disconnect) and one.worker == worker]


# ---- workers that are to leave


def test_released_worker_hands_over_its_files(harness):
    first, second = harness.connect_worker(), harness.connect_worker()
    harness.install_library()
    harness.compute_graph(call(1), call(2, "r1"), number=1, prune_depth=0)
    maker = harness.assignment_of(1)[0]
    other = second if maker == first else first
    harness.complete_task(1, size=LARGE)
    assert harness.assignment_of(2)[0] == maker
    harness.send_events(e.WorkersReleased([maker], "enough"))
    assert harness.assignment_of(2)[0] == other
    assert not released(harness, maker)
    harness.report_cached(other, "r1")
    assert released(harness, maker)


# ---- how many workers


def test_worker_beyond_maximum_is_refused(harness):
    """It may come again: another one may have left meanwhile."""
    harness.send_events(e.SettingChanged("max-workers", 1))
    harness.connect_worker()
    second = harness.connect_worker()
    assert list(harness.state.workers) == [1]
    assert released(harness, second)
    assert i.Send(second, m.Shutdown("tune('max-workers') allows no more than 1", False)) in harness.log
    harness.worker_sends(second, m.Pong())
    harness.disconnect_worker(second)
    harness.disconnect_worker(1)
    harness.connect_worker()
    assert list(harness.state.workers) == [3]


def test_tasks_wait_for_enough_workers(harness):
    harness.send_events(e.SettingChanged("wait-for-workers", 2))
    harness.connect_worker()
    harness.submit_tasks(single(1))
    for _ in range(4):
        harness.advance_time()
    assert running_on(harness) == {1: None}
    assert "1 of the 2 workers are connected" in harness.scheduler.stalled_reason
    harness.connect_worker()
    assert running_on(harness)[1]
    harness.disconnect_worker(1)
    harness.submit_tasks(single(2), single(3))
    assert 2 in running_on(harness).values()  # once they were there it is over


def test_waiting_for_workers_is_ended(harness):
    harness.send_events(e.SettingChanged("wait-for-workers", 2))
    harness.connect_worker()
    harness.submit_tasks(single(1))
    harness.send_events(e.SettingChanged("wait-for-workers", 0))
    assert running_on(harness) == {1: 1}


def test_workers_are_disconnected_in_intervals(harness):
    harness.send_events(e.SettingChanged("enforce-worker-eviction-interval", 10.0))
    for _ in range(3):
        harness.connect_worker()
    harness.submit_tasks(single(1))
    gone = set()
    for second in range(31):
        harness.advance_time()
        for one in harness.last_instructions:
            if isinstance(one, i.Disconnect):
                assert second % 10 == 9
                gone.add(one.worker)
                harness.disconnect_worker(one.worker, one.reason)
    assert gone == {1, 2, 3}
    assert harness.state.tasks[1].attempts == 0


# ---- slow workers


def make_mean(harness, mean_s=2.0, count=MIN_TASKS, category="default"):
    """Have tasks of a category take this time, so that their mean is known."""
    for number in range(1000, 1000 + count):
        harness.submit_tasks(single(number, category=category))
        harness.complete_task(number, wall_s=mean_s)


@pytest.fixture
def slow(harness):
    """Workers on which tasks usually take two seconds, and one in six is too much."""
    harness.connect_worker()
    make_mean(harness)
    harness.send_events(e.SettingChanged("disconnect-slow-worker-factor", 3.0))
    return harness


def test_task_of_slow_worker_runs_elsewhere(slow):
    slow.submit_tasks(single(1))
    slow.advance_time(0.25)
    slow.connect_worker()
    slow.advance_time(5.9)
    assert running_on(slow) == {1: 1}
    slow.advance_time(0.2)
    assert running_on(slow) == {1: 2}
    assert slow.state.tasks[1].attempts == 0
    assert slow.messages_sent(m.Cancel) == [(1, m.Cancel([1]))]


def test_task_gets_more_time_each_time(slow):
    slow.submit_tasks(single(1))
    slow.advance_time(0.25)
    slow.connect_worker()
    slow.advance_time(6.1)
    slow.advance_time(0.25)
    slow.advance_time(7.9)
    assert running_on(slow) == {1: 2}


def test_twice_slow_worker_is_let_go(slow):
    slow.submit_tasks(single(1))
    slow.advance_time(0.25)
    slow.advance_time(6.1)
    assert running_on(slow) == {1: None}
    slow.advance_time(15.1)  # it gets tasks again
    assert running_on(slow) == {1: 1}
    slow.advance_time(0.25)
    slow.advance_time(8.1)
    slow.advance_time(0.25)
    assert released(slow, 1)
    slow.disconnect_worker(1)
    assert slow.scheduler.hosts.blocked_until == {"host1": slow.now - 0.25 + 900}
    assert slow.state.counters.workers_slow == 1


def test_few_tasks_have_no_mean(harness):
    harness.connect_worker()
    make_mean(harness, count=MIN_TASKS - 1)
    harness.send_events(e.SettingChanged("disconnect-slow-worker-factor", 3.0))
    harness.submit_tasks(single(1))
    harness.advance_time(0.25)
    harness.advance_time(1000)
    assert running_on(harness) == {1: 1}


@pytest.mark.parametrize("factor", [0.0, 100.0], ids=["off", "more patient"])
def test_category_has_its_own_factor(slow, factor):
    slow.send_events(e.CategorySet("default", None, None, None, None, slow_factor=factor))
    slow.submit_tasks(single(1))
    slow.advance_time(0.25)
    slow.advance_time(100)
    assert running_on(slow) == {1: 1}


def test_only_a_category_is_checked(harness):
    harness.connect_worker(4)
    make_mean(harness, category="kind")
    harness.send_events(e.CategorySet("kind", None, None, None, None, slow_factor=3.0))
    harness.submit_tasks(single(1, category="kind"), single(2))
    harness.advance_time(0.25)
    harness.advance_time(6.1)
    assert running_on(harness) == {1: None, 2: 1}


def test_queued_calls_are_not_slow(harness):
    harness.install_library(slots=1)
    harness.connect_worker()
    harness.compute_graph(*(call(n, category="kind") for n in range(1, 12)), number=1)
    for number in range(1, 11):
        harness.complete_task(number, wall_s=0.001)
    harness.send_events(e.SettingChanged("disconnect-slow-worker-factor", 3.0))
    harness.compute_graph(*(call(n, category="kind") for n in range(20, 23)), number=2)
    harness.advance_time(0.25)
    harness.advance_time(1)
    assert [one for one in harness.log if isinstance(one, i.LogMessage) and "has run for" in one.text][
        1:
    ] == []
