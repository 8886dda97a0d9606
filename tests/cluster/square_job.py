"""Two thousand calls, in the middle of which something happens to the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore import FunctionCall

if TYPE_CHECKING:
    from vinecore import Manager

CALLS = 2000
FIRST = 200
LONG_S = 120.0  # for what a batch system has to find a place for


def begin(m: Manager, seconds: float) -> list[int]:
    """Submit calls that take so long each; give the results of the first ones."""

    def slow_square(x: int) -> int:  # pickled by value: the nodes have no file of these tests
        import time

        time.sleep(seconds)
        return x * x

    m.install_library(m.create_library_from_functions("work", slow_square, exec_mode="direct"))
    for number in range(CALLS):
        m.submit(FunctionCall("work", "slow_square", number))
    return [m.wait(LONG_S).output for _ in range(FIRST)]


def finish(m: Manager, results: list[int]) -> None:
    """Wait for the others: each comes once, and is right."""
    while len(results) < CALLS:
        results.append(m.wait(LONG_S).output)
    assert sorted(results) == [number * number for number in range(CALLS)]
