"""Let contenders take turns at a case."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.cases import JUDGED, TOTAL, Case
from benchmarks.contenders import Contestant
from benchmarks.sizes import SLOTS, WARM_UP, Size

Tell = Callable[[str], None]


@dataclass
class Row:
    """What was measured of one row.

    Attributes
    ----------
    case
        Which.
    part
        Which of its parts; "" if it has only one.
    seconds
        Contender to the time of one call, vertex or compute in each round.
    """

    case: Case
    part: str
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case and the part."""
        return self.part or self.case.name

    def median(self, contender: str) -> float | None:
        """Return the median of a contender's times in the unit of the case; None if it has none."""
        times = self.seconds.get(contender)
        return None if not times else self.case.value(statistics.median(times), 1)

    def ratio(self, contender: str = JUDGED) -> float | None:
        """Return the median ratio of neighbouring runs of a contender and its reference."""
        own, other = (self.seconds.get(name) for name in (contender, self.case.against))
        if not own or not other:
            return None
        return statistics.median(map(self.case.ratio, own, other))

    def meets(self, contender: str = JUDGED) -> bool | None:
        """Whether a contender meets the budget; None if that cannot be said."""
        value = self.median(contender)
        return None if value is None else self.case.met(value, self.ratio(contender))


@dataclass
class Result:
    """What came of a case: its rows, and where contenders disagreed."""

    rows: list[Row]
    differing: list[str]


def hold(case: Case, size: Size, rounds: int, tell: Tell) -> Result:
    """Start the contenders of a case, warm them up, and let them take turns.

    Raises
    ------
    ContenderFailed
    """
    rows = {part: Row(case, part) for part in case.parts}
    differing: list[str] = []
    with contextlib.ExitStack() as stack:
        contestants: dict[str, Contestant] = {}
        tell(f"{case.title}: starting")
        for name in case.contenders:
            contestants[name] = stack.enter_context(contextlib.closing(Contestant(name, case.name)))
        for contestant in contestants.values():
            contestant.ready()
        if case.warm:
            _warm_up(case, size, contestants, tell)
        for number in range(rounds):
            for part, row in rows.items():
                results: dict[str, Any] = {}
                for name, contestant in contestants.items():
                    tell(f"{row.name}: round {number + 1} of {rounds}, {name}")
                    contestant.prepare(size, part)
                    outcome = contestant.run()
                    row.seconds.setdefault(name, []).append(outcome.seconds / outcome.amount)
                    results[name] = outcome.result
                if number == 0:
                    differing += disagreements(row.name, results)
    return Result(_with_total(case, list(rows.values())), differing)


def _warm_up(case: Case, size: Size, contestants: dict[str, Contestant], tell: Tell) -> None:
    small = replace(WARM_UP, steps=size.steps, paths=size.paths[:SLOTS])  # each process reads one
    for name, contestant in contestants.items():
        for part in case.parts:
            tell(f"{case.title}: warming up, {name} {part}")
            contestant.prepare(small, part)
            contestant.run()


def disagreements(row: str, results: dict[str, Any]) -> list[str]:
    """Who got other arrays than the first one."""
    (first, expected), *others = results.items()
    return [
        f"{row}: {name} and {first}"
        for name, result in others
        if (result is None) != (expected is None)
        or (result is not None and not all(map(np.array_equal, result, expected)))
    ]


def _with_total(case: Case, rows: list[Row]) -> list[Row]:
    if case.rows == case.parts:
        return rows
    sums = {
        name: [sum(times) for times in zip(*(row.seconds[name] for row in rows), strict=True)]
        for name in case.contenders
    }
    return [*rows, Row(case, TOTAL, sums)]
