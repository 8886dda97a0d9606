"""The states of a task and their transitions, as a table.

::

    WAITING ──inputs──> READY ──assign──> ASSIGNED ──done──> DONE
       ^ │                 │                 │ └──hold──> RETRIEVING ──done──> DONE
       │ └──ahead──────────┼─────────────────┘
       └────lose───────────┘

"ahead" sends a task to the worker that is making its inputs; "back" returns it when a worker or a
slot is lost; "again" runs a finished task anew because its output is lost and needed; "bring" keeps
a task that was found done until its output is at the manager. `next_state` raises for every other
pair of state and event.
"""

from __future__ import annotations

from typing import Final

WAITING: Final = "waiting"
READY: Final = "ready"
ASSIGNED: Final = "assigned"
RETRIEVING: Final = "retrieving"
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

UNFINISHED = frozenset({WAITING, READY, ASSIGNED, RETRIEVING})

TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    "inputs": {WAITING: READY},
    "lose": {READY: WAITING, WAITING: WAITING, ASSIGNED: ASSIGNED},
    "assign": {READY: ASSIGNED},
    "ahead": {WAITING: ASSIGNED},
    "back": {ASSIGNED: WAITING},
    "hold": {ASSIGNED: RETRIEVING},
    "done": {ASSIGNED: DONE, RETRIEVING: DONE},
    "bring": {DONE: RETRIEVING},
    "again": {DONE: WAITING, RETRIEVING: WAITING},
    "fail": {WAITING: FAILED, READY: FAILED, ASSIGNED: FAILED, RETRIEVING: FAILED},
    "cancel": {WAITING: CANCELLED, READY: CANCELLED, ASSIGNED: CANCELLED, RETRIEVING: CANCELLED},
}


class InvalidTransition(RuntimeError):
    """A defect of the scheduler: an event reached a task in a state where it has no meaning."""


def next_state(state: str, event: str) -> str:
    """Return the state after an event.

    Raises
    ------
    InvalidTransition
        The event is not possible in this state.
    """
    try:
        return TRANSITIONS[event][state]
    except KeyError:
        msg = f"a task that is {state} cannot {event}"
        raise InvalidTransition(msg) from None
