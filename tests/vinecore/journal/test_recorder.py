"""What the journal says of what the mind was told and what it asked for. The property tests say the rest."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, single
from vinecore.journal import records as j
from vinecore.journal.recorder import JournalRecorder
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e


class ToldVine(Vine):
    """A vine with its journal."""

    def __init__(self):
        super().__init__()
        self.teller = JournalRecorder(0.0)
        self.records = []

    def feed(self, *happened):
        out = super().feed(*happened)
        self.records += self.teller.records_for(self.now, list(happened), out)
        return out

    def of(self, *kinds):
        return [record for record in self.records if type(record) in kinds]


@pytest.fixture
def vine():
    vine = ToldVine()
    vine.library()
    return vine


def test_what_a_worker_says_of_a_task_that_is_cancelled_at_the_same_time_is_void(vine):
    vine.compute(call(1))
    worker = vine.join()
    _worker, ticket = vine.place(1)
    vine.feed(e.GraphClosed(1), e.MessageReceived(worker, m.TaskDone(ticket, 10, 0.1, {}, b"")))
    assert vine.of(j.TaskDoneRecord, j.TaskReturnedRecord) == [
        j.TaskReturnedRecord(0.0, 1, worker, "taken back")
    ]


def spread(vine):
    """A file that is on one worker and on its way to another one."""
    vine.declare("data", size=LARGE, at_manager=True)
    first = vine.join()
    vine.submit(single(1, "data"))
    vine.tick(1.0)
    vine.cached(first, "data")
    second = vine.join()
    vine.submit(single(2, "data"))
    return first, second


def test_a_transfer_is_told_with_its_ends_and_its_time(vine):
    first, second = spread(vine)
    vine.tick(2.0)
    vine.cached(second, "data")
    assert vine.of(j.TransferStartedRecord) == [
        j.TransferStartedRecord(0.0, "data", "manager", first, LARGE),
        j.TransferStartedRecord(1.0, "data", first, second, LARGE),
    ]
    assert vine.of(j.TransferEndedRecord) == [
        j.TransferEndedRecord(1.0, "data", "manager", first, LARGE, 1.0),
        j.TransferEndedRecord(3.0, "data", first, second, LARGE, 2.0),
    ]


def test_a_transfer_ends_with_its_worker(vine):
    first, second = spread(vine)
    vine.lose(second)
    assert vine.of(j.TransferFailedRecord) == [
        j.TransferFailedRecord(1.0, "data", first, second, 0.0, "the worker was lost")
    ]


def test_tables_hold_only_what_is_on_workers_now(vine):
    vine.compute(*(call(n) for n in range(1, 6)))
    worker = vine.join()
    for number in range(1, 6):
        vine.done(number)
    assert not vine.teller._workers[worker].tickets
    vine.lose(worker)
    assert not vine.teller._workers
    assert not vine.teller._addresses
