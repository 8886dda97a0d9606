"""Graphs: what is pruned when, and what stays."""

from __future__ import annotations

import gc

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, chain, graph_outcomes
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler import scheduler
from vinecore.scheduler.state import TaskState


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def held(harness):
    """Results that are on some worker."""
    return {name for name, file in harness.state.files.items() if file.replicas and name.startswith("r")}


def test_wide_graph_is_pruned_in_progress(harness):
    """Every leaf is freed as soon as its only reader is done: what is held does not grow with the graph."""
    leaves, depth = 50, 3
    tasks, number = [], 0
    for _leaf in range(leaves):
        for level in range(depth):
            number += 1
            tasks.append(call(number, *([f"r{number - 1}"] if level else [])))
    harness.compute_graph(
        *tasks, call(9999, *(f"r{n * depth}" for n in range(1, leaves + 1)), wanted_at_manager=("r9999",))
    )
    harness.connect_worker()
    most = 0
    while harness.assignments():
        task = min(harness.assignments())
        harness.complete_task(task, size=LARGE, payload=b"sum" if task == 9999 else b"")
        most = max(most, len(held(harness)))
    assert graph_outcomes(harness) == {1: "success"}
    assert most <= leaves + 1
    assert held(harness) == set()


@pytest.mark.parametrize(
    ("depth", "left"),
    [(0, {"r1", "r2", "r3", "r4"}), (1, {"r4"}), (2, {"r3", "r4"}), (3, {"r2", "r3", "r4"})],
)
def test_so_many_generations_stay(harness, depth, left):
    harness.compute_graph(*chain(5), prune_depth=depth)
    harness.connect_worker()
    for number in range(1, 5):
        harness.complete_task(number, size=LARGE)
    assert held(harness) == left
    harness.complete_task(5, size=LARGE)
    assert held(harness) == ({"r1", "r2", "r3", "r4", "r5"} if depth == 0 else set())


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_unsubmitted_readers_prevent_pruning(harness, depth):
    """Nothing is pruned because its readers have not been submitted yet."""
    harness.connect_worker()
    harness.open_graph(prune_depth=depth)
    harness.submit_tasks(call(1, graph=1, reader_count=2))
    harness.complete_task(1, size=LARGE)
    assert held(harness) == {"r1"}
    harness.submit_tasks(call(2, "r1", graph=1, reader_count=0))
    harness.complete_task(2)
    assert "r1" in held(harness)
    harness.submit_tasks(call(3, "r1", graph=1))
    harness.send_events(e.GraphSubmitted(1))
    harness.complete_task(3)
    assert graph_outcomes(harness) == {1: "success"}
    assert harness.graph().recomputed == 0
    assert ("r1" in held(harness)) == (depth == 0)


def test_shared_input_stays_for_last_reader(harness):
    """What many read stays until the last of them."""
    harness.compute_graph(call(1), *(call(n, "r1") for n in range(2, 10)))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    for number in range(2, 10):
        assert harness.replica_holders("r1") == {worker}
        harness.complete_task(number)
    assert harness.replica_holders("r1") == set()


def test_pruned_copies_go_from_all_workers(harness):
    workers = [harness.connect_worker(), harness.connect_worker()]
    harness.compute_graph(call(1), call(2, "r1"), call(3, "r1"))
    harness.complete_task(1, size=LARGE)
    for worker, name, _source in harness.requested_fetches(harness.log):
        harness.report_cached(worker, name)
    had = harness.replica_holders("r1")
    harness.complete_task(2)
    harness.complete_task(3)
    assert {(w, "r1") for w in had} <= harness.removed_objects(harness.log)
    assert had <= set(workers)


def test_unread_target_stays_at_manager_only(harness):
    """A target that nothing reads stays only at the manager."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), call(2, "r1", wanted_at_manager=("r2",)))
    worker = harness.connect_worker()
    harness.complete_task(1, payload=b"one")
    assert harness.replica_holders("r1") == {worker}, "it is read there"
    harness.complete_task(2, payload=b"two")
    assert harness.removed_objects() == {(worker, "r1"), (worker, "r2")}
    assert harness.file("r1").at_manager
    assert not harness.instructions_of(i.DropObject)
    harness.send_events(e.GraphClosed(1))
    assert set(harness.instructions_of(i.DropObject)) == {i.DropObject("r1"), i.DropObject("r2")}


def test_large_target_leaves_worker_after_upload(harness):
    """A bulky target goes from its worker when it has arrived."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)))
    worker = harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    assert harness.replica_holders("r1") == {worker}
    harness.send_events(e.ObjectStored("r1", LARGE))
    assert harness.removed_objects() == {(worker, "r1")}


