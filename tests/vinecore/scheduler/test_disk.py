"""Disks are accounted for, emptied of what is cheap to get again before they are full, and never asked for more than they have."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import Vine, call, endings, outcomes, single
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
def vine():
    vine = Vine()
    vine.library()
    return vine


def taken(vine, number):
    """MB of a worker's disk that are taken or promised."""
    worker = vine.worker(number)
    return (worker.total.disk * MB - worker.free_disk) / MB


def finish(vine, sizes=None, most=1000):
    """Have everything that runs end well, one task after another; give the numbers in the order in which they ended."""
    order = []
    while vine.where():
        assert len(order) < most, "it does not come to an end"
        number = min(vine.where())
        worker = vine.worker(vine.place(number)[0])
        for file in list(worker.fetching):
            vine.cached(worker.id, file.name, max(file.size, 0))
        if number not in vine.where():
            continue
        size = (sizes or {}).get(number, 10)
        left = worker.total.disk * MB - sum(worker.files.values())
        if size > left:
            vine.failed(number, "disk", size=size, room=left, reason="no room")
        else:
            vine.done(number, size=size)
            order.append(number)
    return order


def reason(vine):
    """Why the last run or task has failed."""
    over = [x for x in vine.log if isinstance(x, (i.GraphFinished, i.TaskFinished))]
    return over[-1].info["reason"]


# ---- the account


def test_a_file_takes_its_size_and_gives_it_back_when_it_is_pruned(vine):
    worker = vine.join()
    vine.compute(call(1), call(2, "r1"))
    vine.done(1, size=20 * MB)
    assert taken(vine, worker) == 20
    vine.done(2, size=10)
    assert taken(vine, worker) == 0


def test_small_objects_are_not_on_the_disk(vine):
    worker = vine.join()
    vine.compute(call(1), call(2, "r1"))
    vine.done(1, size=INLINE_LIMIT)
    assert taken(vine, worker) == 0


def test_a_file_on_its_way_has_its_place_already(vine):
    vine.declare("data", size=300 * MB, at_manager=True)
    worker = vine.join()
    vine.submit(call(1, "data"))
    assert taken(vine, worker) == 300
    vine.cached(worker, "data", 300 * MB)
    assert taken(vine, worker) == 300
    vine.fetch_failed(worker, "data", "manager")
    assert taken(vine, worker) == 300


def test_a_fetch_that_failed_gives_its_place_back_until_it_is_tried_again(vine):
    vine.declare("data", url="https://example.org/data", size=30 * MB)
    worker = vine.join()
    vine.submit(call(1, "data"))
    vine.feed(e.TasksCancelled([1]))
    vine.fetch_failed(worker, "data", "https://example.org/data")
    assert taken(vine, worker) == 0


def test_a_file_that_waits_for_a_source_has_its_place_already(vine):
    vine.feed(e.SettingChanged("file-source-max-transfers", 1))
    vine.declare("one", size=30 * MB, at_manager=True)
    vine.declare("two", size=40 * MB, at_manager=True)
    worker = vine.join()
    vine.submit(call(1, "one", "two"))
    assert len(vine.fetches()) == 1
    assert taken(vine, worker) == 70
    vine.feed(e.TasksCancelled([1]), e.FilesReleased(["one", "two"], prune=False))
    assert taken(vine, worker) == 0


def test_a_url_of_unknown_size_takes_what_came(vine):
    vine.declare("data", url="https://example.org/data")
    worker = vine.join()
    vine.submit(call(1, "data"))
    assert taken(vine, worker) == 0
    vine.cached(worker, "data", 30 * MB)
    assert taken(vine, worker) == 30


def test_what_a_task_asks_for_is_reserved_while_it_runs(vine):
    worker = vine.join(cores=2)
    vine.submit(single(1, request=ResourceRequest(cores=1, disk=400)))
    assert taken(vine, worker) == 400
    vine.done(1)
    assert taken(vine, worker) == 0


