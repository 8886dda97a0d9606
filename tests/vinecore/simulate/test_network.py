"""Time, and links that are shared, against what can be reckoned by hand."""

import math

import pytest

from vinecore.simulate.event_queue import EventQueue
from vinecore.simulate.network import Flow, Link


class Wire:
    """Links and the times at which transfers over them were over."""

    def __init__(self):
        self.clock = EventQueue()
        self.over = {}

    def link(self, *bandwidths):
        return Link(self.clock, *bandwidths)

    def send(self, name, size, *links, at=0.0):
        self.clock.schedule_at(
            at, lambda: Flow(links, size, lambda: self.over.__setitem__(name, self.clock.now))
        )

    def run(self):
        while self.clock.pending:
            self.clock.run_next()
        return pytest.approx(self.over)


@pytest.fixture
def wire():
    return Wire()


def test_simultaneous_events_keep_their_order():
    """What is to happen at the same time happens in the order in which it was asked for."""
    clock, seen = EventQueue(), []
    for when, name in ((2.0, "c"), (1.0, "a"), (1.0, "b")):
        clock.schedule_at(when, seen.append, name)
    while clock.pending:
        clock.run_next()
    assert (seen, clock.now) == (["a", "b", "c"], 2.0)


def test_background_events_are_not_pending():
    """What is in the background is not pending."""
    clock = EventQueue()
    clock.schedule_at(1.0, lambda: None, background=True)
    assert clock.pending == 0


def test_a_transfer_has_a_link_for_itself(wire):
    wire.send("one", 100, wire.link(10))
    assert wire.run() == {"one": 10.0}


def test_transfers_share_a_link_evenly(wire):
    link = wire.link(10)
    wire.send("small", 50, link)
    wire.send("large", 100, link)
    assert wire.run() == {"small": 10.0, "large": 15.0}


def test_who_comes_later_shares_from_then_on(wire):
    link = wire.link(10)
    wire.send("early", 100, link)
    wire.send("late", 100, link, at=5.0)
    assert wire.run() == {"early": 15.0, "late": 20.0}


def test_stream_respects_its_limit(wire):
    """One stream gets no more than its limit."""
    link = wire.link(100, 10)
    wire.send("one", 100, link)
    wire.send("two", 50, link)
    assert wire.run() == {"one": 10.0, "two": 5.0}


def test_transfer_is_limited_by_slowest_link(wire):
    """A transfer is as slow as the slowest of its links."""
    wire.send("one", 100, wire.link(10), wire.link(5))
    assert wire.run() == {"one": 20.0}


def test_cancelled_transfer_frees_its_share(wire):
    """What is cancelled leaves its share to the others."""
    link = wire.link(10)
    wire.send("stays", 100, link)
    gone = Flow((link,), 100, lambda: wire.over.__setitem__("gone", 0))
    wire.clock.schedule_at(4.0, gone.cancel)
    assert wire.run() == {"stays": 12.0}


def test_cancelled_sole_transfer_leaves_nothing(wire):
    """A transfer that is cancelled when it has the link for itself leaves nothing to come."""
    link = wire.link(10)
    gone = Flow((link,), 100, lambda: wire.over.__setitem__("gone", 0))
    wire.clock.schedule_at(4.0, gone.cancel)
    wire.send("next", 10, link, at=20.0)
    assert wire.run() == {"next": 21.0}


def test_transfers_together_take_total_time(wire):
    """A thousand transfers take as long together as one of their size."""
    link = wire.link(7e6)
    for number in range(1000):
        wire.send(number, 1e6 / 3, link, at=number * 1e-3)
    wire.run()
    assert max(wire.over.values()) == pytest.approx(1000 * 1e6 / 3 / 7e6)


def test_unlimited_link_passes_at_once(wire):
    """What has no limit passes everything at once."""
    link = wire.link(math.inf)
    for name in "abc":
        wire.send(name, 1e9, link, at=1.0)
    assert wire.run() == {"a": 1.0, "b": 1.0, "c": 1.0}