def test_later_read_target_comes_from_manager(harness):
    """A target that is read later is served by the manager."""
    harness.compute_graph(call(1, wanted_at_manager=("r1",)), prune_depth=1)
    first = harness.connect_worker()
    harness.complete_task(1, payload=b"one")
    harness.disconnect_worker(first)
    harness.compute_graph(call(2, "r1"), number=2)
    second = harness.connect_worker()
    assert i.SendObject(second, "r1") in harness.last_instructions


def test_unshared_results_go_through_manager(harness):
    """Results that workers may not exchange go through the manager."""
    first = harness.connect_worker()
    second = harness.connect_worker()
    harness.compute_graph(
        call(1, wanted_at_manager=("r1",), peer_transfer=False),
        call(2),
        call(3, "r1", "r2", peer_transfer=False),
        prune_depth=0,
    )
    maker = harness.assignments()[1]
    harness.complete_task(1, size=LARGE)
    assert harness.messages_sent(m.Upload) == [(maker, m.Upload("r1"))]
    harness.send_events(e.ObjectStored("r1", LARGE))
    harness.complete_task(2, size=10 * LARGE)
    other = ({first, second} - {maker}).pop()
    assert harness.assignments()[3] == other
    assert harness.requested_fetches() == [(other, "r1", "manager")]


def test_progress_counts_done_running_and_recomputed(harness):
    """Progress counts what is done what runs and what was done again."""
    harness.compute_graph(*chain(4), prune_depth=0)
    harness.connect_worker()
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2, size=LARGE)
    run = harness.graph()
    assert (run.done, run.running, run.unfinished, run.recomputed) == (2, 2, 2, 0)
    harness.disconnect_worker(1)
    assert (run.done, run.running, run.unfinished, run.recomputed) == (0, 0, 4, 2)
    harness.connect_worker()
    assert (run.done, run.running, run.unfinished, run.recomputed) == (0, 4, 4, 2)


def test_runs_side_by_side_do_not_mix(harness):
    harness.compute_graph(*chain(3), number=1)
    harness.compute_graph(*(task._replace(task=task.task + 10, result=f"s{task.task}", inputs=tuple(f"s{name[1:]}" for name in task.inputs))
                   for task in chain(3)), number=2)  # fmt: skip
    harness.connect_worker()
    harness.connect_worker()
    for number in (1, 11, 12, 2, 3, 13):
        harness.complete_task(number, size=LARGE)
    assert graph_outcomes(harness) == {1: "success", 2: "success"}
    harness.send_events(e.GraphClosed(1))
    assert {"s1", "s2", "s3"} <= set(harness.state.files)
    assert not {"r1", "r2", "r3"} & set(harness.state.files)


def test_repeated_graph_leaves_nothing_more(harness):
    """The same graph twice leaves as little as once."""
    worker = harness.connect_worker()
    for run in range(1, 6):
        harness.compute_graph(
            *(task._replace(task=10 * run + task.task) for task in chain(3, wanted_at_manager=())), number=run
        )
        for number in range(1, 4):
            harness.complete_task(10 * run + number, size=LARGE)
        harness.send_events(e.GraphClosed(run))
    assert graph_outcomes(harness) == dict.fromkeys(range(1, 6), "success")
    assert set(harness.state.files) == {"setup"}
    assert {f.name for f in harness.worker(worker).files} == {"setup"}


def test_large_graph_is_forgotten_in_batches(harness, monkeypatch):
    """A very large graph is forgotten bit by bit."""
    monkeypatch.setattr(scheduler, "MAX_FILES_RELEASED_PER_BATCH", 10)
    harness.connect_worker()
    harness.compute_graph(*chain(25))
    for number in range(1, 26):
        harness.complete_task(number)
    known = set(harness.state.files)
    harness.send_events(e.GraphClosed(1))
    assert len(known - set(harness.state.files)) == 10
    harness.send_events()
    harness.send_events()
    assert not harness.scheduler.has_more_to_release
    assert not any(name.startswith("r") for name in harness.state.files)


def test_forgotten_records_need_no_garbage_collector(harness):
    """What is forgotten does not wait for pythons garbage collector."""
    harness.connect_worker()
    gc.collect()
    gc.disable()
    try:
        harness.compute_graph(*chain(5))
        for number in range(1, 6):
            harness.complete_task(number)
        harness.send_events(e.GraphClosed(1))
        harness.log.clear()
        for instance in harness.worker(1).libraries.values():
            instance.chain_candidates.clear()
        assert not [
            thing for thing in gc.get_objects() if type(thing) is TaskState and thing.graph.spec.number == 1
        ]
    finally:
        gc.enable()
