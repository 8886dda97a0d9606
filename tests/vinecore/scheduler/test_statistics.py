"""Numbers that are computed from the tables, and the number of tasks that a manager could still use."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import ONE_CORE, SchedulerHarness, call, maker, single
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest, Resources
from vinecore.scheduler import events as e
from vinecore.scheduler.statistics import (
    ManagerStats,
    count_further_tasks,
    further_tasks,
    manager_stats,
)

CORES_12 = Resources(12.0, 1200, 1200, 0.0)


def hungry(**changes):
    """Ask for a worker of 12 cores without tasks, with what is said otherwise."""
    usual = {"workers": 1, "total": CORES_12, "committed": Resources(), "running": 0, "waiting": 0,
             "wishes": [], "minimum": 5, "factor": 2}  # fmt: skip
    return further_tasks(**{**usual, **changes})


def test_without_workers_minimum_counts():
    nothing = {"workers": 0, "total": Resources()}
    assert hungry(**nothing, minimum=11) == 11
    assert hungry(**nothing, waiting=4, wishes=[(4, ResourceRequest())]) == 1
    assert hungry(**nothing, waiting=7, wishes=[(7, ResourceRequest())]) == 0


@pytest.mark.parametrize(
    ("changes", "further"),
    [
        # one core a task at least
        ({}, 24),
        ({"committed": Resources(1.0, 100, 100, 0.0), "running": 1}, 23),
        ({"committed": Resources(1.0, 100, 100, 0.0), "running": 1, "factor": 3}, 35),
        # memory is scarcer than cores
        ({"committed": Resources(1.0, 200, 200, 0.0), "running": 1, "factor": 3}, 17),
        # mean of two tasks, rounded up: 6 cores, so 4 more would fit, and the minimum counts
        ({"committed": CORES_12, "running": 2, "factor": 3}, 5),
        # the mean of running tasks is rounded up, from 2.4 cores to 3
        ({"committed": Resources(12.0, 5, 5, 0.0), "running": 5, "factor": 3}, 8),
        # a task that says nothing is taken for a mean running one
        ({"committed": CORES_12, "running": 1, "waiting": 1, "wishes": [(1, ResourceRequest())]}, 4),
        # 10 * 12 - 12 cores for tasks of 2, and one waits
        ({"committed": Resources(12.0, 2, 2, 0.0), "running": 2, "factor": 10,
          "waiting": 1, "wishes": [(1, ResourceRequest(cores=2))]}, 53),
        # mean wish of (2 * 1 + 1 * 4) / 3 = 2 cores: 24 / 2 - 3
        ({"waiting": 3, "wishes": [(2, ResourceRequest(cores=1)), (1, ResourceRequest(cores=4))]}, 9),
        # the workers themselves: 3 * 20
        ({"workers": 20, "factor": 3, "committed": CORES_12, "running": 1}, 60),
        ({"waiting": 1000, "wishes": [(100, ResourceRequest(cores=1))]}, 0),
        # no worker has a gpu: only the minimum counts
        ({"waiting": 1, "wishes": [(1, ResourceRequest(cores=1, gpus=1))]}, 4),
    ],
)  # fmt: skip
def test_further_tasks_follow_the_arithmetic(changes, further):
    assert hungry(**changes) == further


def test_hungry_looks_at_the_first_tasks():
    """The most urgent tasks count, as many as "attempt-schedule-depth" says."""
    harness = SchedulerHarness()
    harness.connect_worker(cores=12, memory_mb=10**6, disk_mb=10**6)
    whole, part = ResourceRequest(12, memory=1, disk=1), ResourceRequest(1, memory=1, disk=1)
    harness.submit_tasks(single(1, request=whole))
    assert harness.state.tasks[1].worker is not None
    large = [single(n, request=whole, priority=1.0) for n in (2, 3)]
    small = [single(n, request=part, priority=0.0) for n in (4, 5)]
    harness.submit_tasks(*large, *small)
    harness.send_events(e.SettingChanged("hungry-minimum", 1), e.SettingChanged("attempt-schedule-depth", 2))
    # room for 12 tasks of one core, and 4 wait
    assert count_further_tasks(harness.scheduler) == 8
    harness.send_events(e.SettingChanged("attempt-schedule-depth", 100))
    # (2 * 12 - 12) / 6.5 is 2, and 4 wait
    assert count_further_tasks(harness.scheduler) == 0
    harness.send_events(e.SettingChanged("hungry-minimum", 7))
    assert count_further_tasks(harness.scheduler) == 3
    harness.send_events(e.SettingChanged("hungry-minimum-factor", 11))
    # at least 11 for a worker
    assert count_further_tasks(harness.scheduler) == 15


def test_stats_have_taskvines_fields():
    assert len(ManagerStats._fields) == 64
    groups = (
        "workers",
        "tasks",
        "time",
        "bytes",
        "bandwidth",
        "capacity",
        "total",
        "committed",
        "max",
        "min",
    )
    assert {field.partition("_")[0] for field in ManagerStats._fields} == {*groups, "inuse"}


def test_stats_follow_tasks_to_their_ends():
    harness = SchedulerHarness()
    assert manager_stats(harness.scheduler) == ManagerStats()
    one, two = harness.connect_worker(cores=2), harness.connect_worker(cores=4)
    harness.submit_tasks(*(single(n, request=ONE_CORE, retries=0) for n in range(1, 9)))
    stats = manager_stats(harness.scheduler)
    assert (stats.tasks_submitted, stats.tasks_dispatched) == (8, 6)
    assert (stats.tasks_waiting, stats.tasks_on_workers, stats.tasks_running) == (2, 6, 6)
    assert (stats.total_cores, stats.committed_cores, stats.max_cores, stats.min_cores) == (6, 6, 4, 2)
    assert (stats.total_memory, stats.max_memory, stats.min_memory) == (6000, 4000, 2000)
    assert (stats.workers_connected, stats.workers_busy, stats.workers_idle) == (2, 2, 0)
    assert stats.workers_able == 2

    first, second, third, fourth = list(harness.worker(two).tasks)
    harness.complete_task(first, wall_s=1.5)
    harness.fail_task(second, "exhausted", measured={"wall_s": 0.25})
    harness.fail_task(third, "crash")
    harness.send_events(e.TasksCancelled([fourth]))
    stats = manager_stats(harness.scheduler)
    assert (stats.tasks_done, stats.tasks_successful, stats.tasks_cancelled) == (4, 1, 1)
    assert (stats.tasks_failed, stats.tasks_exhausted_attempts) == (2, 1)
    assert stats.tasks_submitted == stats.tasks_done + stats.tasks_waiting + stats.tasks_on_workers
    assert (stats.tasks_dispatched, stats.tasks_on_workers) == (8, 4)
    assert (stats.time_workers_execute, stats.time_workers_execute_good) == (1_750_000, 1_500_000)
    assert stats.time_workers_execute_exhaustion == 250_000

    harness.disconnect_worker(one)
    harness.worker_sends(two, m.Draining(f"{m.IDLE_REASON} 900 s", 5.0))
    harness.disconnect_worker(two)
    stats = manager_stats(harness.scheduler)
    assert (stats.workers_joined, stats.workers_removed, stats.workers_connected) == (2, 2, 0)
    assert (stats.workers_lost, stats.workers_idled_out) == (1, 1)
    assert stats.tasks_dispatched == 8


def test_calls_sent_ahead_do_not_run():
    """A worker has calls beyond its slots: on workers, and not running."""
    harness = SchedulerHarness()
    harness.install_library(slots=1)
    harness.connect_worker(cores=1)
    harness.submit_tasks(*(call(n) for n in range(1, 10)))
    stats = manager_stats(harness.scheduler)
    assert stats.tasks_running == 1
    assert stats.tasks_on_workers > 1
    assert stats.tasks_waiting + stats.tasks_on_workers == 9
    # all that does not run waits for a slot: (2 * 1 - 1) / 1 - 8, and at least 10 - 8
    assert count_further_tasks(harness.scheduler) == 2


def test_outputs_on_their_way_are_counted():
    harness = SchedulerHarness()
    harness.connect_worker()
    harness.submit_tasks(
        maker(1, "out", wanted_at_manager=("out",)), maker(2, "more", wanted_at_manager=("more",))
    )
    for number, name in ((1, "out"), (2, "more")):
        harness.complete_task(number, outputs={name: 1_000_000})
    stats = manager_stats(harness.scheduler)
    assert (stats.tasks_with_results, stats.tasks_on_workers, stats.tasks_running) == (2, 2, 0)
    harness.send_events(e.ObjectStored("out", 1_000_000), e.TasksCancelled([2]))
    stats = manager_stats(harness.scheduler)
    assert (stats.tasks_with_results, stats.tasks_successful, stats.tasks_cancelled) == (0, 1, 1)
    assert stats.bytes_received == 1_000_000


def test_a_lost_result_is_counted_as_recovery():
    harness = SchedulerHarness()
    harness.connect_worker()
    harness.submit_tasks(maker(1, "out"))
    harness.complete_task(1, outputs={"out": 1_000_000})
    assert manager_stats(harness.scheduler).tasks_done == 1
    harness.submit_tasks(single(2, "out"))
    harness.disconnect_worker(1)
    stats = manager_stats(harness.scheduler)
    assert (stats.tasks_recovery, stats.tasks_waiting, stats.tasks_done) == (1, 2, 0)