def test_what_tasks_of_a_kind_write_is_learned_and_kept_free_for_the_next(vine):
    worker = vine.join()
    vine.compute(call(1, category="a"), call(2, category="b"), call(3, category="a"), prune_depth=0)
    vine.done(1, size=50 * MB)
    assert taken(vine, worker) == 50 + 50
    vine.done(2)
    vine.done(3, size=50 * MB)
    assert taken(vine, worker) == 100


# ---- eviction


def test_copies_that_others_have_go_before_the_disk_is_full(vine):
    vine.declare("old", size=600 * MB, at_manager=True)
    vine.declare("new", size=500 * MB, at_manager=True)
    worker = vine.join()
    vine.submit(call(1, "old"))
    vine.cached(worker, "old", 600 * MB)
    vine.done(1)
    vine.submit(call(2, "new"))
    assert vine.unlinked() == {(worker, "old")}
    assert vine.fetches() == [(worker, "new", "manager")]
    assert vine.where() == {2: worker}


def test_nothing_goes_while_there_is_room(vine):
    vine.declare("old", size=400 * MB, at_manager=True)
    vine.declare("new", size=500 * MB, at_manager=True)
    worker = vine.join()
    vine.submit(call(1, "old"))
    vine.cached(worker, "old", 400 * MB)
    vine.done(1)
    vine.submit(call(2, "new"))
    assert not vine.unlinked()
    assert vine.where() == {2: worker}


def test_what_a_task_reads_that_runs_there_stays(vine):
    vine.library("two", 2)
    vine.declare("old", size=600 * MB, at_manager=True)
    vine.declare("new", size=500 * MB, at_manager=True)
    worker = vine.join(cores=2)
    vine.submit(call(1, "old", library="two"))
    vine.cached(worker, "old", 600 * MB)
    vine.submit(call(2, "new", library="two"))
    assert not vine.unlinked()
    assert vine.where() == {1: worker}
    vine.done(1)
    assert (worker, "old") in vine.unlinked()
    assert vine.where() == {2: worker}


def test_another_worker_is_chosen_where_nothing_can_go(vine):
    vine.library("two", 2)
    vine.declare("old", size=600 * MB, at_manager=True)
    vine.declare("new", size=500 * MB, at_manager=True)
    first = vine.join(cores=2)
    vine.submit(call(1, "old", library="two"))
    second = vine.join()
    vine.submit(call(2, "new", library="two"))
    assert vine.where() == {1: first, 2: second}


def test_spare_files_go_first_those_used_longest_ago_before_the_others(vine):
    vine.declare("kept", size=300 * MB, at_manager=True)
    vine.declare("new", size=350 * MB, at_manager=True)
    worker = vine.join()
    vine.submit(call(9, "kept"))
    vine.cached(worker, "kept", 300 * MB)
    vine.done(9)
    vine.compute(
        call(1, result="a", content_addressed=True, category="a"),
        call(2, result="b", content_addressed=True, category="b"),
        call(3, "a", category="c"),
    )
    vine.done(1, size=200 * MB)
    vine.done(2, size=200 * MB)
    vine.done(3)
    vine.feed(e.GraphClosed(1))
    assert list(vine.tables.evictable) == [vine.file("b"), vine.file("a")]
    vine.submit(call(4, "new"))
    assert vine.unlinked() == {(worker, "b")}
    assert list(vine.tables.evictable) == [vine.file("a")]
    assert "b" not in vine.tables.files


def test_copies_go_last_where_the_other_one_is_not_compared_yet(vine):
    names = ("doubtful", "sure")
    for name in names:
        vine.declare(name)
    first = vine.join(cores=2)
    vine.submit(*(single(n, result=name) for n, name in enumerate(names)))
    for number in (0, 1):
        vine.done(number, size=100 * MB)
    vine.submit(*(single(10 + n) for n in (0, 1)))
    second = vine.join(cores=2)
    vine.submit(*(single(20 + n, name) for n, name in enumerate(names)))
    for name in names:
        vine.say(second, m.Cached(name, 100 * MB, "d1", verified=False))
    vine.say(second, m.Verified("sure"))

    def cheap():
        return [file.name for file in vine.mind.eviction.replicated_or_evictable(vine.worker(first), set())]

    assert cheap() == ["sure", "doubtful"]
    vine.say(second, m.Verified("doubtful"))
    assert sorted(cheap()) == ["doubtful", "sure"]


