"""Workers that others cannot reach, and workers that can reach no other."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FileSpec
from vinecore.scheduler.transfers import PAIR_BACKOFF_S, PEER_BACKOFF_S


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


def unreachable(vine, worker, name, source):
    return vine.say(worker, m.FetchFailed(name, source, "no route", permanent=False, unreachable=True))


def holder(vine, *names, **worker):
    """A worker that has files nobody else has."""
    vine.feed(e.FilesDeclared([FileSpec(name, LARGE) for name in names]))
    number = vine.join(**worker)
    vine.say(number, m.PersistentObjects(list(names), [LARGE] * len(names), [""] * len(names)))
    return number


def reader(vine, number, *names):
    """A task that reads something, on a worker of its own."""
    worker = vine.join()
    vine.submit(call(number, *names, content_addressed=True))
    others = [other for other, record in vine.tables.workers.items() if other != worker and record.libraries]
    assert vine.where()[number] == worker, others
    return worker


def hold(vine, *workers):
    """Have workers be busy, so that readers go elsewhere."""
    vine.submit(*(single(100 + worker) for worker in workers))
    assert {vine.where()[100 + worker] for worker in workers} == set(workers)


def test_what_cannot_be_fetched_from_a_peer_comes_through_the_manager(vine):
    hidden = holder(vine, "a")
    hold(vine, hidden)
    first = reader(vine, 1, "a")
    assert vine.fetches(vine.log) == [(first, "a", "host1:7")]
    unreachable(vine, first, "a", "host1:7")
    assert vine.sent(m.Upload) == [(hidden, m.Upload("a"))]
    vine.feed(e.ObjectStored("a", LARGE, ""))
    assert vine.fetches() == [(first, "a", "manager")]


def test_each_time_it_is_tried_in_vain_the_pause_grows(vine):
    hidden = holder(vine, "a", "b", "c")
    hold(vine, hidden)
    first = reader(vine, 1, "a")
    unreachable(vine, first, "a", "host1:7")
    avoided = vine.mind.transfers.excluded_pairs
    pair = (vine.worker(first), vine.worker(hidden))
    assert avoided[pair] == vine.now + PAIR_BACKOFF_S
    vine.tick(PAIR_BACKOFF_S + 1)
    vine.mind.transfers.fetch(vine.worker(first), vine.file("b"))
    unreachable(vine, first, "b", "host1:7")
    assert avoided[pair] == vine.now + 4 * PAIR_BACKOFF_S


def test_failures_of_fetches_that_were_asked_for_together_count_once(vine):
    hidden = holder(vine, "a", "b", "c")
    hold(vine, hidden)
    first = reader(vine, 1, "a", "b", "c")
    for name in ("a", "b", "c"):
        unreachable(vine, first, name, "host1:7")
    assert vine.mind.transfers._unreachable_pairs == {(vine.worker(first), vine.worker(hidden)): 1}
    assert vine.worker(first).unreachable_peers == 1


def test_nobody_asks_who_could_not_be_reached_by_two_and_longer_each_time(vine):
    hidden = holder(vine, "a", "b")
    hold(vine, hidden)
    first = reader(vine, 1, "a")
    second = reader(vine, 2, "a")
    unreachable(vine, first, "a", "host1:7")
    unreachable(vine, second, "a", "host1:7")
    assert vine.worker(hidden).excluded_until == vine.now + PEER_BACKOFF_S
    vine.tick(PEER_BACKOFF_S + 1)
    vine.mind.transfers.fetch(vine.worker(first), vine.file("b"))
    unreachable(vine, first, "b", "host1:7")
    vine.mind.transfers.fetch(vine.worker(second), vine.file("b"))
    unreachable(vine, second, "b", "host1:7")
    assert vine.worker(hidden).excluded_until >= vine.now + 4 * PEER_BACKOFF_S


def test_who_can_reach_no_other_gets_everything_through_the_manager(vine):
    names = ("a", "b", "c", "d")
    holders = [holder(vine, name, port=port) for name, port in zip(names, (7, 8, 9, 10), strict=True)]
    hold(vine, *holders)
    walled = reader(vine, 1, *names)
    for name, number, port in zip(names[:3], holders, (7, 8, 9), strict=False):
        unreachable(vine, walled, name, f"host{number}:{port}")
    assert (
        f"worker {walled} on host5 gets all files through the manager"
        in vine.told(i.LogMessage, vine.log)[-1].text
    )
    vine.declare("e", size=LARGE)
    vine.say(holders[3], m.PersistentObjects(["e"], [LARGE], [""]))
    assert not vine.mind.transfers.fetch(vine.worker(walled), vine.file("e"))
    assert vine.feed(e.Tick()) and vine.file("e").uploading is vine.worker(holders[3])
    vine.cached(walled, "d")  # which was on its way from the fourth all the time
    assert vine.worker(walled).peers_excluded_until == 0.0


def test_peers_that_were_dead_do_not_count(vine):
    names = ("a", "b", "c")
    holders = [holder(vine, name, port=port) for name, port in zip(names, (7, 8, 9), strict=True)]
    hold(vine, *holders)
    worker = reader(vine, 1, *names)
    for name, number, port in zip(names, holders, (7, 8, 9), strict=True):
        unreachable(vine, worker, name, f"host{number}:{port}")
    assert vine.worker(worker).peers_excluded_until > vine.now
    vine.lose(holders[0])
    assert vine.worker(worker).peers_excluded_until == 0.0
    assert vine.worker(worker).unreachable_peers == 2


def test_peers_dial_where_a_worker_says(vine):
    for contact, data_port, address in (
        ("", 7, "host1:7"), ("", 0, ""), ("gate:99", 7, "gate:99"), (":99", 7, "host4:99"), ("::1:99", 7, "::1:99"),
    ):  # fmt: skip
        number = vine.join(port=data_port, contact=contact)
        assert vine.worker(number).data_address == address
