"""A manager goes on where one before it has died: what its journal and its workers agree on is not made again."""

from __future__ import annotations

import random

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S
from vinecore.scheduler.resume import RECONNECT_TIMEOUT_S

A, B = ("a", LARGE, "12"), ("b", LARGE, "34")


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def resume(vine, *results, workers=()):
    vine.feed(e.SessionResumed(frozenset(results), workers))


def compute(vine, *names):
    """A chain of vertices that make these files, the last of which is wanted."""
    vine.compute(
        *(
            call(n, *names[n - 2 : n - 1], result=name, on_demand=True, content_addressed=True, wanted_at_manager=names[-1:] * (n == len(names)))
            for n, name in enumerate(names, 1)
        )
    )  # fmt: skip


def left(*found):
    return m.OrphanedObjects(*map(list, zip(*found, strict=True)))


def made(vine):
    """Let everything run to its end; give what was made."""
    names = []
    while running := vine.where():
        names.append(vine.task(min(running)).spec.result)
        vine.done(min(running), size=LARGE)
    for file in [f for f in vine.tables.files.values() if f.uploading is not None]:
        vine.feed(e.ObjectStored(file.name, LARGE))
    return names


def test_what_a_worker_still_has_is_not_made_again(vine):
    resume(vine, A, B)
    worker = vine.join()
    compute(vine, "a", "b", "c")
    assert not vine.where()
    vine.say(worker, left(B), m.InventoryComplete())
    assert made(vine) == ["c"]
    assert endings(vine) == {1: "success"}


@pytest.mark.parametrize(
    "claim", [("b", LARGE, "99"), ("b", LARGE + 1, "34"), ("x", LARGE, "34"), ("b", LARGE, "")]
)
def test_what_the_journal_does_not_have_like_that_does_not_count(vine, claim):
    resume(vine, A, B)
    worker = vine.join()
    compute(vine, "a", "b", "c")
    vine.say(worker, left(A, claim), m.InventoryComplete())
    assert (worker, claim[0]) in vine.unlinked()
    assert made(vine) == ["b", "c"]


def test_small_objects_have_no_digest(vine):
    resume(vine, ("a", 10, ""))
    worker = vine.join()
    compute(vine, "a", "b")
    vine.say(worker, left(("a", 10, "12")), m.InventoryComplete())
    assert made(vine) == ["b"]


def test_without_a_journal_nothing_counts(vine):
    worker = vine.join()
    vine.say(worker, left(A))
    assert vine.unlinked() == {(worker, "a")}


def test_what_is_refused_is_not_taken_from_who_makes_it_or_got_it_meanwhile(vine):
    resume(vine)
    vine.declare("shared", size=10, at_manager=True)
    worker = vine.join()
    vine.submit(call(1, shared=("shared",)))
    vine.say(worker, m.LibraryReady("lib", 0.1, {}))
    assert vine.where() == {1: worker}
    vine.say(worker, left(("r1", LARGE, "12"), ("shared", 10, "")))
    assert vine.unlinked() == set()


def test_a_graph_waits_for_the_workers_of_before(vine):
    resume(vine, A, B, workers=[("host1", 1), ("host2", 1)])
    first = vine.join()
    vine.say(first, left(A), m.InventoryComplete())
    compute(vine, "a", "b", "c")
    vine.tick(STALL_REPORT_DELAY_S)
    vine.tick(STALL_REPORT_DELAY_S)
    assert not vine.where()
    assert vine.mind.stalled_reason == "waiting for workers of the manager before, on host2"
    second = vine.join()
    vine.say(second, left(B), m.InventoryComplete())
    assert made(vine) == ["c"]
    vine.tick()
    assert not vine.mind.stalled_reason


def test_a_graph_does_not_wait_for_workers_that_have_ended(vine):
    resume(vine, A, B, workers=[("host1", 1), ("host2", 1)])
    worker = vine.join()
    vine.say(worker, left(A), m.InventoryComplete())
    compute(vine, "a", "b")
    vine.tick()
    assert not vine.where()
    vine.feed(e.WorkersEnded([("host2", 1)]))
    vine.tick()
    assert made(vine) == ["b"]


def test_a_graph_does_not_wait_for_ever(vine):
    resume(vine, A, B, workers=[("host1", 1), ("host2", 1)])
    worker = vine.join()
    vine.say(worker, left(A), m.InventoryComplete())
    compute(vine, "a", "b")
    vine.tick(RECONNECT_TIMEOUT_S)
    assert made(vine) == ["b"]
    late = vine.join()
    vine.say(late, left(B), m.InventoryComplete())
    assert late in vine.holders("b")


def test_what_nobody_asks_for_is_spare(vine):
    resume(vine, A)
    worker = vine.join()
    vine.say(worker, left(A), m.InventoryComplete())
    assert {file.name for file in vine.tables.evictable} == {"a"}
    vine.lose(worker)
    assert not vine.tables.files.keys() & {"a"}


KINDS = {
    "unfinished": (False, ""),
    "kept": (True, "12"),
    "lost with its worker": (True, ""),
    "not in the journal": (False, "12"),
    "something else": (True, "99"),
}
"""What became of a vertex: whether the journal has it with the digest 12, and with which digest a worker has it."""


@pytest.mark.parametrize("seed", range(50))
def test_of_any_graph_that_is_made_which_is_needed_and_nobody_has(vine, seed):
    chance = random.Random(seed)
    names = [f"v{n}" for n in range(30)]
    reads = [chance.sample(names[:n], min(n, chance.randrange(4))) for n in range(30)]
    fates = dict(zip(names, chance.choices([*KINDS], weights=(3, 6, 2, 1, 1), k=30), strict=True))
    resume(vine, *((name, LARGE, "12") for name in names if KINDS[fates[name]][0]))
    workers = [vine.join() for _ in range(3)]
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
        vine.compute(*graph)
    for worker, found in messages.items():
        vine.say(worker, *([left(*found)] if found else []), m.InventoryComplete())
    if 1 not in vine.tables.runs:
        vine.compute(*graph)

    needed, stack = set(), names[-1:]
    while stack:
        name = stack.pop()
        if fates[name] != "kept" and name not in needed:
            needed.add(name)
            stack += reads[names.index(name)]
    assert sorted(made(vine)) == sorted(needed)
    assert endings(vine) == {1: "success"}
