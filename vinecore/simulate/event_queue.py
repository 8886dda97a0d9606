"""Simulated time."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class EventQueue:
    """What is to happen, and when; two things of the same time happen in the order in which they were asked for.

    Attributes
    ----------
    now : float
        Seconds since the beginning.
    pending : int
        How much is to happen, without what is in the background: ticks, and losses that may never come.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.pending = 0
        self._heap: list[tuple[float, int, bool, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def schedule_in(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Have something happen some time from now."""
        self.schedule_at(self.now + seconds, act, *arguments)

    def schedule_at(
        self, when: float, act: Callable[..., None], *arguments: Any, background: bool = False
    ) -> None:
        """Have something happen at a time."""
        self._sequence += 1
        self.pending += not background
        heappush(self._heap, (max(when, self.now), self._sequence, background, act, arguments))

    def run_next(self) -> None:
        """Let the next thing happen."""
        self.now, _sequence, background, act, arguments = heappop(self._heap)
        self.pending -= not background
        act(*arguments)
