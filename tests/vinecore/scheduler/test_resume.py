"""A manager goes on where one before it has died: what its journal and its workers agree on is not made again."""

from __future__ import annotations

import random

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S
from vinecore.scheduler.resume import RECONNECT_TIMEOUT_S

A, B = ("a", LARGE, "12"), ("b", LARGE, "34")


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def resume(harness, *results, workers=()):
    harness.send_events(e.SessionResumed(frozenset(results), workers))


def compute(harness, *names):
    """A chain of vertices that make these files, the last of which is wanted."""
    harness.compute_graph(
        *(
            call(n, *names[n - 2 : n - 1], result=name, on_demand=True, content_addressed=True, wanted_at_manager=names[-1:] * (n == len(names)))
            for n, name in enumerate(names, 1)
        )
    )  # fmt: skip


def left(*found):
    return m.OrphanedObjects(*map(list, zip(*found, strict=True)))


def made(harness):
    """Let everything run to its end; give what was made."""
    names = []
    while running := harness.assignments():
        names.append(harness.task(min(running)).spec.result)
        harness.complete_task(min(running), size=LARGE)
    for file in [f for f in harness.state.files.values() if f.uploading is not None]:
        harness.send_events(e.ObjectStored(file.name, LARGE))
    return names


def test_present_results_are_not_made_again(harness):
    """What a worker still has is not made again."""
    resume(harness, A, B)
    worker = harness.connect_worker()
    compute(harness, "a", "b", "c")
    assert not harness.assignments()
    harness.worker_sends(worker, left(B), m.InventoryComplete())
    assert made(harness) == ["c"]
    assert graph_outcomes(harness) == {1: "success"}


@pytest.mark.parametrize(
    "claim", [("b", LARGE, "99"), ("b", LARGE + 1, "34"), ("x", LARGE, "34"), ("b", LARGE, "")]
)
def test_object_unknown_to_journal_does_not_count(harness, claim):
    """What the journal does not have like that does not count."""
    resume(harness, A, B)
    worker = harness.connect_worker()
    compute(harness, "a", "b", "c")
    harness.worker_sends(worker, left(A, claim), m.InventoryComplete())
    assert (worker, claim[0]) in harness.removed_objects()
    assert made(harness) == ["b", "c"]


def test_small_objects_have_no_digest(harness):
    resume(harness, ("a", 10, ""))
    worker = harness.connect_worker()
    compute(harness, "a", "b")
    harness.worker_sends(worker, left(("a", 10, "12")), m.InventoryComplete())
    assert made(harness) == ["b"]


def test_without_a_journal_nothing_counts(harness):
    worker = harness.connect_worker()
    harness.worker_sends(worker, left(A))
    assert harness.removed_objects() == {(worker, "a")}


def test_rejected_object_leaves_maker_and_holder(harness):
    """What is refused is not taken from who makes it or got it meanwhile."""
    resume(harness)
    harness.declare_file("shared", size=10, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, shared=("shared",)))
    harness.worker_sends(worker, m.LibraryReady("lib", 0.1, {}))
    assert harness.assignments() == {1: worker}
    harness.worker_sends(worker, left(("r1", LARGE, "12"), ("shared", 10, "")))
    assert harness.removed_objects() == set()


def test_graph_waits_for_earlier_workers(harness):
    """A graph waits for the workers of before."""
    resume(harness, A, B, workers=[("host1", 1), ("host2", 1)])
    first = harness.connect_worker()
    harness.worker_sends(first, left(A), m.InventoryComplete())
    compute(harness, "a", "b", "c")
    harness.advance_time(STALL_REPORT_DELAY_S)
    harness.advance_time(STALL_REPORT_DELAY_S)
    assert not harness.assignments()
    assert harness.scheduler.stalled_reason == "waiting for workers of the manager before, on host2"
    second = harness.connect_worker()
    harness.worker_sends(second, left(B), m.InventoryComplete())
    assert made(harness) == ["c"]
    harness.advance_time()
    assert not harness.scheduler.stalled_reason


def test_graph_ignores_ended_workers(harness):
    """A graph does not wait for workers that have ended."""
    resume(harness, A, B, workers=[("host1", 1), ("host2", 1)])
    worker = harness.connect_worker()
    harness.worker_sends(worker, left(A), m.InventoryComplete())
    compute(harness, "a", "b")
    harness.advance_time()
    assert not harness.assignments()
    harness.send_events(e.WorkersEnded([("host2", 1)]))
    harness.advance_time()
    assert made(harness) == ["b"]


def test_a_graph_does_not_wait_for_ever(harness):
    resume(harness, A, B, workers=[("host1", 1), ("host2", 1)])
    worker = harness.connect_worker()
    harness.worker_sends(worker, left(A), m.InventoryComplete())
    compute(harness, "a", "b")
    harness.advance_time(RECONNECT_TIMEOUT_S)
    assert made(harness) == ["b"]
    late = harness.connect_worker()
    harness.worker_sends(late, left(B), m.InventoryComplete())
    assert late in harness.replica_holders("b")


def test_what_nobody_asks_for_is_spare(harness):
    resume(harness, A)
    worker = harness.connect_worker()
    harness.worker_sends(worker, left(A), m.InventoryComplete())
    assert {file.name for file in harness.state.evictable} == {"a"}
    harness.disconnect_worker(worker)
    assert not harness.state.files.keys() & {"a"}


KINDS = {
    "unfinished": (False, ""),
    "kept": (True, "12"),
    "lost with its worker": (True, ""),
    "not in the journal": (False, "12"),
    "something else": (True, "99"),
}
"""What became of a vertex: whether the journal has it with the digest 12, and with which digest a worker has it."""


@pytest.mark.parametrize("seed", range(50))
def test_only_missing_needed_results_are_made(harness, seed):
    """Of any graph that is made which is needed and nobody has."""
    chance = random.Random(seed)
    names = [f"v{n}" for n in range(30)]
    reads = [chance.sample(names[:n], min(n, chance.randrange(4))) for n in range(30)]
    fates = dict(zip(names, chance.choices([*KINDS], weights=(3, 6, 2, 1, 1), k=30), strict=True))
    resume(harness, *((name, LARGE, "12") for name in names if KINDS[fates[name]][0]))
    workers = [harness.connect_worker() for _ in range(3)]
    messages = {worker: [] for worker in workers}
    for name in names:
        if digest := KINDS[fates[name]][1]:
            messages[chance.choice(workers)].append((name, LARGE, digest))
    graph = [
        call(
            n,
            *reads[n - 1],
            result=name,
            on_demand=True,
            content_addressed=True,
            wanted_at_manager=names[-1:] * (n == 30),
        )
        for n, name in enumerate(names, 1)
    ]
    if chance.random() < 0.5:
        harness.compute_graph(*graph)
    for worker, found in messages.items():
        harness.worker_sends(worker, *([left(*found)] if found else []), m.InventoryComplete())
    if 1 not in harness.state.graphs:
        harness.compute_graph(*graph)

    needed, stack = set(), names[-1:]
    while stack:
        name = stack.pop()
        if fates[name] != "kept" and name not in needed:
            needed.add(name)
            stack += reads[names.index(name)]
    assert sorted(made(harness)) == sorted(needed)
    assert graph_outcomes(harness) == {1: "success"}
