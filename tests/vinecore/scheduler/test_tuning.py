"""What the parameters of `Manager.tune` change in the scheduler's decisions."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import (
    LARGE,
    ONE_CORE,
    SchedulerHarness,
    call,
    maker,
    single,
    task_outcomes,
)
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest, Resources
from vinecore.scheduler import events as e


@pytest.fixture
def harness():
    return SchedulerHarness()


def tune(harness, name, value):
    harness.send_events(e.SettingChanged(name, value))


def allocation(harness, number):
    return harness.task(number).allocation


# ---- shares of a worker

FOUR_CORES = {"cores": 4, "memory_mb": 4000, "disk_mb": 8000}


@pytest.mark.parametrize(
    ("settings", "asked", "expected"),
    [
        ({}, {"cores": 1}, (1, 1000, 2000)),
        ({"proportional-resources": False}, {"cores": 1}, (1, 4000, 8000)),
        ({"proportional-resources": False}, {"memory": 100}, (4, 100, 8000)),
        ({"proportional-whole-tasks": True}, {"cores": 3}, (3, 4000, 8000)),
        ({"proportional-whole-tasks": True}, {"memory": 1500}, (2, 1500, 4000)),
        ({"proportional-whole-tasks": True}, {"cores": 2}, (2, 2000, 4000)),
        ({"disk-proportion-available-to-task": 0.75}, {"cores": 2}, (2, 2000, 3000)),
        ({"disk-proportion-available-to-task": 0.75}, {"disk": 4000}, (2, 2000, 4000)),
        ({"disk-proportion-available-to-task": 0.75}, {}, (4, 4000, 6000)),
    ],
)
def test_share_follows_the_rule(harness, settings, asked, expected):
    for name, value in settings.items():
        tune(harness, name, value)
    harness.connect_worker(**FOUR_CORES)
    harness.submit_tasks(single(1, request=ResourceRequest(**asked)))
    assert allocation(harness, 1)[:3] == expected


def test_share_rule_changes_while_tasks_wait(harness):
    harness.connect_worker(**FOUR_CORES)
    tune(harness, "proportional-resources", False)
    harness.submit_tasks(single(1), single(2))
    assert harness.assignments() == {1: 1}
    tune(harness, "proportional-resources", True)
    harness.complete_task(1)
    harness.submit_tasks(single(3))
    assert harness.assignments() == {2: 1, 3: 1}


def test_task_gets_the_rest_while_few_wait(harness):
    tune(harness, "ramp-down-heuristic", True)
    harness.connect_worker(**FOUR_CORES)
    harness.submit_tasks(single(1), single(2, request=ResourceRequest(memory=500)), single(3))
    assert allocation(harness, 1) == Resources(1, 1000, 2000)  # others wait
    harness.connect_worker(**FOUR_CORES)
    harness.connect_worker(**FOUR_CORES)
    harness.submit_tasks(single(4, request=ResourceRequest(memory=700)))
    got = allocation(harness, 4)
    assert got.memory == 700  # as it asked
    assert got.cores > 1
    assert got.disk > 2000


# ---- exhausted resources


@pytest.mark.parametrize(("factor", "expected"), [(0.0, 8000), (2.0, 2000), (1.01, 1100)])
def test_exhausted_disk_grows_by_the_factor(harness, factor, expected):
    harness.send_events(e.CategorySet("kind", "max", None, None, None))
    tune(harness, "sandbox-grow-factor", factor)
    harness.connect_worker(**FOUR_CORES)
    asked = ResourceRequest(cores=1, memory=100, disk=1000)
    harness.submit_tasks(single(1, category="kind", request=asked))
    harness.fail_task(1, "exhausted", resource="disk", peak=1001, limit=1000)
    assert allocation(harness, 1).disk == expected


# ---- libraries


def test_more_long_calls_are_sent_ahead(harness):
    harness.install_library(slots=1)
    harness.connect_worker()
    harness.compute_graph(call(1), number=1)
    harness.complete_task(1, wall_s=5.0)
    harness.compute_graph(*(call(n) for n in range(2, 12)), number=2)
    assert len(harness.assignments()) == 1
    tune(harness, "resource-submit-multiplier", 3.0)
    harness.advance_time()
    assert len(harness.assignments()) == 3


@pytest.mark.parametrize("most", [0, 2])
def test_library_may_fail_so_often(harness, most):
    tune(harness, "max-library-retries", most)
    harness.install_library()
    harness.connect_worker()
    harness.submit_tasks(call(1))
    for _ in range(most):
        harness.worker_sends(1, m.LibraryFailed("lib", "no", False, b""))
        assert not task_outcomes(harness)
    harness.worker_sends(1, m.LibraryFailed("lib", "no", False, b""))
    assert task_outcomes(harness) == {1: "library"}


# ---- files


def test_failed_source_is_asked_after_the_interval(harness):
    tune(harness, "transient-error-interval", 100.0)
    first = harness.connect_worker()
    harness.declare_file("data", size=LARGE)
    harness.compute_graph(single(1), number=1, prune_depth=0)
    harness.complete_task(1, size=LARGE)
    second = harness.connect_worker()
    address = harness.worker(first).data_address
    harness.send_events(e.HostBlocked("host1", 1e6))
    harness.submit_tasks(single(2, "r1", retries=9))
    assert harness.requested_fetches() == [(second, "r1", address)]
    harness.report_failed_fetch(second, "r1", address)
    harness.advance_time(99)
    assert not [fetch for fetch in harness.requested_fetches() if fetch[2] == address]
    harness.advance_time(2)
    assert [fetch for fetch in harness.requested_fetches() if fetch[2] == address]


@pytest.mark.parametrize("at_once", [False, True])
def test_lost_file_is_made_again_at_once(harness, at_once):
    """A file that is kept for the user, and that nothing reads yet."""
    tune(harness, "immediate-recovery", at_once)
    first = harness.connect_worker()
    harness.compute_graph(single(1), number=1, prune_depth=0)
    harness.complete_task(1, size=LARGE)
    harness.disconnect_worker(first)
    harness.connect_worker()
    assert (1 in harness.state.tasks) == at_once


@pytest.mark.parametrize("restored", [False, True])
def test_lost_replica_is_restored(harness, restored):
    tune(harness, "temp-replica-count", 2)
    tune(harness, "transfer-temps-recovery", restored)
    workers = [harness.connect_worker() for _ in range(2)]
    harness.compute_graph(single(1), number=1, prune_depth=0)
    harness.complete_task(1, size=LARGE)
    for worker in workers:
        harness.report_cached(worker, "r1")
    harness.connect_worker()
    harness.disconnect_worker(2)
    assert bool(harness.requested_fetches()) == restored


@pytest.mark.parametrize("grouped", [False, True])
def test_chain_stays_on_one_worker(harness, grouped):
    """Also under a rule that does not look at files."""
    tune(harness, "scheduler", "rand")
    tune(harness, "task-groups", grouped)
    for _ in range(4):
        harness.connect_worker()
    places = set()
    harness.compute_graph(
        *(single(n, *([f"r{n - 1}"] if n > 1 else [])) for n in range(1, 9)), number=1, prune_depth=0
    )
    for number in range(1, 9):
        places.add(harness.assignment_of(number)[0])
        harness.complete_task(number, size=LARGE)
    assert (len(places) == 1) == grouped


# ---- categories


def test_category_runs_no_more_tasks_at_once(harness):
    harness.send_events(e.CategorySet("kind", None, None, None, None, max_concurrent=2))
    harness.connect_worker(8)
    kinds = [single(n, category="kind") for n in range(1, 5)]
    other = ResourceRequest(cores=1, memory=10)
    harness.submit_tasks(*kinds, single(5, category="kind", request=other), single(6))
    assert len(harness.assignments()) == 3
    harness.complete_task(1)
    assert len(harness.assignments()) == 3
    harness.send_events(e.CategorySet("kind", None, None, None, None, max_concurrent=-1))
    harness.advance_time()
    assert set(harness.assignments()) == {2, 3, 4, 5, 6}


def test_unlearned_resource_stays_at_the_maximum(harness):
    most = ResourceRequest(cores=2, memory=2000, disk=500)
    learned = {"memory": False}
    harness.send_events(
        e.SettingChanged("category-steady-n-tasks", 1),
        e.CategorySet("kind", "max", most, None, None, learned=learned),
    )
    harness.connect_worker(4)
    harness.submit_tasks(single(1, category="kind", request=ResourceRequest()))
    harness.complete_task(1, measured={"cores": 1, "memory": 200, "disk": 100})
    harness.submit_tasks(single(2, category="kind", request=ResourceRequest()))
    assert allocation(harness, 2) == Resources(1, 2000, 250)
    harness.send_events(e.CategorySet("kind", None, None, None, None, learned={"memory": True}))
    harness.submit_tasks(single(3, category="kind", request=ResourceRequest()))
    assert allocation(harness, 3) == Resources(1, 250, 250)


def test_category_learns_from_an_earlier_run(harness):
    harness.send_events(
        e.CategorySet("kind", "max", None, None, None),
        e.UsageLearned("kind", [(Resources(1, 200, 100), 5.0)] * 25),
    )
    harness.connect_worker(4)
    harness.submit_tasks(single(1, category="kind", request=ResourceRequest()))
    assert allocation(harness, 1) == Resources(1, 250, 250)


def test_request_of_one_core_is_usual(harness):
    harness.connect_worker()
    harness.submit_tasks(single(1))
    assert harness.task(1).request == ONE_CORE


# ---- replicas


def test_replicas_begin_slowly(harness):
    tune(harness, "temp-replica-count", 2)
    tune(harness, "transfer-replica-per-cycle", 1)
    for _ in range(4):
        harness.connect_worker(2)
    names = [f"o{n}" for n in range(3)]
    harness.submit_tasks(maker(1, *names))
    for name in names:
        harness.declare_file(name)
    harness.complete_task(1, outputs=dict.fromkeys(names, LARGE))
    assert len(harness.requested_fetches()) == 1
    for _ in range(2):
        harness.advance_time(0.25)
        assert len(harness.requested_fetches()) == 1
    harness.advance_time(0.25)
    assert not harness.requested_fetches()


@pytest.mark.parametrize("cleaned", [False, True])
def test_surplus_replica_is_removed(harness, cleaned):
    """Where nothing reads the file, and never the last one."""
    tune(harness, "clean-redundant-replicas", cleaned)
    first = harness.connect_worker()
    harness.compute_graph(single(1), number=1, prune_depth=0)
    harness.complete_task(1, size=LARGE)
    harness.send_events(e.HostBlocked("host1", 1e6))
    second = harness.connect_worker()
    harness.submit_tasks(single(2, "r1"))
    harness.report_cached(second, "r1")
    harness.advance_time()
    assert harness.replica_holders("r1") == ({second} if cleaned else {first, second})
    harness.complete_task(2)
    harness.advance_time()
    assert harness.replica_holders("r1") == ({second} if cleaned else {first, second})


@pytest.mark.parametrize("shifted", [False, True])
def test_file_moves_from_full_disk_to_empty(harness, shifted):
    tune(harness, "shift-disk-load", shifted)
    first = harness.connect_worker(disk_mb=100)
    harness.compute_graph(single(1), single(2), number=1, prune_depth=0)
    for number in (1, 2):
        harness.complete_task(number, size=30_000_000)
    second = harness.connect_worker(disk_mb=100)
    harness.advance_time()
    moved = [name for worker, name, _source in harness.requested_fetches() if worker == second]
    assert len(moved) == shifted
    if shifted:
        harness.report_cached(second, moved[0], 30_000_000)
        harness.advance_time()
        assert harness.replica_holders(moved[0]) == {second}
        harness.advance_time()
        assert not harness.requested_fetches()
    assert sum(first in harness.replica_holders(f"r{n}") for n in (1, 2)) == 2 - shifted
