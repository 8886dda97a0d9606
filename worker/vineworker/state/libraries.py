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
        self._out, self._calls, self._hosts, self._sizes = out, calls, calls.hosts, sizes

    def install(self, event: messages.Library) -> None:
        """Install a library, or change the number of its slots."""
        host = self._hosts.get(event.name)
        if host is not None:
            host.library = event
            self._fill_slots(host)
            return
        host = self._hosts[event.name] = ForkServerState(event.name, event, event.environment)
        mounts = [mount[0] for mount in event.options.get("mounts", ())]
        host.missing = {
            name for name in (event.setup, event.environment, *mounts) if name and name not in self._sizes
        }
        self._start_if_complete(host)

    def on_object_available(self, name: str) -> None:
        """Start the libraries for which this was the last missing object."""
        for host in [host for host in self._hosts.values() if name in host.missing]:
            host.missing.discard(name)
            self._start_if_complete(host)

    def _start_if_complete(self, host: ForkServerState) -> None:
        if not host.missing and host.library is not None and not host.ready:
            self._out.append(instructions.StartForkServer(host.name, host.library, host.environment))

    def _fill_slots(self, host: ForkServerState) -> None:
        if host.library is not None and host.ready:
            while len(host.slots) < host.library.slots:
                self._calls.new_slot(host, None)
            self._calls.dispatch(host)

    def on_ready(self, event: events.ForkServerReady) -> None:
        """Report a library that is ready, and start its slots."""
        host = self._hosts.get(event.host)
        if host is None:
            return
        host.ready = True
        if host.library is not None:
            self._out.append(
                instructions.SendMessage(messages.LibraryReady(host.name, event.wall_s, event.versions))
            )
            self._fill_slots(host)
        else:
            self._calls.dispatch(host)
            self._stop_if_outdated(host)

    def on_slow(self, event: events.HostSlow) -> None:
        """Report a library that takes long to start."""
        if event.host in self._hosts:
            self._out.append(instructions.SendMessage(messages.LibrarySlow(event.host, event.where)))

    def on_exited(self, event: events.ForkServerExited) -> None:
        """Report the tasks of a fork server that has exited."""
        host = self._hosts.pop(event.host, None)
        if host is None:
            return
        self._kill_slots(host)
        lost = [task for task in self._calls.tasks.values() if self._belongs_to(task, host)]
        for task in lost:
            del self._calls.tasks[task.run.task]
            self._calls.stop_waiting(task)
        if host.library is not None:
            self._out.append(
                instructions.SendMessage(
                    messages.LibraryFailed(host.name, event.reason, event.final, event.payload)
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

    def _kill_slots(self, host: ForkServerState) -> None:
        for slot in host.slots.values():
            del self._calls.slots[slot.id]
            self._out.append(instructions.KillSlot(slot.id))
            self._calls.memory.on_slot_lost(slot)
            for task in slot.in_flight if host.library is not None else ():
                self._calls.remove_in_flight(task)

    def _belongs_to(self, task: AssignedTask, host: ForkServerState) -> bool:
        if host.library is not None:
            return task.run.library == host.name
        return task in host.queue or (task.slot is not None and task.slot.host is host)

    def remove(self, event: messages.RemoveLibrary) -> None:
        """Stop a library, and drop its tasks."""
        host = self._hosts.pop(event.name, None)
        if host is None:
            return
        self._kill_slots(host)
        for task in [task for task in self._calls.tasks.values() if task.run.library == event.name]:
            del self._calls.tasks[task.run.task]
            self._calls.stop_waiting(task)
        self._out.append(instructions.StopForkServer(event.name))

    def restart_python(self, _event: messages.Restart) -> None:
        """Fork the next Python tasks from new fork servers.

        The old ones stop when the tasks that were forked from them are over.
        """
        self._calls.python_generation += 1
        for host in [host for host in self._hosts.values() if host.library is None]:
            self._stop_if_outdated(host)

    def _stop_if_outdated(self, host: ForkServerState) -> None:
        current = f"python{self._calls.python_generation or ''}:{host.environment}"
        if host.library is None and host.name != current and not host.slots and not host.queue:
            del self._hosts[host.name]
            self._out.append(instructions.StopForkServer(host.name))

    def on_slot_exited(self, event: events.SlotExited) -> None:
        """Replace a slot that has exited; queue its calls again, but the one that crashed."""
        slot = self._calls.slots.pop(event.slot, None)
        if slot is None:
            return
        host = slot.host
        del host.slots[slot.id]
        self._calls.report_verdict(slot)
        if host.library is None:
            for task in slot.in_flight:
                self._calls.report_crashed(task, event)
            self._stop_if_outdated(host)
            return
        if event.running < 0 and not slot.killed:
            host.idle_exits += 1
        for task in slot.in_flight:
            self._calls.remove_in_flight(task)
        anew = self._calls.memory.on_slot_lost(slot)
        for task in reversed(slot.in_flight):
            if task.run.task == event.running and not slot.killed:
                self._calls.report_crashed(task, event)
            elif task.missing or self._calls.missing_inputs(task):
                self._calls.requeue(task)
            elif self._calls.tasks.get(task.run.task) is task:
                host.queue.appendleft(task)
        for task in reversed(anew):
            self._calls.requeue(task)
        if host.idle_exits > MAX_IDLE_EXITS:
            self._out.append(instructions.StopForkServer(host.name))
            self.on_exited(
                events.ForkServerExited(host.name, f"its slots die: {event.info.get('reason')}", False, b"")
            )
        else:
            self._fill_slots(host)
