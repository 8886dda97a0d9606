"""Links that are shared.

A link gives the same part of its bandwidth to all that passes over it, and a transfer over several links is over when the slowest of them
has passed its last byte. A link that is not the slowest for a transfer passes it sooner than a real one would; that is the price of a cost per
transfer that does not depend on how many there are, which is what makes thousands of transfers at a time affordable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from vinecore.protocol import messages
from vinecore.simulate.event_queue import EventQueue

LAST_BYTES = 1e-3
"""What rounding may leave of a transfer."""
MESSAGE_BYTES = 400
"""Bytes of a message without a payload."""


class Flow:
    """Bytes under way."""

    __slots__ = ("_left", "_then", "links", "over")

    def __init__(self, links: Iterable[Link], size: float, then: Callable[[], None]) -> None:
        self.links = tuple(links)
        self.over = False
        self._left, self._then = len(self.links), then
        for link in self.links:
            link.add(self, size)

    def link_finished(self) -> None:
        """One of the links has passed all of it."""
        self._left -= 1
        if not self._left and not self.over:
            self.over = True
            self._then()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if not self.over:
            self.over = True
            for link in self.links:
                link.cancel(self)


class Link:
    """A link, a server's disk, or anything else with a bandwidth that is shared.

    Parameters
    ----------
    clock
        The time.
    bandwidth
        Bytes per second of all transfers together.
    stream
        Bytes per second of one transfer at most.

    Notes
    -----
    ``_share`` is how many bytes each transfer that was there from the beginning would have got. It grows at the same rate for all, so a transfer
    ends when it has grown by the transfer's size, and the next to end is at the front of a heap.
    """

    def __init__(self, clock: EventQueue, bandwidth: float, stream: float = math.inf) -> None:
        self._clock, self._bandwidth, self._stream = clock, bandwidth, stream
        self._share = self._at = 0.0
        self._active: dict[Flow, None] = {}
        self._ends: list[tuple[float, int, Flow]] = []
        self._sequence = self._plans = 0

    def add(self, flow: Flow, size: float) -> None:
        """Begin to pass a transfer."""
        self._advance()
        self._sequence += 1
        self._active[flow] = None
        heappush(self._ends, (self._share + size, self._sequence, flow))
        self._plan()

    def cancel(self, flow: Flow) -> None:
        """Do not pass the rest of a transfer."""
        if flow in self._active:
            self._advance()
            del self._active[flow]
            self._plan()

    def _rate(self) -> float:
        return min(self._bandwidth / max(len(self._active), 1), self._stream)

    def _advance(self) -> None:
        elapsed = self._clock.now - self._at
        if elapsed and self._active:  # no time times an infinite rate would be no number
            self._share += elapsed * self._rate()
        self._at = self._clock.now

    def _plan(self) -> None:
        while self._ends and self._ends[0][2] not in self._active:
            heappop(self._ends)
        self._plans += 1  # also where nothing is left: what was planned for it does not count any more
        if self._ends:
            seconds = max(0.0, self._ends[0][0] - self._share) / self._rate()
            self._clock.schedule_in(seconds, self._transfer_finished, self._plans)

    def _transfer_finished(self, plan: int) -> None:
        """Finish the next transfer, unless one has started or ended since this was planned."""
        if plan != self._plans:
            return
        self._at = self._clock.now
        self._share = self._ends[0][0]  # as it should be, without what was rounded
        passed = []
        while self._ends and self._ends[0][0] <= self._share + LAST_BYTES:
            flow = heappop(self._ends)[2]
            if flow in self._active:
                del self._active[flow]
                passed.append(flow)
        self._plan()
        for flow in passed:
            flow.link_finished()


def size_of_message(message: messages.Message) -> int:
    """Return the bytes of a message: a constant, and those of its payload."""
    return MESSAGE_BYTES + len(getattr(message, "payload", b""))
