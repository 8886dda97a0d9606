"""Disks are accounted for, emptied of what is cheap to get again before they are full, and never asked for more than they have."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import SchedulerHarness, call, graph_outcomes, single, task_outcomes
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.disk import HIGH_WATER_MARK
from vinecore.scheduler.disk_deadlock import DISK_STALL_TIMEOUT_S, MAX_EVICTIONS
from vinecore.scheduler.eviction import MAX_REFUSALS
from vinecore.scheduler.state import MB


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def taken(harness, number):
    """MB of a worker's disk that are taken or promised."""
    worker = harness.worker(number)
    return (worker.total.disk * MB - worker.free_disk) / MB


def finish(harness, sizes=None, most=1000):
    """Have everything that runs end well, one task after another; give the numbers in the order in which they ended."""
    order = []
    while harness.assignments():
        assert len(order) < most, "it does not come to an end"
        number = min(harness.assignments())
        worker = harness.worker(harness.assignment_of(number)[0])
        for file in list(worker.fetching):
            harness.report_cached(worker.id, file.name, max(file.size, 0))
        if number not in harness.assignments():
            continue
        size = (sizes or {}).get(number, 10)
        left = worker.total.disk * MB - sum(worker.files.values())
        if size > left:
            harness.fail_task(number, "disk", size=size, room=left, reason="no room")
        else:
            harness.complete_task(number, size=size)
            order.append(number)
    return order


def reason(harness):
    """Why the last run or task has failed."""
    over = [x for x in harness.log if isinstance(x, (i.GraphFinished, i.TaskFinished))]
    return over[-1].info["reason"]


# ---- the account


def test_pruned_file_returns_its_disk(harness):
    """A file takes its size and gives it back when it is pruned."""
    worker = harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    harness.complete_task(1, size=20 * MB)
    assert taken(harness, worker) == 20
    harness.complete_task(2, size=10)
    assert taken(harness, worker) == 0


def test_small_objects_are_not_on_the_disk(harness):
    worker = harness.connect_worker()
    harness.compute_graph(call(1), call(2, "r1"))
    harness.complete_task(1, size=INLINE_LIMIT)
    assert taken(harness, worker) == 0


def test_fetching_file_takes_disk(harness):
    """A file on its way has its place already."""
    harness.declare_file("data", size=300 * MB, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    assert taken(harness, worker) == 300
    harness.report_cached(worker, "data", 300 * MB)
    assert taken(harness, worker) == 300
    harness.report_failed_fetch(worker, "data", "manager")
    assert taken(harness, worker) == 300


def test_failed_fetch_returns_disk_until_retry(harness):
    """A fetch that failed gives its place back until it is tried again."""
    harness.declare_file("data", url="https://example.org/data", size=30 * MB)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    harness.send_events(e.TasksCancelled([1]))
    harness.report_failed_fetch(worker, "data", "https://example.org/data")
    assert taken(harness, worker) == 0


def test_stalled_file_takes_disk(harness):
    """A file that waits for a source has its place already."""
    harness.send_events(e.SettingChanged("file-source-max-transfers", 1))
    harness.declare_file("one", size=30 * MB, at_manager=True)
    harness.declare_file("two", size=40 * MB, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "one", "two"))
    assert len(harness.requested_fetches()) == 1
    assert taken(harness, worker) == 70
    harness.send_events(e.TasksCancelled([1]), e.FilesReleased(["one", "two"], prune=False))
    assert taken(harness, worker) == 0


def test_url_of_unknown_size_takes_received_bytes(harness):
    """A url of unknown size takes what came."""
    harness.declare_file("data", url="https://example.org/data")
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    assert taken(harness, worker) == 0
    harness.report_cached(worker, "data", 30 * MB)
    assert taken(harness, worker) == 30


def test_requested_disk_is_reserved_while_running(harness):
    """What a task asks for is reserved while it runs."""
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, request=ResourceRequest(cores=1, disk=400)))
    assert taken(harness, worker) == 400
    harness.complete_task(1)
    assert taken(harness, worker) == 0


def test_written_bytes_are_learned_and_reserved(harness):
    """What tasks of a kind write is learned and kept free for the next."""
    worker = harness.connect_worker()
    harness.compute_graph(call(1, category="a"), call(2, category="b"), call(3, category="a"), prune_depth=0)
    harness.complete_task(1, size=50 * MB)
    assert taken(harness, worker) == 50 + 50
    harness.complete_task(2)
    harness.complete_task(3, size=50 * MB)
    assert taken(harness, worker) == 100


# ---- eviction


