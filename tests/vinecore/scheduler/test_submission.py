"""Graphs: what is pruned when, and what stays."""

from __future__ import annotations

import gc

import pytest

from tests.harness.scheduler import LARGE, Vine, call, chain, endings
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler import scheduler
from vinecore.scheduler.state import TaskState


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def held(vine):
    """Results that are on some worker."""
    return {name for name, file in vine.tables.files.items() if file.replicas and name.startswith("r")}


def test_a_wide_graph_is_pruned_as_it_goes(vine):
    """Every leaf is freed as soon as its only reader is done: what is held does not grow with the graph."""
    leaves, depth = 50, 3
    tasks, number = [], 0
    for _leaf in range(leaves):
        for level in range(depth):
            number += 1
            tasks.append(call(number, *([f"r{number - 1}"] if level else [])))
    vine.compute(
        *tasks, call(9999, *(f"r{n * depth}" for n in range(1, leaves + 1)), wanted_at_manager=("r9999",))
    )
    vine.join()
    most = 0
    while vine.where():
        task = min(vine.where())
        vine.done(task, size=LARGE, payload=b"sum" if task == 9999 else b"")
        most = max(most, len(held(vine)))
    assert endings(vine) == {1: "success"}
    assert most <= leaves + 1
    assert held(vine) == set()


@pytest.mark.parametrize(
    ("depth", "left"),
    [(0, {"r1", "r2", "r3", "r4"}), (1, {"r4"}), (2, {"r3", "r4"}), (3, {"r2", "r3", "r4"})],
)
def test_so_many_generations_stay(vine, depth, left):
    vine.compute(*chain(5), prune_depth=depth)
    vine.join()
    for number in range(1, 5):
        vine.done(number, size=LARGE)
    assert held(vine) == left
    vine.done(5, size=LARGE)
    assert held(vine) == ({"r1", "r2", "r3", "r4", "r5"} if depth == 0 else set())


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_nothing_is_pruned_because_its_readers_have_not_been_submitted_yet(vine, depth):
    vine.join()
    vine.open(prune_depth=depth)
    vine.submit(call(1, run=1, reader_count=2))
    vine.done(1, size=LARGE)
    assert held(vine) == {"r1"}
    vine.submit(call(2, "r1", run=1, reader_count=0))
    vine.done(2)
    assert "r1" in held(vine)
    vine.submit(call(3, "r1", run=1))
    vine.feed(e.GraphSubmitted(1))
    vine.done(3)
    assert endings(vine) == {1: "success"}
    assert vine.run().recomputed == 0
    assert ("r1" in held(vine)) == (depth == 0)


def test_what_many_read_stays_until_the_last_of_them(vine):
    vine.compute(call(1), *(call(n, "r1") for n in range(2, 10)))
    worker = vine.join()
    vine.done(1, size=LARGE)
    for number in range(2, 10):
        assert vine.holders("r1") == {worker}
        vine.done(number)
    assert vine.holders("r1") == set()


def test_pruned_copies_go_from_all_workers(vine):
    workers = [vine.join(), vine.join()]
    vine.compute(call(1), call(2, "r1"), call(3, "r1"))
    vine.done(1, size=LARGE)
    for worker, name, _source in vine.fetches(vine.log):
        vine.cached(worker, name)
    had = vine.holders("r1")
    vine.done(2)
    vine.done(3)
    assert {(w, "r1") for w in had} <= vine.unlinked(vine.log)
    assert had <= set(workers)


def test_a_target_that_nothing_reads_stays_only_at_the_manager(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    worker = vine.join()
    vine.done(1, payload=b"one")
    assert vine.holders("r1") == {worker}, "it is read there"
    vine.done(2, payload=b"two")
    assert vine.unlinked() == {(worker, "r1"), (worker, "r2")}
    assert vine.file("r1").at_manager
    assert not vine.told(i.DropObject)
    vine.feed(e.GraphClosed(1))
    assert set(vine.told(i.DropObject)) == {i.DropObject("r1"), i.DropObject("r2")}


def test_a_bulky_target_goes_from_its_worker_when_it_has_arrived(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)))
    worker = vine.join()
    vine.done(1, size=LARGE)
    assert vine.holders("r1") == {worker}
    vine.feed(e.ObjectStored("r1", LARGE))
    assert vine.unlinked() == {(worker, "r1")}


