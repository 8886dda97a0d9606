"""When a trouble that lasts is told again: at once if it is another one, else at growing intervals."""

from __future__ import annotations

FIRST_S, MOST_S = 60.0, 3600.0


class Reminder:
    """Decides whether a trouble is told now."""

    def __init__(self) -> None:
        self._told = ""
        self._next, self._interval = 0.0, FIRST_S

    def is_due(self, trouble: str, now: float) -> bool:
        """Whether this is to be told at this time; "" says that there is none any more."""
        if not trouble or trouble != self._told:
            self._told, self._interval = trouble, FIRST_S
        elif now < self._next:
            return False
        else:
            self._interval = min(2 * self._interval, MOST_S)
        self._next = now + self._interval
        return bool(trouble)