def test_replicated_files_go_before_disk_is_full(harness):
    """Copies that others have go before the disk is full."""
    harness.declare_file("old", size=600 * MB, at_manager=True)
    harness.declare_file("new", size=500 * MB, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "old"))
    harness.report_cached(worker, "old", 600 * MB)
    harness.complete_task(1)
    harness.submit_tasks(call(2, "new"))
    assert harness.removed_objects() == {(worker, "old")}
    assert harness.requested_fetches() == [(worker, "new", "manager")]
    assert harness.assignments() == {2: worker}


def test_nothing_goes_while_there_is_room(harness):
    harness.declare_file("old", size=400 * MB, at_manager=True)
    harness.declare_file("new", size=500 * MB, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "old"))
    harness.report_cached(worker, "old", 400 * MB)
    harness.complete_task(1)
    harness.submit_tasks(call(2, "new"))
    assert not harness.removed_objects()
    assert harness.assignments() == {2: worker}


def test_inputs_of_running_task_stay(harness):
    """What a task reads that runs there stays."""
    harness.install_library("two", 2)
    harness.declare_file("old", size=600 * MB, at_manager=True)
    harness.declare_file("new", size=500 * MB, at_manager=True)
    worker = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1, "old", library="two"))
    harness.report_cached(worker, "old", 600 * MB)
    harness.submit_tasks(call(2, "new", library="two"))
    assert not harness.removed_objects()
    assert harness.assignments() == {1: worker}
    harness.complete_task(1)
    assert (worker, "old") in harness.removed_objects()
    assert harness.assignments() == {2: worker}


def test_full_worker_is_passed_over(harness):
    """Another worker is chosen where nothing can go."""
    harness.install_library("two", 2)
    harness.declare_file("old", size=600 * MB, at_manager=True)
    harness.declare_file("new", size=500 * MB, at_manager=True)
    first = harness.connect_worker(cores=2)
    harness.submit_tasks(call(1, "old", library="two"))
    second = harness.connect_worker()
    harness.submit_tasks(call(2, "new", library="two"))
    assert harness.assignments() == {1: first, 2: second}


def test_evictable_files_go_oldest_first(harness):
    """Spare files go first those used longest ago before the others."""
    harness.declare_file("kept", size=300 * MB, at_manager=True)
    harness.declare_file("new", size=350 * MB, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(9, "kept"))
    harness.report_cached(worker, "kept", 300 * MB)
    harness.complete_task(9)
    harness.compute_graph(
        call(1, result="a", content_addressed=True, category="a"),
        call(2, result="b", content_addressed=True, category="b"),
        call(3, "a", category="c"),
    )
    harness.complete_task(1, size=200 * MB)
    harness.complete_task(2, size=200 * MB)
    harness.complete_task(3)
    harness.send_events(e.GraphClosed(1))
    assert list(harness.state.evictable) == [harness.file("b"), harness.file("a")]
    harness.submit_tasks(call(4, "new"))
    assert harness.removed_objects() == {(worker, "b")}
    assert list(harness.state.evictable) == [harness.file("a")]
    assert "b" not in harness.state.files


def test_verified_replicas_go_before_unverified(harness):
    """Copies go last where the other one is not compared yet."""
    names = ("doubtful", "sure")
    for name in names:
        harness.declare_file(name)
    first = harness.connect_worker(cores=2)
    harness.submit_tasks(*(single(n, result=name) for n, name in enumerate(names)))
    for number in (0, 1):
        harness.complete_task(number, size=100 * MB)
    harness.submit_tasks(*(single(10 + n) for n in (0, 1)))
    second = harness.connect_worker(cores=2)
    harness.submit_tasks(*(single(20 + n, name) for n, name in enumerate(names)))
    for name in names:
        harness.worker_sends(second, m.Cached(name, 100 * MB, "d1", verified=False))
    harness.worker_sends(second, m.Verified("sure"))

    def cheap():
        return [
            file.name
            for file in harness.scheduler.eviction.replicated_or_evictable(harness.worker(first), set())
        ]

    assert cheap() == ["sure", "doubtful"]
    harness.worker_sends(second, m.Verified("doubtful"))
    assert sorted(cheap()) == ["doubtful", "sure"]