def test_a_target_that_is_read_later_is_served_by_the_manager(vine):
    vine.compute(call(1, wanted_at_manager=("r1",)), prune_depth=1)
    first = vine.join()
    vine.done(1, payload=b"one")
    vine.lose(first)
    vine.compute(call(2, "r1"), run=2)
    second = vine.join()
    assert i.SendObject(second, "r1") in vine.out


def test_results_that_workers_may_not_exchange_go_through_the_manager(vine):
    first = vine.join()
    second = vine.join()
    vine.compute(
        call(1, wanted_at_manager=("r1",), peer_transfer=False),
        call(2),
        call(3, "r1", "r2", peer_transfer=False),
        prune_depth=0,
    )
    maker = vine.where()[1]
    vine.done(1, size=LARGE)
    assert vine.sent(m.Upload) == [(maker, m.Upload("r1"))]
    vine.feed(e.ObjectStored("r1", LARGE))
    vine.done(2, size=10 * LARGE)
    other = ({first, second} - {maker}).pop()
    assert vine.where()[3] == other
    assert vine.fetches() == [(other, "r1", "manager")]


def test_progress_counts_what_is_done_what_runs_and_what_was_done_again(vine):
    vine.compute(*chain(4), prune_depth=0)
    vine.join()
    vine.done(1, size=LARGE)
    vine.done(2, size=LARGE)
    run = vine.run()
    assert (run.done, run.running, run.unfinished, run.recomputed) == (2, 2, 2, 0)
    vine.lose(1)
    assert (run.done, run.running, run.unfinished, run.recomputed) == (0, 0, 4, 2)
    vine.join()
    assert (run.done, run.running, run.unfinished, run.recomputed) == (0, 4, 4, 2)


def test_runs_side_by_side_do_not_mix(vine):
    vine.compute(*chain(3), run=1)
    vine.compute(*(task._replace(task=task.task + 10, result=f"s{task.task}", inputs=tuple(f"s{name[1:]}" for name in task.inputs))
                   for task in chain(3)), run=2)  # fmt: skip
    vine.join()
    vine.join()
    for number in (1, 11, 12, 2, 3, 13):
        vine.done(number, size=LARGE)
    assert endings(vine) == {1: "success", 2: "success"}
    vine.feed(e.GraphClosed(1))
    assert {"s1", "s2", "s3"} <= set(vine.tables.files)
    assert not {"r1", "r2", "r3"} & set(vine.tables.files)


def test_the_same_graph_twice_leaves_as_little_as_once(vine):
    worker = vine.join()
    for run in range(1, 6):
        vine.compute(
            *(task._replace(task=10 * run + task.task) for task in chain(3, wanted_at_manager=())), run=run
        )
        for number in range(1, 4):
            vine.done(10 * run + number, size=LARGE)
        vine.feed(e.GraphClosed(run))
    assert endings(vine) == dict.fromkeys(range(1, 6), "success")
    assert set(vine.tables.files) == {"setup"}
    assert {f.name for f in vine.worker(worker).files} == {"setup"}


def test_a_very_large_graph_is_forgotten_bit_by_bit(vine, monkeypatch):
    monkeypatch.setattr(scheduler, "MAX_FILES_RELEASED_PER_BATCH", 10)
    vine.join()
    vine.compute(*chain(25))
    for number in range(1, 26):
        vine.done(number)
    known = set(vine.tables.files)
    vine.feed(e.GraphClosed(1))
    assert len(known - set(vine.tables.files)) == 10
    vine.feed()
    vine.feed()
    assert not vine.mind.has_more_to_release
    assert not any(name.startswith("r") for name in vine.tables.files)


def test_what_is_forgotten_does_not_wait_for_pythons_garbage_collector(vine):
    vine.join()
    gc.collect()
    gc.disable()
    try:
        vine.compute(*chain(5))
        for number in range(1, 6):
            vine.done(number)
        vine.feed(e.GraphClosed(1))
        vine.log.clear()
        for instance in vine.worker(1).libraries.values():
            instance.chain_candidates.clear()
        assert not [
            thing for thing in gc.get_objects() if type(thing) is TaskState and thing.run.spec.run == 1
        ]
    finally:
        gc.enable()
