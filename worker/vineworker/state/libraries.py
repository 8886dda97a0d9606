"""Libraries and their fork servers, and what happens when one of these or a slot exits."""

from __future__ import annotations

from typing import Any

from vinecore.protocol import messages
from vineworker.state import events, instructions
from vineworker.state.calls import CallScheduler
from vineworker.state.records import AssignedTask, ForkServerState

MAX_IDLE_EXITS = 5
"""A library is given up when more slots than this exit one after another without a call."""


class LibraryTable:
    """Starts, fills and stops fork servers.

    Parameters
    ----------
    out
        Takes instructions.
    calls
        Runs the calls of the libraries.
    sizes
        The objects that are here.
    """

    def __init__(self, out: list[Any], calls: CallScheduler, sizes: dict[str, int]) -> None:
        self._out, self._calls, self._fork_servers, self._sizes = out, calls, calls.fork_servers, sizes

    def install_library(self, event: messages.Library) -> None:
        """Install a library, or change the number of its slots."""
        fork_server = self._fork_servers.get(event.name)
        if fork_server is not None:
            fork_server.library = event
            self._fill_slots(fork_server)
            return
        fork_server = self._fork_servers[event.name] = ForkServerState(event.name, event, event.environment)
        mounts = [mount[0] for mount in event.options.get("mounts", ())]
        fork_server.missing = {
            name for name in (event.setup, event.environment, *mounts) if name and name not in self._sizes
        }
        self._start_if_complete(fork_server)

    def on_object_available(self, name: str) -> None:
        """Start the libraries for which this was the last missing object."""
        for fork_server in [
            fork_server for fork_server in self._fork_servers.values() if name in fork_server.missing
        ]:
            fork_server.missing.discard(name)
            self._start_if_complete(fork_server)

    def _start_if_complete(self, fork_server: ForkServerState) -> None:
        if not fork_server.missing and fork_server.library is not None and not fork_server.ready:
            self._out.append(
                instructions.StartForkServer(fork_server.name, fork_server.library, fork_server.environment)
            )

    def _fill_slots(self, fork_server: ForkServerState) -> None:
        if fork_server.library is not None and fork_server.ready:
            while len(fork_server.slots) < fork_server.library.slots:
                self._calls.new_slot(fork_server, None)
            self._calls.dispatch(fork_server)

    def on_ready(self, event: events.ForkServerReady) -> None:
        """Report a library that is ready, and start its slots."""
        fork_server = self._fork_servers.get(event.fork_server)
        if fork_server is None:
            return
        fork_server.ready = True
        if fork_server.library is not None:
            self._out.append(
                instructions.SendMessage(
                    messages.LibraryReady(fork_server.name, event.wall_s, event.versions)
                )
            )
            self._fill_slots(fork_server)
        else:
            self._calls.dispatch(fork_server)
            self._stop_if_outdated(fork_server)

    def on_slow(self, event: events.ForkServerSlow) -> None:
        """Report a library that takes long to start."""
        if event.fork_server in self._fork_servers:
            self._out.append(
                instructions.SendMessage(messages.LibrarySlow(event.fork_server, event.place, event.task))
            )

    def on_exited(self, event: events.ForkServerExited) -> None:
        """Report the tasks of a fork server that has exited."""
        fork_server = self._fork_servers.pop(event.fork_server, None)
        if fork_server is None:
            return
        self._kill_slots(fork_server)
        lost = [task for task in self._calls.tasks.values() if self._belongs_to(task, fork_server)]
        for task in lost:
            del self._calls.tasks[task.run.task]
            self._calls.stop_waiting(task)
        if fork_server.library is not None:
            self._out.append(
                instructions.SendMessage(
                    messages.LibraryFailed(fork_server.name, event.reason, event.final, event.payload)
                )
            )
        else:
            for task in lost:
                kind = "input" if event.final else "library" if task.slot is None else "crash"
                self._out.append(
                    instructions.SendMessage(
                        messages.TaskFailed(task.run.task, kind, {"reason": event.reason}, b"")
                    )
                )

    def _kill_slots(self, fork_server: ForkServerState) -> None:
        for slot in fork_server.slots.values():
            del self._calls.slots[slot.id]
            self._out.append(instructions.KillSlot(slot.id))
            self._calls.memory_results.on_slot_lost(slot)
            for task in slot.in_flight if fork_server.library is not None else ():
                self._calls.remove_in_flight(task)

    def _belongs_to(self, task: AssignedTask, fork_server: ForkServerState) -> bool:
        if fork_server.library is not None:
            return task.run.library == fork_server.name
        return task in fork_server.queue or (task.slot is not None and task.slot.fork_server is fork_server)

    def remove_library(self, event: messages.RemoveLibrary) -> None:
        """Stop a library, and drop its tasks."""
        fork_server = self._fork_servers.pop(event.name, None)
        if fork_server is None:
            return
        self._kill_slots(fork_server)
        for task in [task for task in self._calls.tasks.values() if task.run.library == event.name]:
            del self._calls.tasks[task.run.task]
            self._calls.stop_waiting(task)
        self._out.append(instructions.StopForkServer(event.name))

    def restart_python(self, _event: messages.Restart) -> None:
        """Fork the next Python tasks from new fork servers.

        The old ones stop when the tasks that were forked from them are over.
        """
        self._calls.python_generation += 1
        for fork_server in [
            fork_server for fork_server in self._fork_servers.values() if fork_server.library is None
        ]:
            self._stop_if_outdated(fork_server)

    def _stop_if_outdated(self, fork_server: ForkServerState) -> None:
        current = f"python{self._calls.python_generation or ''}:{fork_server.environment}"
        if (
            fork_server.library is None
            and fork_server.name != current
            and not fork_server.slots
            and not fork_server.queue
        ):
            del self._fork_servers[fork_server.name]
            self._out.append(instructions.StopForkServer(fork_server.name))

    def on_slot_exited(self, event: events.SlotExited) -> None:
        """Replace a slot that has exited; queue its calls again, but the one that crashed."""
        slot = self._calls.slots.pop(event.slot, None)
        if slot is None:
            return
        fork_server = slot.fork_server
        del fork_server.slots[slot.id]
        self._calls.send_kill_report(slot)
        if fork_server.library is None:
            for task in slot.in_flight:
                self._calls.report_crashed(task, event)
            self._stop_if_outdated(fork_server)
            return
        if event.running < 0 and not slot.killed:
            fork_server.idle_exits += 1
        for task in slot.in_flight:
            self._calls.remove_in_flight(task)
        anew = self._calls.memory_results.on_slot_lost(slot)
        for task in reversed(slot.in_flight):
            if task.run.task == event.running and not slot.killed:
                self._calls.report_crashed(task, event)
            elif task.missing or self._calls.missing_inputs(task):
                self._calls.requeue(task)
            elif self._calls.tasks.get(task.run.task) is task:
                fork_server.queue.appendleft(task)
        for task in reversed(anew):
            self._calls.requeue(task)
        if fork_server.idle_exits > MAX_IDLE_EXITS:
            self._out.append(instructions.StopForkServer(fork_server.name))
            self.on_exited(
                events.ForkServerExited(
                    fork_server.name, f"its slots die: {event.info.get('reason')}", False, b""
                )
            )
        else:
            self._fill_slots(fork_server)
