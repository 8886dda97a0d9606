"""A worker: its real state machine, with processes, transfers and a disk in simulated time.

The counterpart of `vineworker.session.session`: fork servers start, slots are forked and run their calls in
order, objects are fetched and uploaded over shared links, and the disk can be full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler.state import MB, disk_bytes
from vinecore.simulate.context import SimulationContext
from vinecore.simulate.network import Flow, Link

MAX_CONCURRENT_TRANSFERS = 8  # at a time in each direction, as many as a worker has threads for them


class Execution:
    """A task that has been begun."""

    __slots__ = ("began", "computing", "flow", "over", "run", "slot")

    def __init__(self, run: m.RunTask, slot: SimulatedSlot, now: float) -> None:
        self.run, self.slot, self.began = run, slot, now
        self.computing = 0.0
        self.flow: Flow | None = None
        self.over = False


class SimulatedSlot:
    """A forked process."""

    __slots__ = ("calls", "fork_server", "id", "now", "single", "up")

    def __init__(self, number: int, fork_server: str, single: m.RunTask | None) -> None:
        self.id, self.fork_server, self.single = number, fork_server, single
        self.calls: deque[m.RunTask] = deque()
        self.now: Execution | None = None
        self.up = False


class Transfer:
    """An object on its way, from or to this worker, as this worker has been told."""

    __slots__ = ("flow", "name", "over", "size", "source", "threads")

    def __init__(self, name: str, size: int, source: SimulatedWorker | None, threads: ThreadSlots) -> None:
        self.name, self.size, self.source, self.threads = name, size, source, threads
        self.flow: Flow | None = None
        self.over = False


class ThreadSlots:
    """So many transfers at a time; the others wait in a row."""

    def __init__(self, count: int) -> None:
        self._free, self._waiting = count, deque[Callable[[], None]]()

    def submit(self, begin: Callable[[], None]) -> None:
        """Begin as soon as there is a thread for it."""
        if self._free:
            self._free -= 1
            begin()
        else:
            self._waiting.append(begin)

    def release(self) -> None:
        """Give the thread to the next operation that waits."""
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._free += 1


class ManagerEnd(Protocol):
    """What a worker needs of the simulated manager."""

    def receive_from_worker(self, worker: SimulatedWorker, messages: list[m.Message]) -> None:
        """Deliver messages of a worker, in order."""

    def on_object_stored(self, name: str, size: int) -> None:
        """Note that an upload is complete."""

    def find_worker(self, address: str) -> SimulatedWorker | None:
        """Return the connected worker at an address."""


class SimulatedWorker:
    """A worker: its state machine, and processes, transfers and a disk in simulated time.

    Parameters
    ----------
    context
        What all workers share.
    manager
        The simulated manager.
    number
        The worker's number, from 1.
    """

    def __init__(self, context: SimulationContext, manager: ManagerEnd, number: int) -> None:
        self._context, self._manager, self.number = context, manager, number
        self._clock, self._events = context.clock, context.worker_events
        self.alive = True
        self.joined_at = context.clock.now
        self.address = f"node{number}:1"
        self.up, self.down = (Link(context.clock, context.cluster.bandwidth) for _ in range(2))
        # when what was sent last arrives, in both directions
        self.last_delivery_to_worker = self.last_delivery_to_manager = 0.0
        self.objects: dict[str, int] = {}
        self.disk_used = 0
        self._state_machine = context.state_machine()
        self._outgoing: list[m.Message] = []
        self._fork_servers: dict[str, object] = {}
        self._fork_servers_with_imports: set[str] = set()  # fork servers that know what their tasks import
        self._slots: dict[int, SimulatedSlot] = {}
        self.serving: dict[Transfer, SimulatedWorker] = {}  # transfers from here, and to whom
        self._transfers: dict[Transfer, None] = {}
        self._fetches, self._uploads = (
            ThreadSlots(MAX_CONCURRENT_TRANSFERS),
            ThreadSlots(MAX_CONCURRENT_TRANSFERS),
        )
        instructions = context.worker_instructions
        self._executors: dict[type, Callable[[Any], None]] = {
            instructions.SendMessage: lambda sent: self._outgoing.append(sent.message),
            instructions.StartForkServer: self._start_fork_server,
            instructions.StopForkServer: lambda stop: self._stop_fork_server(stop.fork_server),
            instructions.StartSlot: self._start_slot,
            instructions.KillSlot: self._kill_slot,
            instructions.SendCall: self._send_call,
            instructions.DropSharedInSlot: lambda _drop: None,
            instructions.StartFetch: lambda start: self._fetches.submit(
                lambda: self._start_fetch(start.fetch)
            ),
            instructions.StartUpload: lambda start: self._uploads.submit(
                lambda: self._start_upload(start.name)
            ),
            instructions.StoreBytes: lambda store: self._store_object(store.name, len(store.payload)),
            instructions.StoreResultFile: lambda store: self._store_object(
                store.name, context.sizes[store.name]
            ),
            instructions.Delete: lambda delete: self._delete_objects(delete.names),
            instructions.PersistObject: lambda _persist: None,
            instructions.ReleasePersisted: lambda _release: None,
        }

    def handle(self, *events: Any) -> None:
        """Give events to the state machine, do what it asks for, and send what it says."""
        if not self.alive:
            return
        for instruction in self._state_machine.handle(events):
            self._executors[type(instruction)](instruction)
        if self._outgoing:
            said, self._outgoing = self._outgoing, []
            self._manager.receive_from_worker(self, said)

    def send(self, *messages: m.Message) -> None:
        """Say something of which the state machine does not know."""
        if self.alive:
            self._manager.receive_from_worker(self, list(messages))

    def kill(self) -> None:
        """Remove the machine, with its processes, files and transfers."""
        self.alive = False
        for slot in self._slots.values():
            self._abort_slot(slot)
        for transfer in [*self._transfers, *self.serving]:
            transfer.over = True
            if transfer.flow is not None:
                transfer.flow.cancel()
        for transfer in self._transfers:
            if transfer.source is not None:
                transfer.source.serving.pop(transfer, None)
        for transfer, other in self.serving.items():
            self._clock.schedule_in(
                self._context.cluster.latency_s, other.on_source_lost, transfer, "the connection broke"
            )

    # ---- fork servers and slots

    def _start_fork_server(self, x: Any) -> None:
        costs, token = self._context.costs, object()
        self._fork_servers[x.fork_server] = token
        seconds = costs.interpreter_s + (costs.imports_s if x.library is not None else 0.0)
        self._clock.schedule_in(seconds, self._on_fork_server_ready, x.fork_server, token, seconds)

    def _on_fork_server_ready(self, fork_server: str, token: object, seconds: float) -> None:
        if self._fork_servers.get(fork_server) is token:
            self.handle(self._events.ForkServerReady(fork_server, seconds, {}))

    def _stop_fork_server(self, fork_server: str) -> None:
        self._fork_servers.pop(fork_server, None)
        for slot in [slot for slot in self._slots.values() if slot.fork_server == fork_server]:
            self._remove_slot(slot)

    def _start_slot(self, x: Any) -> None:
        costs = self._context.costs
        slot = self._slots[x.slot] = SimulatedSlot(x.slot, x.fork_server, x.run)
        seconds = costs.fork_s
        if x.run is not None:
            slot.now = self._start_task(x.run, slot)
            seconds = costs.sandbox_s + (costs.fork_s if costs.warm_fork else costs.interpreter_s)
            seconds += (
                0.0
                if costs.warm_fork and x.fork_server in self._fork_servers_with_imports
                else costs.imports_s
            )
        self._clock.schedule_in(seconds, self._on_slot_ready, slot)

    def _on_slot_ready(self, slot: SimulatedSlot) -> None:
        if self._slots.get(slot.id) is not slot or not self.alive:
            return
        slot.up = True
        if slot.now is not None:
            self._read_inputs(slot.now)
        else:
            self._start_next_call(slot)

    def _kill_slot(self, x: Any) -> None:
        slot = self._slots.get(x.slot)
        if slot is not None:
            running = slot.now.run.task if slot.now is not None else -1
            self._remove_slot(slot)
            down = self._events.SlotExited(slot.id, running, {"reason": "it was killed"})
            self._clock.schedule_in(0.0, self.handle, down)

    def _remove_slot(self, slot: SimulatedSlot) -> None:
        self._slots.pop(slot.id, None)
        self._abort_slot(slot)

    def _abort_slot(self, slot: SimulatedSlot) -> None:
        """Break off what a slot is doing; it does nothing more."""
        execution, slot.now, slot.up = slot.now, None, False
        if execution is not None:
            execution.over = True
            if execution.flow is not None:
                execution.flow.cancel()
            self._context.count_busy_time(execution.run, execution.began)

    def _send_call(self, x: Any) -> None:
        slot = self._slots.get(x.slot)
        if slot is not None and slot.single is None:
            slot.calls.append(x.run)
            self._start_next_call(slot)

    # ---- tasks

    def _start_next_call(self, slot: SimulatedSlot) -> None:
        if slot.up and slot.now is None and slot.calls:
            slot.now = execution = self._start_task(slot.calls.popleft(), slot)
            self._clock.schedule_in(self._context.costs.call_s, self._read_inputs, execution)

    def _start_task(self, run: m.RunTask, slot: SimulatedSlot) -> Execution:
        execution = Execution(run, slot, self._clock.now)
        self._context.count_execution(run)
        return execution

    def _read_inputs(self, execution: Execution) -> None:
        """Start to read the inputs that a task streams from the storage."""
        if execution.over:
            return
        reads = self._context.task_of(execution.run.task).reads
        if reads:
            self._clock.schedule_in(
                self._context.cluster.storage.latency_s, self._stream_input, execution, reads
            )
        else:
            self._start_computing(execution)

    def _stream_input(self, execution: Execution, size: int) -> None:
        if not execution.over:
            self._context.report.add_bytes("streamed", size)
            execution.flow = Flow(
                (self._context.storage, self.down), size, lambda: self._start_computing(execution)
            )

    def _start_computing(self, execution: Execution) -> None:
        execution.computing = self._clock.now
        self._clock.schedule_in(
            self._context.task_of(execution.run.task).seconds, self._on_computed, execution
        )

    def _on_computed(self, execution: Execution) -> None:
        if execution.over:
            return
        slot, run, context = execution.slot, execution.run, self._context
        execution.over, slot.now = True, None
        size = context.sizes[run.result]
        fits = self._fits_on_disk(size)
        self._context.count_busy_time(run, execution.began)
        if fits:
            self._context.count_useful_time(run)
        wall = self._clock.now - execution.began
        payload = _zero_bytes(size) if size <= INLINE_LIMIT else b""
        reply = context.reply(run.task, "done", size, wall, {}, payload)
        if not fits:
            reply = context.reply(run.task, "disk", 0, wall, {"size": size, "room": self._free_disk()}, b"")
        if slot.single is None:
            self.handle(self._events.CallsReturned(slot.id, [reply]))
            self._start_next_call(slot)
        else:
            self._on_single_finished(slot, reply)

    def _on_single_finished(self, slot: SimulatedSlot, reply: Any) -> None:
        """Report the result of a Python task and remove its process."""
        run = slot.single
        assert run is not None
        del self._slots[slot.id]
        self._fork_servers_with_imports.add(slot.fork_server)
        over = m.TaskFailed(run.task, reply.kind, reply.info, b"")
        outputs: dict[str, int] = {}
        if reply.kind == "done":
            info = {"exit_code": 0, "outputs": {}, "digests": {}}
            over = m.TaskDone(
                run.task, reply.size, reply.wall_s, info, reply.payload if run.return_result else b""
            )  # type: ignore[assignment]
            outputs = {run.result: reply.size}
            self._store_object(run.result, reply.size)
        self.handle(
            self._events.CallsReturned(slot.id, [reply]),
            self._events.SlotExited(slot.id, -1, {}),
            self._events.ProcessTaskFinished(run.task, over, outputs),
        )

    # ---- objects

    def _free_disk(self) -> int:
        return self._context.cluster.disk_mb * MB - self.disk_used

    def _fits_on_disk(self, size: int) -> bool:
        return disk_bytes(size) <= self._free_disk()

    def _store_object(self, name: str, size: int) -> None:
        self.disk_used += disk_bytes(size) - disk_bytes(self.objects.get(name, 0))
        self.objects[name] = size
        self._context.report.peak_disk_bytes = max(self._context.report.peak_disk_bytes, self.disk_used)

    def _delete_objects(self, names: Iterable[str]) -> None:
        for name in names:
            self.disk_used -= disk_bytes(self.objects.pop(name, 0))

    def _transfer_finished(self, transfer: Transfer) -> None:
        """Remove a transfer that has ended in any way, and start the next one."""
        transfer.over = True
        del self._transfers[transfer]
        if transfer.source is not None:
            transfer.source.serving.pop(transfer, None)
        transfer.threads.release()

    def _start_fetch(self, fetch: m.Fetch) -> None:
        context = self._context
        source = self._manager.find_worker(fetch.source)
        if source is None and ":" in fetch.source and "://" not in fetch.source:
            self.send(m.FetchFailed(fetch.name, fetch.source, "no route", False))
            self._fetches.release()
            return
        size = context.sizes[fetch.name]
        transfer = Transfer(fetch.name, size, source, self._fetches)
        self._transfers[transfer] = None
        kind, link, wait = "to_workers", context.manager_up, 2 * context.cluster.latency_s
        if source is not None:
            source.serving[transfer] = self
            kind, link = "peers", source.up
        elif "://" in fetch.source:
            kind, link, wait = "storage", context.storage, context.cluster.storage.latency_s
        self._clock.schedule_in(wait, self._start_flow, transfer, fetch, (link, self.down), kind)

    def _start_flow(self, transfer: Transfer, fetch: m.Fetch, links: tuple[Link, ...], kind: str) -> None:
        source = transfer.source
        if transfer.over:
            return
        if source is not None and transfer.name not in source.objects:
            self._transfer_finished(transfer)
            self.send(m.FetchFailed(fetch.name, fetch.source, "it is not there", True))
        elif not self._fits_on_disk(transfer.size):
            self._transfer_finished(transfer)
            self.send(m.FetchFailed(fetch.name, fetch.source, "no room", False, self._free_disk()))
        else:
            if kind == "storage":
                self._context.report.add_bytes(kind, transfer.size)
            else:
                self._context.count_transfer(
                    kind, transfer.size, source.number if source is not None else 0, self.number
                )
            transfer.flow = Flow(links, transfer.size, lambda: self._on_arrived(transfer))

    def on_source_lost(self, transfer: Transfer, reason: str) -> None:
        """Fail a transfer whose source is gone."""
        if self.alive and transfer in self._transfers:
            source = transfer.source
            transfer.source = None
            self._transfer_finished(transfer)
            self.send(m.FetchFailed(transfer.name, source.address if source else "", reason, False))

    def _on_arrived(self, transfer: Transfer) -> None:
        self._transfer_finished(transfer)
        self._store_object(transfer.name, transfer.size)
        self.handle(self._events.ObjectArrived(transfer.name, transfer.size, True, ""))

    def _start_upload(self, name: str) -> None:
        if name not in self.objects:
            self.send(m.UploadFailed(name, "it is not there"))
            self._uploads.release()
            return
        context, transfer = self._context, Transfer(name, self.objects[name], None, self._uploads)
        self._transfers[transfer] = None
        self._clock.schedule_in(2 * context.cluster.latency_s, self._upload_to_manager, transfer)

    def _upload_to_manager(self, transfer: Transfer) -> None:
        if not transfer.over:
            self._context.count_transfer("to_manager", transfer.size, self.number, 0)
            transfer.flow = Flow(
                (self.up, self._context.manager_down), transfer.size, lambda: self._on_uploaded(transfer)
            )

    def _on_uploaded(self, transfer: Transfer) -> None:
        self._transfer_finished(transfer)
        self._manager.on_object_stored(transfer.name, transfer.size)
        self.send(m.Uploaded(transfer.name))


@cache
def _zero_bytes(size: int) -> bytes:
    return bytes(size)