def test_last_replica_stays_while_tasks_run(harness):
    """Only what is elsewhere goes: here the one that came from the first worker."""
    harness.install_library("two", 2)
    harness.declare_file("new", size=500 * MB, at_manager=True)
    worker = harness.connect_worker(cores=2)
    harness.compute_graph(
        call(1, library="two"), call(2, library="two", category="long"), call(3, "r1", "r2", library="two")
    )
    harness.complete_task(1, size=600 * MB)
    harness.submit_tasks(call(4, "new", library="two", category="reader"))
    assert set(harness.assignments()) == {2, 3}  # the latter is sent ahead
    assert harness.replica_holders("r1") == {worker}
    harness.complete_task(2)
    assert set(harness.assignments()) == {3}
    harness.complete_task(3)
    assert set(harness.assignments()) == {4}


# ---- when nothing else helps


def test_intermediate_is_evicted_and_made_again(harness):
    """r1 (60) is needed at the end, r2 and r3 (30 each) before that."""
    worker = harness.connect_worker(disk_mb=100)
    sizes = {1: 60 * MB, 2: 30 * MB, 3: 30 * MB}
    graph = [call(n, category=str(n)) for n in (1, 2, 3)]
    harness.compute_graph(*graph, call(4, "r2", "r3", category="4"), call(5, "r1", "r4", category="5"))
    order = finish(harness, sizes)
    assert graph_outcomes(harness) == {1: "success"}
    assert order == [1, 2, 3, 4, 5] or order.count(1) <= 2
    assert harness.graph().recomputed <= 2
    assert taken(harness, worker) == 0


def test_evictions_are_bounded_and_explained(harness):
    """Each of two results is larger than what the other leaves, and both are needed at once: there is no way, here at least."""
    harness.connect_worker(disk_mb=100)
    harness.compute_graph(call(1, category="1"), call(2, category="2"), call(3, "r1", "r2", category="3"))
    order = finish(harness, {1: 60 * MB, 2: 60 * MB}, most=10 * MAX_EVICTIONS)
    assert not graph_outcomes(harness)
    assert len(order) <= 4 * MAX_EVICTIONS
    harness.advance_time(DISK_STALL_TIMEOUT_S + 1)
    assert graph_outcomes(harness) == {1: "too large"}
    assert "100 MB" in reason(harness)
    assert "60 MB" in reason(harness)


def test_impossible_inputs_are_not_made_again(harness):
    """What would never fit together is not made again and again."""
    harness.send_events(e.SettingChanged("expected-workers", 1))
    harness.connect_worker(disk_mb=100)
    harness.compute_graph(call(1, category="1"), call(2, category="2"), call(3, "r1", "r2", category="3"))
    order = finish(harness, {1: 60 * MB, 2: 60 * MB})
    assert graph_outcomes(harness) == {1: "too large"}
    assert order == [1]  # of the other one the worker has told how large it is
    assert reason(harness).startswith(
        "t3 needs 120 MB of inputs on one worker; the largest worker has 100 MB of disk"
    )


def test_inputs_too_large_are_refused_with_numbers(harness):
    """Inputs that fit on no disk are refused with numbers."""
    harness.send_events(e.SettingChanged("expected-workers", 2))
    harness.declare_file("a", size=500 * MB, at_manager=True)
    harness.declare_file("b", size=312 * MB, at_manager=True)
    harness.connect_worker(disk_mb=300)
    harness.connect_worker(disk_mb=200)
    harness.submit_tasks(call(1, "a", "b"))
    harness.submit_tasks(call(2))
    assert set(harness.assignments()) == {2}
    harness.advance_time(0.25)
    assert task_outcomes(harness) == {1: "too large"}
    assert reason(harness).startswith(
        "t1 needs 812 MB of inputs on one worker; the largest worker has 300 MB of disk"
    )


def test_large_task_waits_for_larger_worker(harness):
    """Where more workers may come a task waits for one that is large enough."""
    harness.declare_file("a", size=500 * MB, at_manager=True)
    harness.connect_worker(disk_mb=300)
    harness.submit_tasks(call(1, "a"))
    harness.advance_time(1.0)
    harness.advance_time(3.0)
    assert harness.instructions_of(i.Stalled)[-1].text.startswith("t1 needs 500 MB of inputs on one worker")
    assert not task_outcomes(harness)
    large = harness.connect_worker(disk_mb=600)
    assert harness.assignments() == {1: large}


def test_roomier_worker_is_awaited_with_timeout(harness):
    """Where more workers may come one with more room is waited for but not for ever."""
    harness.connect_worker(disk_mb=100)
    harness.declare_file("mine", size=-1)
    harness.submit_tasks(call(1, result="mine", category="1"))
    harness.complete_task(1, size=90 * MB)
    harness.file("mine").producer = None  # nothing could make it again
    harness.declare_file("data", size=50 * MB, at_manager=True)
    harness.submit_tasks(call(2, "data"))
    assert not harness.assignments()
    harness.advance_time(DISK_STALL_TIMEOUT_S / 2)
    assert 2 not in task_outcomes(harness)
    harness.advance_time(DISK_STALL_TIMEOUT_S)
    assert task_outcomes(harness)[2] == "too large"
    assert "worker 1 (host1) has 100 MB, of which files take 90 MB" in reason(harness)


