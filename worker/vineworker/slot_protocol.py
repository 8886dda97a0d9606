"""Messages between a worker and its slots, over a socket pair, in frames of the protocol.

See `vinecore.protocol.frames`.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

PROGRESS = struct.Struct(">qd")
"""Content of a slot's shared file: the task that runs, or -1, and its start if it is timed."""
IMPORT_PROGRESS = struct.Struct(">d1000s")
"""What follows it: the start of the import of an own module, 0 if there is none, and the module."""

MAX_IN_FLIGHT = 64
"""Calls that are written to a slot before it has replied to the first of them."""


class ObjectData(NamedTuple):
    """Worker: an object in memory; a shared one is kept until it is dropped."""

    name: str
    shared: bool
    payload: bytes


class Call(NamedTuple):
    """Worker: run this function.

    ``shared`` and ``inputs`` are pairs of a name and the path of a file, or "" for an object that
    came as `ObjectData`. The option ``fed`` names the input that an earlier call to this slot
    makes, and the task of that call; ``held`` has pairs of an input and its task, for inputs that
    the slot holds in memory. The slot may hold the result, if the sum of held results stays below
    the first number of ``hold`` in bytes, and the result is not larger than the second.
    """

    task: int
    function: str
    shared: list[tuple[str, str]]
    inputs: list[tuple[str, str]]
    # path for a result that is too large for the reply
    result: str
    # folder to run in, "" to stay
    sandbox: str
    options: dict[str, Any]
    payload: bytes


class DropShared(NamedTuple):
    """Worker: forget these shared objects."""

    names: list[str]


class SpillResults(NamedTuple):
    """Worker: write what these calls have made, to where they were told to, and answer for each."""

    tasks: list[int]


class DropHeldResults(NamedTuple):
    """Worker: forget what these calls have made."""

    tasks: list[int]


class Reply(NamedTuple):
    """Slot: a call is over.

    ``kind`` is "done" (payload: the result if it is small), "exception" (payload: the pickled
    exception), "crash", or "unfed": it was not run, because the call that it was to get an input
    from has failed. And "wrote": what an earlier call made, and the slot held, is in a file; or
    "unwritten": it could not be written. If ``info`` has ``ends``, the call has changed what cannot
    be put back (see `vineworker.library.call_state`), and the slot ends.
    """

    task: int
    kind: str
    size: int
    wall_s: float
    info: dict[str, Any]
    payload: bytes


TO_SLOT = (ObjectData, Call, DropShared, SpillResults, DropHeldResults)
FROM_SLOT = (Reply,)