def test_the_last_copy_of_what_is_needed_stays_while_something_runs(vine):
    """Only what is elsewhere goes: here the one that came from the first worker."""
    vine.library("two", 2)
    vine.declare("new", size=500 * MB, at_manager=True)
    worker = vine.join(cores=2)
    vine.compute(
        call(1, library="two"), call(2, library="two", category="long"), call(3, "r1", "r2", library="two")
    )
    vine.done(1, size=600 * MB)
    vine.submit(call(4, "new", library="two", category="reader"))
    assert set(vine.where()) == {2, 3}  # the latter is sent ahead
    assert vine.holders("r1") == {worker}
    vine.done(2)
    assert set(vine.where()) == {3}
    vine.done(3)
    assert set(vine.where()) == {4}


# ---- when nothing else helps


def test_an_intermediate_is_given_up_when_nothing_else_can_run_and_made_again_before_it_is_needed(vine):
    """r1 (60) is needed at the end, r2 and r3 (30 each) before that."""
    worker = vine.join(disk_mb=100)
    sizes = {1: 60 * MB, 2: 30 * MB, 3: 30 * MB}
    graph = [call(n, category=str(n)) for n in (1, 2, 3)]
    vine.compute(*graph, call(4, "r2", "r3", category="4"), call(5, "r1", "r4", category="5"))
    order = finish(vine, sizes)
    assert endings(vine) == {1: "success"}
    assert order == [1, 2, 3, 4, 5] or order.count(1) <= 2
    assert vine.run().recomputed <= 2
    assert taken(vine, worker) == 0


def test_giving_up_is_bounded_and_ends_with_the_numbers(vine):
    """Each of two results is larger than what the other leaves, and both are needed at once: there is no way, here at least."""
    vine.join(disk_mb=100)
    vine.compute(call(1, category="1"), call(2, category="2"), call(3, "r1", "r2", category="3"))
    order = finish(vine, {1: 60 * MB, 2: 60 * MB}, most=10 * MAX_EVICTIONS)
    assert not endings(vine)
    assert len(order) <= 4 * MAX_EVICTIONS
    vine.tick(DISK_STALL_TIMEOUT_S + 1)
    assert endings(vine) == {1: "too large"}
    assert "100 MB" in reason(vine)
    assert "60 MB" in reason(vine)


def test_what_would_never_fit_together_is_not_made_again_and_again(vine):
    vine.feed(e.SettingChanged("expected-workers", 1))
    vine.join(disk_mb=100)
    vine.compute(call(1, category="1"), call(2, category="2"), call(3, "r1", "r2", category="3"))
    order = finish(vine, {1: 60 * MB, 2: 60 * MB})
    assert endings(vine) == {1: "too large"}
    assert order == [1]  # of the other one the worker has told how large it is
    assert reason(vine).startswith(
        "t3 needs 120 MB of inputs on one worker; the largest worker has 100 MB of disk"
    )


def test_inputs_that_fit_on_no_disk_are_refused_with_numbers(vine):
    vine.feed(e.SettingChanged("expected-workers", 2))
    vine.declare("a", size=500 * MB, at_manager=True)
    vine.declare("b", size=312 * MB, at_manager=True)
    vine.join(disk_mb=300)
    vine.join(disk_mb=200)
    vine.submit(call(1, "a", "b"))
    vine.submit(call(2))
    assert set(vine.where()) == {2}
    vine.tick(0.25)
    assert outcomes(vine) == {1: "too large"}
    assert reason(vine).startswith(
        "t1 needs 812 MB of inputs on one worker; the largest worker has 300 MB of disk"
    )


def test_where_more_workers_may_come_a_task_waits_for_one_that_is_large_enough(vine):
    vine.declare("a", size=500 * MB, at_manager=True)
    vine.join(disk_mb=300)
    vine.submit(call(1, "a"))
    vine.tick(1.0)
    vine.tick(3.0)
    assert vine.told(i.Stalled)[-1].text.startswith("t1 needs 500 MB of inputs on one worker")
    assert not outcomes(vine)
    large = vine.join(disk_mb=600)
    assert vine.where() == {1: large}


