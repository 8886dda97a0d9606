"""A worker whose state machine is real, and whose processes, slots, transfers and disk are simulated.

Messages wait in two queues. Fetches, uploads, slots and processes are jobs, which `job_outcomes` ends.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from vineworker.state import events as we
from vineworker.state import instructions as wi
from vineworker.state import state_machine as w
from vineworker.state.records import required_objects

from tests.vinecore.scheduler.property.random_graphs import LARGE
from vinecore.protocol import messages as m


class SimulatedWorker:
    """The real state machine of a worker, whose instructions are simulated."""

    def __init__(self, number: int, address: str, reachable: bool) -> None:
        self.number, self.address, self.reachable = number, address, reachable
        self.state = w.WorkerStateMachine()
        self.inbox: deque[m.Message] = deque()
        self.outbox: deque[m.Message] = deque()
        self.cache: dict[str, int] = {}
        # digests of cached objects; "altered" for those that were altered since
        self.contents: dict[str, str] = {}
        # unverified objects: only peers may fetch them
        self.offered: dict[str, tuple[we.ObjectArrived, int, str]] = {}
        self.output_count = 0
        self.jobs: list[tuple[str, Any]] = []
        # fork server, calls in the socket, and a single task
        self.slots: dict[int, tuple[str, deque[m.RunTask], m.RunTask | None]] = {}
        # of calls in sockets: the input that the slot has by then, and the call that makes it
        self.chained_inputs: dict[int, tuple[str, int]] = {}
        # by slot
        self.completed_calls: dict[int, set[int]] = {}
        self.killed_tasks: set[int] = set()
        # sizes and digests of objects that outlive the worker
        self.persistent: dict[str, tuple[int, str]] = {}
        # when it begins to drain, and when it ends in any case
        self.leaves_at, self.dies_at = math.inf, math.inf
        self.to_keep: set[str] = set()

    def deliver_messages(self, count: int) -> None:
        """Give some messages of the manager to the state machine, together."""
        self.handle_events([self.inbox.popleft() for _ in range(min(count, len(self.inbox)))])

    def handle_events(self, events: list[Any]) -> None:
        for instruction in self.state.handle(events):
            getattr(self, f"_{type(instruction).__name__}")(instruction)

    def _SendMessage(self, x: wi.SendMessage) -> None:
        self.outbox.append(x.message)

    def _StartForkServer(self, x: wi.StartForkServer) -> None:
        assert ("host", x.fork_server) not in self.jobs
        if x.library is not None:
            assert {x.library.setup, *filter(None, [x.environment])} <= self.cache.keys()
        self.jobs.append(("host", x.fork_server))

    def _StopForkServer(self, x: wi.StopForkServer) -> None:
        self.jobs = [job for job in self.jobs if job != ("host", x.fork_server)]
        for slot in [slot for slot, (host, _calls, _single) in self.slots.items() if host == x.fork_server]:
            self.remove_slot(slot)

    def remove_slot(self, slot: int) -> None:
        del self.slots[slot]
        self.jobs = [job for job in self.jobs if job not in (("slot", slot), ("kill", slot))]

    def _StartSlot(self, x: wi.StartSlot) -> None:
        self.slots[x.slot] = (x.fork_server, deque(), x.run)
        self.jobs.append(("slot", x.slot))

    def _KillSlot(self, x: wi.KillSlot) -> None:
        if x.slot in self.slots:
            self.jobs.append(("kill", x.slot))

    def _SendCall(self, x: wi.SendCall) -> None:
        calls = self.slots[x.slot][1]
        coming = set()
        self.chained_inputs.pop(x.run.task, None)
        if x.chained_input is not None:
            self.chained_inputs[x.run.task] = x.chained_input
            coming = {x.chained_input[0]}
            assert x.chained_input in [(run.result, run.task) for run in calls], (
                "the call that makes its chained input is not before it in the socket"
            )
        assert {*x.run.shared, *x.run.inputs} - self.cache.keys() == coming, (
            f"a slot is sent {x.run} without its inputs"
        )
        calls.append(x.run)

    def _DropSharedInSlot(self, x: wi.DropSharedInSlot) -> None:
        pass

    def _StartProcess(self, x: wi.StartProcess) -> None:
        assert set(required_objects(x.run)) <= self.cache.keys(), (x.run, self.cache, self.state.objects)
        self.jobs.append(("process", x.run))

    def _KillProcess(self, x: wi.KillProcess) -> None:
        self.killed_tasks.add(x.task)

    def _StartFetch(self, x: wi.StartFetch) -> None:
        self.jobs.append(("fetch", x.fetch))

    def _StartUnpack(self, x: wi.StartUnpack) -> None:
        self.jobs.append(("unpack", x.unpack))

    def _StartUpload(self, x: wi.StartUpload) -> None:
        self.jobs.append(("upload", (x.name, x.digest)))

    def store_object(self, name: str, size: int, content: str) -> None:
        """Store an object that tasks may use."""
        self.offered.pop(name, None)
        self.cache[name], self.contents[name] = size, content

    def find_object(self, name: str) -> tuple[int | None, str]:
        """Return the size and digest of the object that a peer would get."""
        if name in self.offered:
            return self.offered[name][1:]
        return self.cache.get(name), self.contents.get(name, "")

    def _StoreBytes(self, x: wi.StoreBytes) -> None:
        self.store_object(x.name, len(x.payload), "")

    def _StoreResultFile(self, x: wi.StoreResultFile) -> None:
        self.store_object(x.name, LARGE, f"{self.number}.{x.task}")

    def store_output(self, name: str, size: int) -> str:
        """Store an output of a task; return its digest."""
        self.output_count += 1
        self.store_object(name, size, f"{self.number}-{self.output_count}" if size == LARGE else "")
        return self.contents[name]

    def _PersistObject(self, x: wi.PersistObject) -> None:
        self.jobs.append(("keep", x))
        self.to_keep.add(x.name)

    def _ReleasePersisted(self, x: wi.ReleasePersisted) -> None:
        self.jobs = [job for job in self.jobs if not (job[0] == "keep" and job[1].name in x.names)]
        for name in x.names:
            self.persistent.pop(name, None)

    def _Delete(self, x: wi.Delete) -> None:
        for name in x.names:
            self.cache.pop(name, None)
            self.offered.pop(name, None)
