"""When a trouble that lasts is told again: at once if it is another one, else at growing intervals."""

from __future__ import annotations

FIRST_INTERVAL_S, MAX_INTERVAL_S = 60.0, 3600.0


class Reminder:
    """Decides whether a trouble is told now."""

    def __init__(self) -> None:
        self._last_problem = ""
        self._next, self._interval = 0.0, FIRST_INTERVAL_S

    def is_due(self, trouble: str, now: float) -> bool:
        """Whether this is to be told at this time; "" says that there is none any more."""
        if not trouble or trouble != self._last_problem:
            self._last_problem, self._interval = trouble, FIRST_INTERVAL_S
        elif now < self._next:
            return False
        else:
            self._interval = min(2 * self._interval, MAX_INTERVAL_S)
        self._next = now + self._interval
        return bool(trouble)