def test_where_more_workers_may_come_one_with_more_room_is_waited_for_but_not_for_ever(vine):
    vine.join(disk_mb=100)
    vine.declare("mine", size=-1)
    vine.submit(call(1, result="mine", category="1"))
    vine.done(1, size=90 * MB)
    vine.file("mine").producer = None  # nothing could make it again
    vine.declare("data", size=50 * MB, at_manager=True)
    vine.submit(call(2, "data"))
    assert not vine.where()
    vine.tick(DISK_STALL_TIMEOUT_S / 2)
    assert 2 not in outcomes(vine)
    vine.tick(DISK_STALL_TIMEOUT_S)
    assert outcomes(vine)[2] == "too large"
    assert "worker 1 (host1) has 100 MB, of which files take 90 MB" in reason(vine)


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
def test_a_wide_graph_stays_flat_and_nothing_of_it_is_made_twice(vine, mode):
    worker = vine.join(disk_mb=100)
    specs = wide(200, 4)
    vine.compute(*specs, priority_mode=mode)
    sizes = {spec.task: 5 * MB for spec in specs if spec.category == "root"}
    most = done = 0
    while vine.where():
        most = max(most, taken(vine, worker))
        number = min(vine.where(), key=lambda n: vine.task(n).dispatch_count and vine.place(n)[1])
        vine.done(number, size=sizes.get(number, 10), wall_s=0.001)
        done += 1
    assert endings(vine) == {1: "success"}
    assert done == len(specs)
    assert vine.run().recomputed == 0

    assert most <= 100 * HIGH_WATER_MARK + 5


def test_a_root_is_not_withheld_where_nothing_else_can_be_done(vine):
    worker = vine.join(disk_mb=100)
    vine.compute(*(call(n, category="root") for n in (1, 2, 3)), call(4, "r1", "r2", "r3", category="sum"))
    order = finish(vine, dict.fromkeys((1, 2, 3), 30 * MB))
    assert order == [1, 2, 3, 4]
    assert endings(vine) == {1: "success"}
    assert taken(vine, worker) == 0


# ---- workers that have less than they should


def test_a_result_that_a_worker_has_no_room_for_is_made_elsewhere(vine):
    first = vine.join(disk_mb=100)
    vine.compute(call(1))
    second = vine.join(disk_mb=1000)
    vine.failed(1, "disk", size=300 * MB, room=50 * MB, reason="no room for 300 MB")
    assert vine.where() == {1: second} != {1: first}
    vine.done(1, size=300 * MB)
    assert endings(vine) == {1: "success"}


def test_nobody_is_blamed_for_a_full_disk_but_it_is_bounded(vine):
    vine.join()
    vine.compute(call(1), retries=0)
    for _ in range(MAX_REFUSALS):
        vine.failed(1, "disk", size=10 * MB, room=900 * MB, reason="no room for 10 MB")
        assert vine.where() == {1: 1}
    vine.failed(1, "disk", size=10 * MB, room=900 * MB, reason="no room for 10 MB")
    assert endings(vine) == {1: "disk"}
    assert "no room for 10 MB" in reason(vine)
    assert not vine.mind.disk.refusals


def test_a_full_disk_of_which_the_manager_does_not_know_counts_for_a_while(vine):
    worker = vine.join()
    vine.submit(call(1))
    vine.failed(1, "disk", size=10 * MB, room=0, reason="it is full")
    assert taken(vine, worker) == 1000
    assert not vine.where()
    vine.tick()
    assert vine.where() == {1: worker}
    for _ in range(20):
        vine.tick()
    assert taken(vine, worker) == 10


def test_an_input_that_a_worker_has_no_room_for_sends_its_task_elsewhere(vine):
    vine.declare("data", size=300 * MB, at_manager=True)
    first = vine.join()
    vine.submit(call(1, "data"))
    second = vine.join()
    vine.say(first, m.FetchFailed("data", "manager", "no room", False, 10 * MB))
    assert vine.where() == {1: second}
    assert vine.fetches() == [(second, "data", "manager")]
