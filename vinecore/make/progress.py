"""The state of a run of rules: which can start, which are blocked by others; without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from vinecore.make.rules import RuleSet


class Progress:
    """Counts down the unfinished prerequisites of each rule.

    Parameters
    ----------
    rules : RuleSet
        The rules.
    pending : iterable of int
        The numbers of the rules that have to run.
    retries : int
        How often a rule runs again that has failed.
    runs_here : callable
        A function that returns whether a rule runs on this machine.

    Attributes
    ----------
    failed : dict of int to str
        The rules that have failed for good, with the reasons.
    """

    def __init__(
        self, rules: RuleSet, pending: Iterable[int], retries: int, runs_here: Callable[[int], bool]
    ) -> None:
        self._pending = set(pending)
        self._runs_here = runs_here
        self._tries_left = dict.fromkeys(self._pending, retries)
        self._missing: dict[int, int] = {}
        self._dependents: dict[int, list[int]] = {}
        self._ready: dict[bool, deque[int]] = {True: deque(), False: deque()}
        self._running: dict[bool, set[int]] = {True: set(), False: set()}
        self.failed: dict[int, str] = {}
        # In the order of the file, in which rules with nothing between them start.
        for number in sorted(self._pending):
            needed = rules.prerequisites(number) & self._pending
            self._missing[number] = len(needed)
            for other in needed:
                self._dependents.setdefault(other, []).append(number)
            if not needed:
                self._ready[runs_here(number)].append(number)

    def start_ready(self, max_here: int | None, max_elsewhere: int | None) -> list[int]:
        """Start the rules that can run.

        Parameters
        ----------
        max_here, max_elsewhere : int or None
            The highest number of rules that run at once on this machine and on others.

        Returns
        -------
        list of int
            The rules that have started.
        """
        started: list[int] = []
        for here, most in ((True, max_here), (False, max_elsewhere)):
            ready, running = self._ready[here], self._running[here]
            while ready and (most is None or len(running) < most):
                number = ready.popleft()
                running.add(number)
                started.append(number)
        return started

    def finish(self, number: int) -> None:
        """Take a rule for complete.

        Parameters
        ----------
        number : int
            A running rule.
        """
        self._running[self._runs_here(number)].remove(number)
        self._pending.remove(number)
        for other in self._dependents.get(number, ()):
            self._missing[other] -= 1
            if not self._missing[other]:
                self._ready[self._runs_here(other)].append(other)

    def fail(self, number: int, reason: str) -> bool:
        """Take a rule for failed, or let it run again.

        Parameters
        ----------
        number : int
            A running rule.
        reason : str
            The reason, for the user.

        Returns
        -------
        bool
            Whether the rule runs again.
        """
        here = self._runs_here(number)
        self._running[here].remove(number)
        if self._tries_left[number] > 0:
            self._tries_left[number] -= 1
            self._ready[here].append(number)
            return True
        self.failed[number] = reason
        return False

    @property
    def is_over(self) -> bool:
        """Whether nothing runs or can run."""
        return not any((*self._running.values(), *self._ready.values()))

    @property
    def left(self) -> set[int]:
        """The rules that have not been completed, failed ones among them."""
        return set(self._pending)
