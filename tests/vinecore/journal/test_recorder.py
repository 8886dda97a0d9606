"""Journal records of the scheduler's events and instructions; the property test checks the rest."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, single
from vinecore.journal import records as j
from vinecore.journal.recorder import JournalRecorder
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e


class JournalHarness(SchedulerHarness):
    """A harness with its journal."""

    def __init__(self):
        super().__init__()
        self.recorder = JournalRecorder(0.0)
        self.records = []

    def send_events(self, *events):
        out = super().send_events(*events)
        self.records += self.recorder.records_for(self.now, list(events), out)
        return out

    def records_of(self, *kinds):
        return [record for record in self.records if type(record) in kinds]


@pytest.fixture
def harness():
    harness = JournalHarness()
    harness.install_library()
    return harness


def test_report_crossing_cancellation_is_void(harness):
    """What a worker says of a task that is cancelled at the same time is void."""
    harness.compute_graph(call(1))
    worker = harness.connect_worker()
    _worker, ticket = harness.assignment_of(1)
    harness.send_events(e.GraphClosed(1), e.MessageReceived(worker, m.TaskDone(ticket, 10, 0.1, {}, b"")))
    assert harness.records_of(j.TaskDoneRecord, j.TaskReturnedRecord) == [
        j.TaskReturnedRecord(0.0, 1, worker, "taken back")
    ]


def spread(harness):
    """A file that is on one worker and on its way to another one."""
    harness.declare_file("data", size=LARGE, at_manager=True)
    first = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    harness.advance_time(1.0)
    harness.report_cached(first, "data")
    second = harness.connect_worker()
    harness.submit_tasks(single(2, "data"))
    return first, second


def test_transfer_has_ends_and_time(harness):
    """A transfer is told with its ends and its time."""
    first, second = spread(harness)
    harness.advance_time(2.0)
    harness.report_cached(second, "data")
    assert harness.records_of(j.TransferStartedRecord) == [
        j.TransferStartedRecord(0.0, "data", "manager", first, LARGE),
        j.TransferStartedRecord(1.0, "data", first, second, LARGE),
    ]
    assert harness.records_of(j.TransferEndedRecord) == [
        j.TransferEndedRecord(1.0, "data", "manager", first, LARGE, 1.0),
        j.TransferEndedRecord(3.0, "data", first, second, LARGE, 2.0),
    ]


def test_a_transfer_ends_with_its_worker(harness):
    first, second = spread(harness)
    harness.disconnect_worker(second)
    assert harness.records_of(j.TransferFailedRecord) == [
        j.TransferFailedRecord(1.0, "data", first, second, 0.0, "the worker was lost")
    ]


def test_tables_hold_present_objects_only(harness):
    """Tables hold only what is on workers now."""
    harness.compute_graph(*(call(n) for n in range(1, 6)))
    worker = harness.connect_worker()
    for number in range(1, 6):
        harness.complete_task(number)
    assert not harness.recorder._workers[worker].dispatch_ids
    harness.disconnect_worker(worker)
    assert not harness.recorder._workers
    assert not harness.recorder._addresses
