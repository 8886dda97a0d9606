"""Workers that others cannot reach, and workers that can reach no other."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FileSpec
from vinecore.scheduler.transfers import PEER_BACKOFF_S
from vinecore.scheduler.tuning import Tuning


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def unreachable(harness, worker, name, source):
    return harness.worker_sends(
        worker, m.FetchFailed(name, source, "no route", permanent=False, unreachable=True)
    )


def holder(harness, *names, **worker):
    """A worker that has files nobody else has."""
    harness.send_events(e.FilesDeclared([FileSpec(name, LARGE) for name in names]))
    number = harness.connect_worker(**worker)
    harness.worker_sends(number, m.PersistentObjects(list(names), [LARGE] * len(names), [""] * len(names)))
    return number


def reader(harness, number, *names):
    """A task that reads something, on a worker of its own."""
    worker = harness.connect_worker()
    harness.submit_tasks(call(number, *names, content_addressed=True))
    others = [
        other for other, record in harness.state.workers.items() if other != worker and record.libraries
    ]
    assert harness.assignments()[number] == worker, others
    return worker


def hold(harness, *workers):
    """Have workers be busy, so that readers go elsewhere."""
    harness.submit_tasks(*(single(100 + worker) for worker in workers))
    assert {harness.assignments()[100 + worker] for worker in workers} == set(workers)


def test_unreachable_peer_is_replaced_by_manager(harness):
    """What cannot be fetched from a peer comes through the manager."""
    hidden = holder(harness, "a")
    hold(harness, hidden)
    first = reader(harness, 1, "a")
    assert harness.requested_fetches(harness.log) == [(first, "a", "host1:7")]
    unreachable(harness, first, "a", "host1:7")
    assert harness.messages_sent(m.Upload) == [(hidden, m.Upload("a"))]
    harness.send_events(e.ObjectStored("a", LARGE, ""))
    assert harness.requested_fetches() == [(first, "a", "manager")]


def test_pair_backoff_grows_with_failures(harness):
    """Each time it is tried in vain the pause grows."""
    hidden = holder(harness, "a", "b", "c")
    hold(harness, hidden)
    first = reader(harness, 1, "a")
    unreachable(harness, first, "a", "host1:7")
    avoided = harness.scheduler.transfers.excluded_pairs
    pair = (harness.worker(first), harness.worker(hidden))
    assert avoided[pair] == harness.now + Tuning().transient_error_interval
    harness.advance_time(Tuning().transient_error_interval + 1)
    harness.scheduler.transfers.fetch(harness.worker(first), harness.file("b"))
    unreachable(harness, first, "b", "host1:7")
    assert avoided[pair] == harness.now + 4 * Tuning().transient_error_interval


def test_concurrent_failures_count_once(harness):
    """Failures of fetches that were asked for together count once."""
    hidden = holder(harness, "a", "b", "c")
    hold(harness, hidden)
    first = reader(harness, 1, "a", "b", "c")
    for name in ("a", "b", "c"):
        unreachable(harness, first, name, "host1:7")
    assert harness.scheduler.transfers._unreachable_pairs == {
        (harness.worker(first), harness.worker(hidden)): 1
    }
    assert harness.worker(first).unreachable_peers == 1


def test_peer_unreachable_by_two_is_excluded(harness):
    """Nobody asks who could not be reached by two and longer each time."""
    hidden = holder(harness, "a", "b")
    hold(harness, hidden)
    first = reader(harness, 1, "a")
    second = reader(harness, 2, "a")
    unreachable(harness, first, "a", "host1:7")
    unreachable(harness, second, "a", "host1:7")
    assert harness.worker(hidden).excluded_until == harness.now + PEER_BACKOFF_S
    harness.advance_time(PEER_BACKOFF_S + 1)
    harness.scheduler.transfers.fetch(harness.worker(first), harness.file("b"))
    unreachable(harness, first, "b", "host1:7")
    harness.scheduler.transfers.fetch(harness.worker(second), harness.file("b"))
    unreachable(harness, second, "b", "host1:7")
    assert harness.worker(hidden).excluded_until >= harness.now + 4 * PEER_BACKOFF_S


def test_isolated_worker_uses_manager_only(harness):
    """Who can reach no other gets everything through the manager."""
    names = ("a", "b", "c", "d")
    holders = [holder(harness, name, port=port) for name, port in zip(names, (7, 8, 9, 10), strict=True)]
    hold(harness, *holders)
    walled = reader(harness, 1, *names)
    for name, number, port in zip(names[:3], holders, (7, 8, 9), strict=False):
        unreachable(harness, walled, name, f"host{number}:{port}")
    assert (
        f"worker {walled} on host5 gets all files through the manager"
        in harness.instructions_of(i.LogMessage, harness.log)[-1].text
    )
    harness.declare_file("e", size=LARGE)
    harness.worker_sends(holders[3], m.PersistentObjects(["e"], [LARGE], [""]))
    assert not harness.scheduler.transfers.fetch(harness.worker(walled), harness.file("e"))
    assert harness.send_events(e.Tick()) and harness.file("e").uploading is harness.worker(holders[3])
    harness.report_cached(walled, "d")  # which was on its way from the fourth all the time
    assert harness.worker(walled).peers_excluded_until == 0.0


def test_peers_that_were_dead_do_not_count(harness):
    names = ("a", "b", "c")
    holders = [holder(harness, name, port=port) for name, port in zip(names, (7, 8, 9), strict=True)]
    hold(harness, *holders)
    worker = reader(harness, 1, *names)
    for name, number, port in zip(names, holders, (7, 8, 9), strict=True):
        unreachable(harness, worker, name, f"host{number}:{port}")
    assert harness.worker(worker).peers_excluded_until > harness.now
    harness.disconnect_worker(holders[0])
    assert harness.worker(worker).peers_excluded_until == 0.0
    assert harness.worker(worker).unreachable_peers == 2


def test_peers_dial_where_a_worker_says(harness):
    for contact, data_port, address in (
        ("", 7, "host1:7"), ("", 0, ""), ("gate:99", 7, "gate:99"), (":99", 7, "host4:99"), ("::1:99", 7, "::1:99"),
    ):  # fmt: skip
        number = harness.connect_worker(port=data_port, contact=contact)
        assert harness.worker(number).data_address == address
