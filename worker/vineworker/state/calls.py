"""Tasks: waiting for objects, queueing, running in slots or in processes of their own.

A task waits until all objects it reads are here. Then it queues for a slot of its library, or gets
a process of its own. A task whose inputs are made on this worker starts the moment they are,
without asking the manager. Where calls are short, a call that lacks nothing but the result of
another one is sent behind that to the same slot, so that a chain runs there without a message.

A call is *in flight* when it is written to the socket of a slot and not answered yet. Only the
first one can be running, and the others cannot be taken back: so nothing is sent behind a call, or
goes behind one, if its function is not known to be short.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vinecore.protocol import INLINE_LIMIT, messages
from vineworker.slot_protocol import Reply
from vineworker.state import events, instructions
from vineworker.state.memory_results import InMemoryResults
from vineworker.state.objects import ObjectTable
from vineworker.state.records import (
    SANDBOX_OPTIONS,
    AssignedTask,
    ForkServerState,
    SlotState,
    required_objects,
)

UNEXPECTED_REPLY = "its process gave an answer that belongs to no call"


class CallScheduler:
    """Decides when and where tasks run.

    Parameters
    ----------
    out
        Takes instructions.
    objects
        The objects that are here.
    slots
        All slots by number.

    Attributes
    ----------
    tasks
        The tasks of the manager that are not over, by number.
    fork_servers
        The processes that fork slots, by name.
    processes
        Numbers of the tasks that run a command.
    waiting
        Object -> tasks that lack it.
    producers_in_flight
        Object -> the call in flight that makes it.
    python_generation
        How often the manager has had Python tasks forked from new fork servers.
    """

    def __init__(self, out: list[Any], objects: ObjectTable, slots: dict[int, SlotState]) -> None:
        self._out, self._objects, self._sizes, self.slots = out, objects, objects.sizes, slots
        self.tasks: dict[int, AssignedTask] = {}
        self.fork_servers: dict[str, ForkServerState] = {}
        self.processes: set[int] = set()
        self.waiting: dict[str, list[AssignedTask]] = {}
        self.producers_in_flight: dict[str, AssignedTask] = {}
        self.python_generation = 0
        self.memory_results = InMemoryResults(out, self, objects.consumed)
        self._last_slot = 0

    def list_waiting_tasks(self, name: str) -> list[AssignedTask]:
        """Return the tasks that lack an object."""
        return list(self.waiting.get(name, ()))

    def missing_inputs(self, task: AssignedTask) -> list[str]:
        """Return what a task reads and is not here."""
        return [name for name in required_objects(task.run) if name not in self._sizes]

    def on_object_available(self, name: str) -> None:
        """Queue the tasks for which this was the last missing object."""
        for task in self.waiting.pop(name, ()):
            task.missing -= 1
            if not task.missing and task.slot is None and self.tasks.get(task.run.task) is task:
                self._enqueue(task, first=True)

    def run_task(self, event: messages.RunTask) -> None:
        """Take a task of the manager."""
        # it died while this was on its way
        if event.library and event.library not in self.fork_servers:
            self._report_missing_library(event)
            return
        task = self.tasks[event.task] = AssignedTask(event)
        self._enqueue_or_wait(task, first=False)

    def _enqueue_or_wait(self, task: AssignedTask, *, first: bool) -> None:
        """Have a task wait for the objects that are not here, or queue."""
        lacking = self.missing_inputs(task)
        task.missing = len(lacking)
        for name in lacking:
            self.waiting.setdefault(name, []).append(task)
        if not lacking:
            self._enqueue(task, first=first)
            return
        self.memory_results.report_consumed(lacking)
        if len(lacking) == 1 and lacking[0] in self.producers_in_flight:
            self._chain_successor(self.producers_in_flight[lacking[0]])

    def _enqueue(self, task: AssignedTask, *, first: bool) -> None:
        run = task.run
        if run.library:
            fork_server = self.fork_servers[run.library]
        elif run.options.get("command"):
            self.processes.add(run.task)
            self._out.append(instructions.StartProcess(run))
            return
        else:
            fork_server = self._get_python_fork_server(run.options.get("environment", ""))
        # it became ready by work done here: finish what was begun
        if first:
            fork_server.queue.appendleft(task)
        else:
            fork_server.queue.append(task)
        # else others wait already, because no slot has room
        if first or len(fork_server.queue) == 1:
            self.dispatch(fork_server)

    def queue_first(self, fork_server: ForkServerState, tasks: Iterable[AssignedTask]) -> None:
        """Have tasks go before all others, in this order."""
        for task in reversed(list(tasks)):
            self._enqueue(task, first=True)

    def _report_missing_library(self, run: messages.RunTask) -> None:
        info = {"reason": "the library is not on this worker"}
        self._out.append(instructions.SendMessage(messages.TaskFailed(run.task, "library", info, b"")))

    def _get_python_fork_server(self, environment: str) -> ForkServerState:
        name = f"python{self.python_generation or ''}:{environment}"
        fork_server = self.fork_servers.get(name)
        if fork_server is None:
            fork_server = self.fork_servers[name] = ForkServerState(name, None, environment)
            self._out.append(instructions.StartForkServer(name, None, environment))
        return fork_server

    def dispatch(self, fork_server: ForkServerState) -> None:
        """Send queued calls to slots that have room."""
        if not fork_server.ready:
            return
        queue = fork_server.queue
        if fork_server.library is None:
            while queue:
                task = queue.popleft()
                if self.tasks.get(task.run.task) is task:
                    self.send_call(self.new_slot(fork_server, task.run), task)
            return
        while queue and fork_server.slots:
            if self.tasks.get(queue[0].run.task) is not queue[0]:
                queue.popleft()  # it was cancelled
                continue
            slot = min(fork_server.slots.values(), key=_slot_load)
            depth = fork_server.max_in_flight_with(queue[0].run)
            if slot.killed or slot.memory_group or len(slot.in_flight) >= (depth if slot.all_short else 1):
                return
            slot.all_short = depth > 1
            self.send_call(slot, queue.popleft())

    def send_call(self, slot: SlotState, task: AssignedTask, fed: tuple[str, int] | None = None) -> None:
        """Have a slot run a call."""
        run = task.run
        new = [name for name in run.shared if name not in slot.shared_objects]
        slot.shared_objects.update(new)
        hold, held = self.memory_results.hold_limits(slot, task), self.memory_results.held_inputs(slot, task)
        task.slot = slot
        slot.in_flight.append(task)
        self._out.append(instructions.SendCall(slot.id, run, new, fed, hold, held))
        if slot.fork_server.library is not None:
            self.producers_in_flight[run.result] = task
            self._chain_successor(task)

    def _chain_successor(self, maker: AssignedTask) -> None:
        """Send a call behind the one in flight that makes its last missing input, to the same slot.

        Only the first that waits for the result: others may run beside that one, in other slots.
        """
        waiting, slot = self.waiting.get(maker.run.result), maker.slot
        if not waiting or slot is None or slot.killed or not slot.all_short:
            return
        task = waiting[0]
        run, fork_server = task.run, slot.fork_server
        if (
            task.missing == 1
            and task.slot is None
            and run.library == fork_server.name
            and maker.run.result in run.inputs
            and 1 < fork_server.max_in_flight_with(run) > len(slot.in_flight)
            and self.tasks.get(maker.run.task) is maker
        ):
            self.send_call(slot, task, (maker.run.result, maker.run.task))

    def new_slot(self, fork_server: ForkServerState, run: messages.RunTask | None) -> SlotState:
        """Have a slot forked, for all calls of a library or for one Python task."""
        self._last_slot += 1
        slot = self.slots[self._last_slot] = fork_server.slots[self._last_slot] = SlotState(
            self._last_slot, fork_server
        )
        self._out.append(instructions.StartSlot(fork_server.name, slot.id, run))
        return slot

    def on_calls_returned(self, event: events.CallsReturned) -> None:
        """Take replies of a slot, in the order of the calls."""
        slot = self.slots.get(event.slot)
        if slot is None:
            return
        fork_server = slot.fork_server
        for reply in event.replies:
            if self.memory_results.on_spilled(slot, reply):
                continue
            if not slot.in_flight or slot.in_flight[0].run.task != reply.task:
                self._kill_on_protocol_violation(slot)
                return
            task = slot.in_flight.popleft()
            fork_server.idle_exits = 0
            if reply.info.pop("ends", None) and not slot.killed:
                # its process cannot run another call, and ends; no task is to blame
                slot.killed = True
                self._out.append(instructions.KillSlot(slot.id))
            if fork_server.library is None:
                # its outputs are collected first; then it comes back as `ProcessTaskFinished`
                continue
            self.remove_in_flight(task)
            if reply.kind == "unfed":
                self.requeue(task)
                continue
            fork_server.record_duration(task.run.function, reply.wall_s)
            if not slot.all_short and not SANDBOX_OPTIONS.isdisjoint(task.run.options):
                slot.all_short = not slot.in_flight
                # then it comes back as `ProcessTaskFinished`
                self._out.append(instructions.CollectOutputs(task.run, reply))
                continue
            slot.all_short = slot.all_short or not slot.in_flight
            if self.memory_results.on_call_finished(slot, task, reply):
                continue
            if self.tasks.get(reply.task) is task:
                del self.tasks[reply.task]
                self._finish_call(task.run, reply)
            elif reply.kind == "done" and not _is_inline(reply) and not self._objects.has(task.run.result):
                # its file has to go
                self._out += [
                    instructions.StoreResultFile(task.run.result, reply.task),
                    instructions.Delete([task.run.result]),
                ]
        self._kill_if_cancelled(slot)
        if slot.in_flight:
            self._chain_successor(slot.in_flight[-1])
        self.memory_results.advance(slot)
        self.dispatch(fork_server)

    def _kill_on_protocol_violation(self, slot: SlotState) -> None:
        """Kill a slot that replies to a call which is not in flight.

        User code has written to the socket of the slot.
        """
        if not slot.killed:
            slot.killed = True
            self._out.append(instructions.KillSlot(slot.id))
            if slot.in_flight:
                task = slot.in_flight.popleft()
                self.remove_in_flight(task)
                self.report_crashed(
                    task, events.SlotExited(slot.id, task.run.task, {"reason": UNEXPECTED_REPLY})
                )

    def remove_in_flight(self, task: AssignedTask) -> None:
        """Note that a call is not in flight any more."""
        task.slot = None
        if self.producers_in_flight.get(task.run.result) is task:
            del self.producers_in_flight[task.run.result]
        # it was to be fed, and whatever it has got was not kept
        if task.missing:
            self.stop_waiting(task)

    def requeue(self, task: AssignedTask) -> None:
        """Queue a call that was in flight and has not been run."""
        if self.tasks.get(task.run.task) is task:
            self._enqueue_or_wait(task, first=True)

    def _finish_call(self, run: messages.RunTask, reply: Reply) -> None:
        if reply.kind == "done":
            self.store_result(run, reply)
            # what waits for it starts before the manager is told
            self.publish_result(run, reply)
        self.report_finished(run, reply)

    def store_result(self, run: messages.RunTask, reply: Reply) -> None:
        """Store a result where readers look for it."""
        if _is_stored(run, reply):
            inline = _is_inline(reply)
            self._out.append(
                instructions.StoreBytes(run.result, reply.payload)
                if inline
                else instructions.StoreResultFile(run.result, run.task, reply.info.get("digest", ""))
            )

    def publish_result(self, run: messages.RunTask, reply: Reply) -> None:
        """Enter a stored result as an object that tasks can read."""
        if _is_stored(run, reply):
            self._objects.make_available(run.result, reply.size, reply.info.get("digest", ""))

    def discard_result(self, run: messages.RunTask) -> None:
        """Delete a stored result that is not needed."""
        if not self._objects.has(run.result):
            self._out.append(instructions.Delete([run.result]))

    def report_finished(self, run: messages.RunTask, reply: Reply) -> None:
        """Tell the manager how a call has ended."""
        if reply.kind == "done":
            sent = reply.payload if run.return_result else b""
            self._out.append(
                instructions.SendMessage(
                    messages.TaskDone(run.task, reply.size, reply.wall_s, reply.info, sent)
                )
            )
        else:
            self._out.append(
                instructions.SendMessage(messages.TaskFailed(run.task, reply.kind, reply.info, reply.payload))
            )

    def report_lost(self, names: list[str]) -> None:
        """Tell the manager that objects are lost."""
        self._out.append(instructions.SendMessage(messages.ObjectsLost(names)))

    def report_crashed(self, task: AssignedTask, event: events.SlotExited) -> None:
        """Tell the manager that the process of a task has died."""
        if self.tasks.get(task.run.task) is task:
            del self.tasks[task.run.task]
            self._out.append(
                instructions.SendMessage(messages.TaskFailed(task.run.task, "crash", event.info, b""))
            )

    def on_process_task_finished(self, event: events.ProcessTaskFinished) -> None:
        """Report a task with a process of its own, and enter its outputs."""
        self.processes.discard(event.task)
        task = self.tasks.pop(event.task, None)
        if task is None:
            # it was cancelled; what it should have made may have been made by another one since
            self._out.append(
                instructions.Delete([name for name in event.outputs if not self._objects.has(name)])
            )
            return
        self._out.append(instructions.SendMessage(event.message))
        info = event.message.info
        digests = {**info.get("digests", {}), task.run.result: info.get("digest", "")}
        for name, size in event.outputs.items():
            self._objects.make_available(name, size, digests.get(name, ""))

    def on_time_limit_exceeded(self, event: events.TimeLimitExceeded) -> None:
        """Kill the slot of a call that runs too long.

        Another slot takes its place. The call has failed when nothing of it runs any more.
        """
        task = self.tasks.get(event.message.task)
        if task is not None and task.slot is not None and not task.slot.killed:
            task.slot.killed, task.slot.kill_report = True, event.message
            self._out.append(instructions.KillSlot(task.slot.id))

    def on_disk_exhausted(self, event: events.DiskExhausted) -> None:
        """Kill a slot that has filled the disk; the call that it runs, if any, has failed."""
        slot = self.slots.get(event.slot)
        if slot is None or slot.killed:
            return
        slot.killed = True
        if slot.in_flight:
            slot.kill_report = messages.TaskFailed(slot.in_flight[0].run.task, "exhausted", event.info, b"")
        self._out.append(instructions.KillSlot(slot.id))

    def send_kill_report(self, slot: SlotState) -> None:
        """Report the call for which a slot was killed, unless it has ended before."""
        if slot.kill_report is not None and self.tasks.pop(slot.kill_report.task, None) is not None:
            self._out.append(instructions.SendMessage(slot.kill_report))

    def cancel_tasks(self, event: messages.Cancel) -> None:
        """Cancel tasks."""
        for number in event.tasks:
            task = self.tasks.pop(number, None)
            if task is None:
                continue
            if task.slot is not None:
                self.stop_waiting(task)
                self._kill_if_cancelled(task.slot)
            elif number in self.processes:
                self._out.append(instructions.KillProcess(number))
            else:
                self.stop_waiting(task)

    def stop_waiting(self, task: AssignedTask) -> None:
        """Have a task wait for no object any more."""
        for name in required_objects(task.run) if task.missing else ():
            waiting = self.waiting.get(name, [])
            if task in waiting:
                waiting.remove(task)
                if not waiting:
                    del self.waiting[name]

    def wait_again(self, gone: set[str]) -> None:
        """Have tasks that have not begun wait for objects that were removed.

        The objects may come again.
        """
        for task in self.tasks.values():
            lacking = gone.intersection(required_objects(task.run))
            if (
                not lacking
                or task.slot is not None
                or (not task.missing and not self._remove_from_queue(task))
            ):
                continue
            task.missing += len(lacking)
            for name in lacking:
                self.waiting.setdefault(name, []).append(task)

    def _remove_from_queue(self, task: AssignedTask) -> bool:
        """Remove a task from its queue; return whether it was in one."""
        for fork_server in self.fork_servers.values():
            if task in fork_server.queue:
                fork_server.queue.remove(task)
                return True
        return False

    def _kill_if_cancelled(self, slot: SlotState) -> None:
        """Kill a slot that runs a cancelled call.

        What is behind that call in the socket of the slot goes to another slot.
        """
        if slot.in_flight and not slot.killed:
            first = slot.in_flight[0]
            if self.tasks.get(first.run.task) is not first:
                slot.killed = True
                self._out.append(instructions.KillSlot(slot.id))

    def return_calls(self, event: messages.StealRequest) -> None:
        """Give queued calls of a library back to the manager, for other workers."""
        fork_server = self.fork_servers.get(event.library)
        given: list[int] = []
        while fork_server is not None and fork_server.queue and len(given) < event.max_calls:
            task = fork_server.queue.pop()
            if self.tasks.pop(task.run.task, None) is not None:
                given.append(task.run.task)
        self._out.append(instructions.SendMessage(messages.StealResponse(event.library, given)))


def _slot_load(slot: SlotState) -> tuple[bool, bool, int]:
    return slot.killed or slot.memory_group is not None, not slot.all_short, len(slot.in_flight)


def _is_stored(run: messages.RunTask, reply: Reply) -> bool:
    """Return whether a result stays here: not if only the manager wants it."""
    return not (run.return_result and reply.payload and run.options.get("once"))


def _is_inline(reply: Reply) -> bool:
    """Return whether a result is in its reply and not in a file."""
    return reply.size <= INLINE_LIMIT
