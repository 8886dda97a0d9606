"""Results that stay in the memory of the slot that made them, for calls that read them there.

An analysis often makes an array that a few short calls read, which make arrays that a few more
read, and nothing but a small histogram at the end. To write each of these to a file, and to compute
its digest, takes as long as some of the calls. So a slot *holds* a large result in its memory, and
in no file, if all calls that will read it are here, are short, and may run in the same slot. These
calls are a *memory group*: the calls that have ended in the slot since it began to hold something,
and the calls that have all they read because of the results.

A slot with a group runs nothing else. The manager is told of all calls of a group together, when
each held result has been read by all its readers, or has been written: so it never believes in an
object that a task may need and nothing can fetch. When no call of the group can run, or it has
taken long, the results that have not been read by all are written, which takes a moment, and the
group is over. Results that a slot holds are lost with the slot: then the calls of its group run
again.

A held result that all its readers have read is *consumed*; see
`vineworker.state.objects.ObjectTable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from vinecore.protocol import MB, messages
from vineworker.slot_protocol import Reply
from vineworker.state import instructions
from vineworker.state.records import AssignedTask, CompletedCall, ForkServerState, MemoryGroup, SlotState

MAX_HELD_BYTES = 256 * MB
"""In one slot."""
HELD_MEMORY_DIVISOR = 10
"""Of the memory of a slot, held results take no more than one part of so many."""
MAX_RESULT_DIVISOR = 8
"""Of that, one result takes no more than one part of so many: each reader has a copy."""
MAX_READERS_S = 0.25
"""Of all calls together that read a held result: so long other slots may have nothing to do."""
MAX_GROUP_S = 1.0
"""Of all calls of a group: the manager is not told of them, and they are lost with the slot."""


class CallQueue(Protocol):
    """What holding results needs of the scheduler of calls."""

    tasks: dict[int, AssignedTask]

    def send_call(self, slot: SlotState, task: AssignedTask) -> None:
        """Have a slot run a call."""

    def queue_first(self, fork_server: ForkServerState, tasks: Iterable[AssignedTask]) -> None:
        """Have tasks go before all others, in this order."""

    def list_waiting_tasks(self, name: str) -> list[AssignedTask]:
        """Return the tasks that lack an object."""

    def missing_inputs(self, task: AssignedTask) -> list[str]:
        """Return what a task reads and is not here."""

    def stop_waiting(self, task: AssignedTask) -> None:
        """Have a task wait for no object any more."""

    def store_result(self, run: messages.RunTask, reply: Reply) -> None:
        """Store a result where readers look for it."""

    def publish_result(self, run: messages.RunTask, reply: Reply) -> None:
        """Enter a stored result as an object that tasks can read."""

    def discard_result(self, run: messages.RunTask) -> None:
        """Delete a stored result that is not needed."""

    def report_finished(self, run: messages.RunTask, reply: Reply) -> None:
        """Tell the manager how a call has ended."""

    def report_lost(self, names: list[str]) -> None:
        """Tell the manager that objects are lost."""


class InMemoryResults:
    """Decides what slots hold in memory.

    Parameters
    ----------
    out
        Takes instructions.
    queue
        The calls of this worker.
    consumed
        See `vineworker.state.objects.ObjectTable`.
    """

    def __init__(self, out: list[Any], queue: CallQueue, consumed: set[str]) -> None:
        self._out, self._queue, self._consumed = out, queue, consumed

    def hold_limits(self, slot: SlotState, task: AssignedTask) -> tuple[int, int] | None:
        """Return limits for holding the result of a call in its slot; None if it is not to be held.

        The first is for all that the slot holds, in bytes, the second for the result.
        """
        library = slot.fork_server.library
        if (
            not task.run.options.get("readers")
            or library is None
            or library.exec_mode != "direct"
            or slot.in_flight
            # others may be written behind it
            or slot.fork_server.max_in_flight(task.run.function) > 1
        ):
            return None
        memory = int(library.options.get("memory") or 0) * MB // max(library.slots, 1)
        room = min(MAX_HELD_BYTES, memory // HELD_MEMORY_DIVISOR)
        return room, room // MAX_RESULT_DIVISOR

    def held_inputs(self, slot: SlotState, task: AssignedTask) -> list[tuple[str, int]]:
        """Return the inputs of a call that its slot holds, with the tasks that have made them."""
        if slot.memory_group is None:
            return []
        found = [(name, slot.memory_group.results.get(name)) for name in task.run.inputs]
        return [
            (name, completed.task.run.task)
            for name, completed in found
            if completed is not None and completed.held
        ]

    def on_call_finished(self, slot: SlotState, task: AssignedTask, reply: Reply) -> bool:
        """Add a finished call to the group of its slot; return whether it belongs to one."""
        group, held = slot.memory_group, bool(reply.info.pop("held", False))
        if self._queue.tasks.get(reply.task) is not task:  # it was cancelled
            if held:
                self._out.append(instructions.DropHeldResultsInSlot(slot.id, [reply.task]))
            return held
        if group is None:
            if not held:
                return False
            group = slot.memory_group = MemoryGroup()
        completed = CompletedCall(task, reply, held=held)
        group.unreported.append(completed)
        group.wall_s += reply.wall_s
        if reply.kind == "done":
            self._count_read(slot, group, task)
            if not held:
                self._queue.store_result(task.run, reply)
            group.results[task.run.result] = completed
            if not held or self._worth_holding(slot, completed):
                self._queue_ready_readers(slot, group, task.run.result)
        return True

    def _count_read(self, slot: SlotState, group: MemoryGroup, reader: AssignedTask) -> None:
        """Count a reader of held results; have the slot drop those that all readers have read."""
        for name in dict.fromkeys(reader.run.inputs):
            completed = group.results.get(name)
            if completed is not None and completed.held:
                completed.remaining_readers -= 1
                if completed.remaining_readers <= 0:
                    self._out.append(instructions.DropHeldResultsInSlot(slot.id, [completed.task.run.task]))

    def _worth_holding(self, slot: SlotState, completed: CompletedCall) -> bool:
        """Return whether all readers of a result are here, and take a moment only."""
        readers = self._queue.list_waiting_tasks(completed.task.run.result)
        walls = slot.fork_server.mean_duration_s
        group = slot.memory_group
        assert group is not None
        return (
            len(readers) == completed.remaining_readers
            and group.wall_s < MAX_GROUP_S
            and all(r.run.library == slot.fork_server.name and r.slot is None for r in readers)
            and sum(walls.get(r.run.function, MAX_READERS_S + 1) for r in readers) <= MAX_READERS_S
        )

    def _queue_ready_readers(self, slot: SlotState, group: MemoryGroup, name: str) -> None:
        """Queue the tasks that have all they read, now that there is one more result."""
        for task in self._queue.list_waiting_tasks(name):
            missing = self._queue.missing_inputs(task)
            if (
                task.run.library == slot.fork_server.name
                and task.slot is None
                and all(n in group.results for n in missing)
            ):
                self._queue.stop_waiting(task)
                task.missing = 0
                group.ready.append(task)

    def advance(self, slot: SlotState) -> None:
        """Run the next call of the group of a slot, or end the group.

        Where no call of the group can run, results that have not been read by all are written; the
        group ends when that is done.
        """
        group = slot.memory_group
        if group is None or slot.killed or slot.in_flight:
            return
        needed = [
            completed for completed in group.unreported if completed.held and completed.remaining_readers > 0
        ]
        while needed and group.ready:
            task = group.ready.popleft()
            if self._queue.tasks.get(task.run.task) is task:
                slot.all_short = False
                self._queue.send_call(slot, task)
                return
        if not needed:
            slot.memory_group = None
            for completed in group.unreported:
                self._report(completed)
            self.report_consumed(
                [
                    completed.task.run.result
                    for completed in group.unreported
                    if self._queue.list_waiting_tasks(completed.task.run.result)
                ]
            )
            self._queue.queue_first(slot.fork_server, group.ready)
            return
        unwritten = [completed for completed in needed if not completed.writing]
        for completed in unwritten:
            completed.writing = True
        if unwritten:
            self._out.append(
                instructions.SpillResultsInSlot(slot.id, [completed.task.run.task for completed in unwritten])
            )

    def _report(self, completed: CompletedCall) -> None:
        """Report a call of a group that is over."""
        queue, run, reply = self._queue, completed.task.run, completed.reply
        there = reply.kind == "done" and not completed.held
        if queue.tasks.get(run.task) is not completed.task:  # it was cancelled
            if there:
                queue.discard_result(run)
            return
        del queue.tasks[run.task]
        if there:
            queue.publish_result(run, reply)
        elif reply.kind == "done":
            self._consumed.add(run.result)
        queue.report_finished(run, reply)

    def report_consumed(self, names: Iterable[str]) -> None:
        """Report which of these objects, which tasks wait for, will not come."""
        consumed = [name for name in names if name in self._consumed]
        if consumed:
            self._consumed.difference_update(consumed)
            self._queue.report_lost(consumed)

    def on_spilled(self, slot: SlotState, reply: Reply) -> bool:
        """Record that a slot has written a held result, or failed; return whether this is one."""
        group = slot.memory_group
        for completed in group.unreported if group is not None else ():
            if completed.task.run.task == reply.task and completed.writing:
                break
        else:
            return False
        completed.held = completed.writing = False
        if reply.kind == "wrote":
            completed.reply.info["digest"] = reply.info.get("digest", "")
            self._queue.store_result(completed.task.run, completed.reply)
        else:  # the call has failed
            completed.reply = reply
        return True

    def on_slot_lost(self, slot: SlotState) -> list[AssignedTask]:
        """Return the calls that have to run again, in their order, because a slot exits."""
        group, slot.memory_group = slot.memory_group, None
        if group is None:
            return []
        for completed in group.unreported:
            if completed.reply.kind == "done" and not completed.held:
                self._queue.discard_result(completed.task.run)
        return [*(completed.task for completed in group.unreported), *group.ready]
