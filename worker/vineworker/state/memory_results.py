"""Results that stay in the memory of the slot that made them, for calls that read them there.

An analysis often makes an array that a few short calls read, which make arrays that a few more read, and nothing but a small histogram at the end. To
write each of these to a file, and to compute its digest, takes as long as some of the calls. So a slot holds a large result if all that
will read it is here, short, and may run in the same slot; that is its *family*. Vocabulary:

held
    a result that is in the memory of a slot, and in no file
family
    of a slot: the calls that have ended there since it began to hold something, what they made, and the calls that have all they read
    because of these
untold
    a call of a family that has ended, and the manager has not been told: it is told of all of them together, when each held result has been read
    by all who will, or written, so that it never believes in an object that somebody may need and nobody can fetch

A slot with a family runs nothing else. When none of the family can run, or it has taken long, what has not been read by all is written, which takes a
moment, and the family is over. What a slot held is lost with the slot: then the calls of its family run again.

spent
    a result that was held, and read by all who would, so that it is nowhere any more, though the manager has been told that it was made. Mostly it forgets it
    at once. But if something else was lost meanwhile, a call that has to run again may need it: then it is told that it is lost
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vineworker.state import instructions as i

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vineworker.slot_protocol import Reply
    from vineworker.state.state_machine import Slot, Task, WorkerStateMachine

MB = 1024 * 1024
MOST_HELD = 256 * MB  # in a slot
HELD_MEMORY_DIVISOR = 10  # of a slot's memory no more than one part of so many
MAX_RESULT_DIVISOR = 8  # of that, for one result: who reads it has a copy
SHORT_S = 0.25  # all calls together that read a held result: for so long other slots may have nothing to do
LONG_S = 1.0  # all calls of a family: what the manager is not told, and is lost with the slot


class CompletedCall:
    """A call of a family that has ended.

    Attributes
    ----------
    held, writing : bool
        Whether only its slot has what it has made, and whether that is being written.
    unread : int
        How many calls will still read it, if it is held.
    """

    __slots__ = ("held", "remaining_readers", "reply", "task", "writing")

    def __init__(self, task: Task, reply: Reply, *, held: bool) -> None:
        self.task, self.reply, self.held = task, reply, held
        self.remaining_readers = int(task.run.options.get("readers", 0))
        self.writing = False


class MemoryGroup:
    """What belongs together in a slot."""

    def __init__(self) -> None:
        self.unreported: list[CompletedCall] = []  # in the order of their ends
        self.wall_s = 0.0  # of these together
        self.results: dict[str, CompletedCall] = {}  # what these have made
        self.ready: deque[Task] = deque()  # have all they read because of these


class InMemoryResults:
    """Decides what slots hold. A part of the worker's mind.

    Parameters
    ----------
    state
        The mind.
    """

    def __init__(self, state: WorkerStateMachine) -> None:
        self._state = state
        self._spent: set[str] = set()

    def hold_limits(self, slot: Slot, task: Task) -> tuple[int, int] | None:
        """How many bytes a slot may hold, with what a call makes, and how many that may be; None if it is not to be held even for a moment."""
        library = slot.host.library
        if (
            not task.run.options.get("readers")
            or library is None
            or library.exec_mode != "direct"
            or slot.in_flight
            or slot.host.max_in_flight(task.run.function) > 1  # others may be written behind it
        ):
            return None
        memory = int(library.options.get("memory") or 0) * MB // max(library.slots, 1)
        room = min(MOST_HELD, memory // HELD_MEMORY_DIVISOR)
        return room, room // MAX_RESULT_DIVISOR

    def held_inputs(self, slot: Slot, task: Task) -> list[tuple[str, int]]:
        """Which inputs of a call its slot holds, and which calls have made them."""
        if slot.memory_group is None:
            return []
        found = [(name, slot.memory_group.results.get(name)) for name in task.run.inputs]
        return [(name, ended.task.run.task) for name, ended in found if ended is not None and ended.held]

    def on_call_finished(self, slot: Slot, task: Task, reply: Reply) -> bool:
        """Take a call that has ended into the family of its slot, if it belongs to one."""
        family, held = slot.memory_group, bool(reply.info.pop("held", False))
        if self._state.tasks.get(reply.task) is not task:  # it was cancelled
            if held:
                self._state.emit(i.DropHeldResults(slot.id, [reply.task]))
            return held
        if family is None:
            if not held:
                return False
            family = slot.memory_group = MemoryGroup()
        ended = CompletedCall(task, reply, held=held)
        family.unreported.append(ended)
        family.wall_s += reply.wall_s
        if reply.kind == "done":
            self._count_read(slot, family, task)
            if not held:
                self._state.store_result(task.run, reply)
            family.results[task.run.result] = ended
            if not held or self._worth_holding(slot, ended):
                self._queue_ready_readers(slot, family, task.run.result)
        return True

    def _count_read(self, slot: Slot, family: MemoryGroup, reader: Task) -> None:
        """Somebody has read what is held; a slot forgets what all have read."""
        for name in dict.fromkeys(reader.run.inputs):
            ended = family.results.get(name)
            if ended is not None and ended.held:
                ended.remaining_readers -= 1
                if ended.remaining_readers <= 0:
                    self._state.emit(i.DropHeldResults(slot.id, [ended.task.run.task]))

    def _worth_holding(self, slot: Slot, ended: CompletedCall) -> bool:
        """Whether all that will read a result is here, and takes a moment only."""
        readers = self._state.waiting_for(ended.task.run.result)
        walls = slot.host.mean_duration_s
        family = slot.memory_group
        assert family is not None
        return (
            len(readers) == ended.remaining_readers
            and family.wall_s < LONG_S
            and all(r.run.library == slot.host.name and r.slot is None for r in readers)
            and sum(walls.get(r.run.function, SHORT_S + 1) for r in readers) <= SHORT_S
        )

    def _queue_ready_readers(self, slot: Slot, family: MemoryGroup, name: str) -> None:
        """Queue who has all it reads, now that there is one more result."""
        for task in self._state.waiting_for(name):
            lacking = self._state.missing_inputs(task)
            if (
                task.run.library == slot.host.name
                and task.slot is None
                and all(n in family.results for n in lacking)
            ):
                self._state.stop_waiting(task)
                task.missing = 0
                family.ready.append(task)

    def advance(self, slot: Slot) -> None:
        """Go on with the family of a slot, or end it."""
        family = slot.memory_group
        if family is None or slot.killed or slot.in_flight:
            return
        needed = [ended for ended in family.unreported if ended.held and ended.remaining_readers > 0]
        while needed and family.ready:
            task = family.ready.popleft()
            if self._state.tasks.get(task.run.task) is task:
                slot.all_short = False
                self._state.send_call(slot, task)
                return
        if not needed:
            slot.memory_group = None
            for ended in family.unreported:
                self._report(ended)
            self.report_consumed(
                [
                    ended.task.run.result
                    for ended in family.unreported
                    if self._state.waiting_for(ended.task.run.result)
                ]
            )
            self._state.queue_first(slot.host, family.ready)
            return
        unasked = [ended for ended in needed if not ended.writing]
        for ended in unasked:
            ended.writing = True
        if unasked:
            self._state.emit(i.SpillResults(slot.id, [ended.task.run.task for ended in unasked]))

    def _report(self, ended: CompletedCall) -> None:
        state, run, reply = self._state, ended.task.run, ended.reply
        there = reply.kind == "done" and not ended.held
        if state.tasks.get(run.task) is not ended.task:  # it was cancelled
            if there:
                state.discard(run)
            return
        del state.tasks[run.task]
        if there:
            state.publish_result(run, reply)
        elif reply.kind == "done":
            self._spent.add(run.result)
        state.report_finished(run, reply)

    def report_consumed(self, names: Iterable[str]) -> None:
        """Somebody waits for these: the manager has to know which of them will not come."""
        spent = [name for name in names if name in self._spent]
        if spent:
            self.forget(spent)
            self._state.report_lost(spent)

    def forget(self, names: Iterable[str]) -> None:
        """The manager does not think any more that these are here, or they are."""
        if self._spent:
            self._spent.difference_update(names)

    def on_spilled(self, slot: Slot, reply: Reply) -> bool:
        """A slot has written what it held, or could not; whether it was asked to."""
        family = slot.memory_group
        for ended in family.unreported if family is not None else ():
            if ended.task.run.task == reply.task and ended.writing:
                break
        else:
            return False
        ended.held = ended.writing = False
        if reply.kind == "wrote":
            ended.reply.info["digest"] = reply.info.get("digest", "")
            self._state.store_result(ended.task.run, ended.reply)
        else:  # and so it has failed
            ended.reply = reply
        return True

    def on_slot_lost(self, slot: Slot) -> list[Task]:
        """A slot has died, or is to: give the calls that have to begin anew, in their order."""
        family, slot.memory_group = slot.memory_group, None
        if family is None:
            return []
        for ended in family.unreported:
            if ended.reply.kind == "done" and not ended.held:
                self._state.discard(ended.task.run)
        return [*(ended.task for ended in family.unreported), *family.ready]
