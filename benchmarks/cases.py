"""The rows of the table: what is measured, in which unit, among whom, and what it should be.

The budgets are those of the design page ("Budgets").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

ADL: Final = tuple(f"Q{number}" for number in range(1, 9))
TOTAL: Final = "Q1 to Q8"
JUDGED: Final = "daskvine"
BARE: Final = "bare"


@dataclass(frozen=True)
class Case:
    """One row, or one group of rows that share their processes.

    Attributes
    ----------
    name
        What ``--only`` takes; also the method of the contenders that does it.
    title
        What the row is called; of a group, the beginning.
    unit
        "calls/s", "vertices/s", "GB/s": more is better; "ms", "s", "MB", "bytes": less is better.
    contenders
        Who takes part, in the order of their turns.
    against
        Whom daskvine is compared with.
    budget
        At least so much of a rate, at most so much of a time; None for a yardstick.
    relative
        Whether the budget is a part of the time, or of the rate, of ``against``.
    parts
        The rows of a group.
    warm
        Whether a small run comes first that does not count.
    """

    name: str
    title: str
    unit: str
    contenders: tuple[str, ...]
    against: str = ""
    budget: float | None = None
    relative: bool = False
    parts: tuple[str, ...] = ("",)
    warm: bool = True

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit.endswith("/s")

    @property
    def rows(self) -> tuple[str, ...]:
        """The parts, and the total of a group."""
        return self.parts if len(self.parts) == 1 else (*self.parts, TOTAL)

    def value(self, seconds: float, amount: float) -> float:
        """Convert a measured time to the unit of the row."""
        if self.is_rate:
            return amount / seconds
        return seconds / amount * (1e3 if self.unit == "ms" else 1.0)

    def ratio(self, own: float, other: float) -> float:
        """Seconds of both: how many times as fast; with a relative budget of time, the part of the other's time."""
        return own / other if self.relative and not self.is_rate else other / own

    def met(self, value: float, ratio: float | None) -> bool | None:
        """Whether the budget is met; None if that cannot be said."""
        judged = ratio if self.relative else value
        if self.budget is None or judged is None:
            return None
        return judged >= self.budget if self.is_rate else judged <= self.budget


EVERYBODY: Final = ("daskvine", "synchronous", "threads", "distributed")

CASES: Final = (
    Case("calls", "function calls", "calls/s", ("daskvine", "distributed", "bare"), "distributed", 10_000),
    Case("batched", "the same, 32 in flight per slot", "calls/s", ("bare",)),
    Case("graph", "raw graph, function calls", "vertices/s", EVERYBODY, "distributed", 5_000),
    Case("chain", "dependent chain, per hop", "ms", (*EVERYBODY, "bare"), "distributed", 0.3),
    Case("tasks", 'task_mode="tasks"', "vertices/s", ("daskvine",), "", 150),
    Case("warm", "warm compute of one vertex", "ms", EVERYBODY, "distributed", 10),
    Case("cold", "start, compute, close", "s", ("daskvine", "distributed"), "distributed", 1, warm=False),
    Case("transfer", "peer transfer of a file", "GB/s", ("daskvine", "bare"), "bare", 0.8, relative=True),
    Case("compared", "the same, until a task there may read it", "GB/s", ("daskvine", "bare"), "bare"),
    Case("load", "private memory for a loaded array", "MB", ("daskvine", "bare"), "", 25),
    Case("sent", "sent per vertex that shares a layout", "bytes", ("daskvine",), "", 2_000),
    Case("adl", "ADL", "s", (*EVERYBODY, "bare"), "synchronous", 0.6, relative=True, parts=ADL),
)


def chosen(only: tuple[str, ...], without: tuple[str, ...]) -> list[Case]:
    """Select cases by name, or by the name of a part, without some contenders.

    Raises
    ------
    ValueError
        There is no such case, or nobody is left to do it.
    """
    known = {name for case in CASES for name in (case.name, *case.parts)} - {""}
    if unknown := sorted(set(only) - known):
        msg = f"no case {', '.join(unknown)}; there are: {', '.join(sorted(known))}"
        raise ValueError(msg)
    cases = []
    for case in CASES:
        everything = not only or case.name in only
        parts = tuple(part for part in case.parts if everything or part in only)
        contenders = tuple(name for name in case.contenders if name not in without)
        if parts and contenders:
            cases.append(replace(case, parts=parts, contenders=contenders))
    if not cases:
        msg = f"nobody is left: without {', '.join(without)}"
        raise ValueError(msg)
    return cases
