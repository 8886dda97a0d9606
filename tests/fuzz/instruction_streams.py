"""The instructions of both state machines in random histories: `python -m tests.fuzz.instruction_streams FILE`.

The first use writes one digest per seed to the file; each later one compares with it, and fails at the first history whose
instructions differ. So a change of the code's structure can be shown to have changed no decision.

Classes and strings are numbered in the order in which a history shows them, so that neither the name of a class or field nor
the words of a reason matter: only which instructions follow, in which order, with which values. What the end of a task tells
the user of times and costs is left out, because no decision depends on it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import click
from vineworker.state.state_machine import WorkerStateMachine

from tests.vinecore.scheduler.property.machine import run_history
from vinecore.scheduler.instructions import TaskFinished
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.validation import StateValidation


class Stream:
    """The instructions of one history, in a form without names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._numbers: dict[object, int] = {}

    def add(self, instructions: Iterable[Any]) -> None:
        """Append the instructions of one call of a state machine."""
        self.lines.append(json.dumps([self._plain(instruction) for instruction in instructions]))

    def _number(self, name: object) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return self._plain(value.value)
        if isinstance(value, (str, type)):
            return f"#{self._number(value)}"
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if type(value) is TaskFinished:
            value = value[: TaskFinished._fields.index("dispatched_at")]
            return [self._plain(TaskFinished), *map(self._plain, value)]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return [self._plain(type(value)), *map(self._plain, value)]
        if isinstance(value, Mapping):
            return [[self._plain(key), self._plain(item)] for key, item in value.items()]
        if isinstance(value, (set, frozenset)):
            return sorted(map(repr, map(self._plain, value)))
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        return self._plain(type(value))


def record(seed: int) -> list[str]:
    """Live one history; return the instructions of every call of a state machine, one line each."""
    stream = Stream()

    def recorded(handle: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any) -> Any:
            instructions = handle(self, *args)
            stream.add(instructions)
            return instructions

        return wrapper

    originals = [(machine, machine.handle) for machine in (Scheduler, WorkerStateMachine)]
    for machine, handle in originals:
        machine.handle = recorded(handle)  # type: ignore[method-assign]
    try:
        run_history(seed)
    finally:
        for machine, handle in originals:
            machine.handle = handle  # type: ignore[method-assign]
    return stream.lines


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    type=int,
    default=2000,
    show_default=True,
    help="Histories to write; later uses take all that are in the file.",
)
@click.option("--show", type=int, default=None, help="Print the instructions of one seed instead.")
def main(file: Path, seeds: int, show: int | None) -> None:
    """Write the digests of the instructions, or compare with those that are in FILE."""
    # the invariants have a test of their own
    StateValidation.validate_state = lambda _self: None  # type: ignore[method-assign]
    if show is not None:
        print(*record(show), sep="\n")
        return
    known = json.loads(file.read_text()) if file.exists() else {}
    digests = {}
    for seed in map(int, known) if known else range(seeds):
        digest = digests[str(seed)] = hashlib.sha256("\n".join(record(seed)).encode()).hexdigest()
        if known and digest != known[str(seed)]:
            sys.exit(f"the instructions of seed {seed} differ from those in {file}")
    if known:
        print(f"{len(known)} histories have the instructions they had")
    else:
        file.write_text(json.dumps(digests, indent=0))
        print(f"wrote the digests of {len(digests)} histories to {file}")


if __name__ == "__main__":
    main()
