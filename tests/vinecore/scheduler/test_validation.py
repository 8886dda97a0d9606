"""Records that contradict others are found, and named with the invariant."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, single
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.validation import InvalidState


@pytest.fixture
def harness():
    """Return a scheduler with a call that runs on a worker, another that waits for it, and a library."""
    harness = SchedulerHarness()
    harness.install_library()
    harness.declare_file("data", size=LARGE, at_manager=True)
    harness.connect_worker(cores=2)
    harness.compute_graph(call(1, "data"), call(2, "r1"), single(3))
    harness.report_cached(1, "data")
    return harness


def change(record, **fields):
    for name, value in fields.items():
        setattr(record, name, value)


CONTRADICTIONS = {
    "wrong graph": (lambda s: s.graph().tasks.pop(1), "<Task 1 .*not among the tasks of its graph"),
    "missing inputs": (lambda s: change(s.task(2), missing_inputs=2), "<Task 2 .*missing_inputs is 2"),
    "consumers": (lambda s: s.file("r1").consumers.clear(), "<Task 2 .*consumers of its input <File r1"),
    "ended task": (lambda s: change(s.task(1), state="done"), "<Task 1 .*ended is still recorded"),
    "no worker": (lambda s: change(s.task(1), worker=None), "<Task 1 .*its worker is None"),
    "chained": (lambda s: change(s.task(1), chained=True), "<Task 1 .*chained is True, and 0 inputs"),
    "unsupplied": (lambda s: s.file("data").replicas.clear(), "<Task 1 .*<File data .*neither on <Worker 1"),
    "graph counts": (lambda s: change(s.graph(), unfinished=1), "graph 1: unfinished is 1, not 3"),
    "pending readers": (lambda s: change(s.file("data"), pending_readers=7), "<File data.*is 7, not 1"),
    "replica": (lambda s: s.worker(1).files.clear(), "<File .*replica on <Worker 1.*not recorded there"),
    "unreleased": (lambda s: change(s.file("r3"), released=True, producer=None), "<File r3.*still recorded"),
    "evictable": (
        lambda s: s.state.evictable.setdefault(s.file("data")),
        "<File data.*evictable, and not reusable",
    ),
    "resources": (lambda s: change(s.worker(1), free=s.worker(1).total), "<Worker 1.*are taken and"),
    "worker's tasks": (lambda s: s.worker(1).tasks.clear(), "<Worker 1.*has 1 assigned"),
    "assigned": (lambda s: change(s.state, assigned=9), "scheduler: assigned is 9, not"),
    "disk": (lambda s: change(s.worker(1), free_disk=1), "<Worker 1.*bytes of disk"),
    "queue counts": (lambda s: change(s.task(1).queue, running=9), "queue .*lib.*running is 9"),
    "idle worker": (
        lambda s: s.connect_worker(cores=8) and unlist_worker(s, 2),
        "queue .*<Worker 2.*has room is True",
    ),
    "outgoing": (lambda s: change(s.worker(1), outgoing=3), "<Worker 1.*outgoing is 3, not 0"),
    "transfer": (
        lambda s: s.scheduler.replicas.active_by_source.update(manager=2),
        "replicas: transfers by source",
    ),
}


def unlist_worker(harness, number):
    for queue in harness.state.queues.values():
        queue.workers_with_room.pop(harness.worker(number), None)


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_names_record_and_invariant(harness, case):
    contradict, text = CONTRADICTIONS[case]
    harness.scheduler.validate_state()
    contradict(harness)
    with pytest.raises(InvalidState, match=text):
        harness.scheduler.validate_state()


def test_state_is_validated_after_events(harness):
    harness.state.assigned = 9
    with pytest.raises(InvalidState, match="assigned is 9"):
        harness.advance_time()


def test_validation_is_off_by_default():
    scheduler = Scheduler("3.11")
    scheduler.state.assigned = 9
    scheduler.handle([], 0.0)
    with pytest.raises(InvalidState):
        scheduler.validate_state()