# ---- roots


def wide(roots, width):
    """Roots of one kind, reduced in groups: the specs, the roots first in each group, as dask orders them."""
    specs, number = [], 0
    for _ in range(roots // width):
        group = range(number + 1, number + width + 1)
        specs += [call(n, category="root") for n in group]
        number += width + 1
        specs.append(call(number, *(f"r{n}" for n in group), category="sum"))
    return specs


@pytest.mark.parametrize("mode", ["", "breadth-first", "FIFO"])
def test_wide_graph_keeps_flat_footprint(harness, mode):
    """A wide graph stays flat and nothing of it is made twice."""
    worker = harness.connect_worker(disk_mb=100)
    specs = wide(200, 4)
    harness.compute_graph(*specs, priority_mode=mode)
    sizes = {spec.task: 5 * MB for spec in specs if spec.category == "root"}
    most = done = 0
    while harness.assignments():
        most = max(most, taken(harness, worker))
        number = min(
            harness.assignments(),
            key=lambda n: harness.task(n).dispatch_count and harness.assignment_of(n)[1],
        )
        harness.complete_task(number, size=sizes.get(number, 10), wall_s=0.001)
        done += 1
    assert graph_outcomes(harness) == {1: "success"}
    assert done == len(specs)
    assert harness.graph().recomputed == 0

    assert most <= 100 * HIGH_WATER_MARK + 5


def test_root_runs_when_nothing_else_can(harness):
    """A root is not withheld where nothing else can be done."""
    worker = harness.connect_worker(disk_mb=100)
    harness.compute_graph(
        *(call(n, category="root") for n in (1, 2, 3)), call(4, "r1", "r2", "r3", category="sum")
    )
    order = finish(harness, dict.fromkeys((1, 2, 3), 30 * MB))
    assert order == [1, 2, 3, 4]
    assert graph_outcomes(harness) == {1: "success"}
    assert taken(harness, worker) == 0


# ---- workers that have less than they should


def test_result_without_room_is_made_elsewhere(harness):
    """A result that a worker has no room for is made elsewhere."""
    first = harness.connect_worker(disk_mb=100)
    harness.compute_graph(call(1))
    second = harness.connect_worker(disk_mb=1000)
    harness.fail_task(1, "disk", size=300 * MB, room=50 * MB, reason="no room for 300 MB")
    assert harness.assignments() == {1: second} != {1: first}
    harness.complete_task(1, size=300 * MB)
    assert graph_outcomes(harness) == {1: "success"}


def test_full_disk_blames_no_task_but_ends(harness):
    """Nobody is blamed for a full disk but it is bounded."""
    harness.connect_worker()
    harness.compute_graph(call(1), retries=0)
    for _ in range(MAX_REFUSALS):
        harness.fail_task(1, "disk", size=10 * MB, room=900 * MB, reason="no room for 10 MB")
        assert harness.assignments() == {1: 1}
    harness.fail_task(1, "disk", size=10 * MB, room=900 * MB, reason="no room for 10 MB")
    assert graph_outcomes(harness) == {1: "disk"}
    assert "no room for 10 MB" in reason(harness)
    assert not harness.scheduler.disk.refusals


def test_unknown_full_disk_counts_for_while(harness):
    """A full disk of which the manager does not know counts for a while."""
    worker = harness.connect_worker()
    harness.submit_tasks(call(1))
    harness.fail_task(1, "disk", size=10 * MB, room=0, reason="it is full")
    assert taken(harness, worker) == 1000
    assert not harness.assignments()
    harness.advance_time()
    assert harness.assignments() == {1: worker}
    for _ in range(20):
        harness.advance_time()
    assert taken(harness, worker) == 10


def test_input_without_room_moves_task(harness):
    """An input that a worker has no room for sends its task elsewhere."""
    harness.declare_file("data", size=300 * MB, at_manager=True)
    first = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    second = harness.connect_worker()
    harness.worker_sends(first, m.FetchFailed("data", "manager", "no room", False, 10 * MB))
    assert harness.assignments() == {1: second}
    assert harness.requested_fetches() == [(second, "data", "manager")]
