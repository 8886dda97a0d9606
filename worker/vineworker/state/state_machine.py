"""The worker's mind: messages and happenings in, instructions out. No I/O, no clock, no threads.

A task waits until all objects it reads are here, then queues for a slot of its library, or gets a process of its own. A task whose
inputs are made on this worker starts the moment they are, without asking the manager; and where calls are short, one that lacks nothing but
what another one makes is written behind that to the same slot, so that a chain runs there without a word. Vocabulary:

host
    a process that forks: one for each library, and one for each Python environment that single tasks run in
slot
    a process forked by a host: serves many calls of a library, or one single task
fed
    a call in flight behind the one that makes its last missing input, which the slot hands from one to the other
in flight
    calls written to a slot's socket and not answered yet; only the first of them can be running, and the others cannot be
    taken back: so nothing is put behind a call, or goes behind one, whose function is not known to be short
family
    calls that run one after another in the slot that holds what they read; see `vineworker.state.memory_results`
unproven
    all of a file has arrived, and it is still being compared with what it should be: peers and the manager, who compare for themselves,
    may have it, and whatever needs it here waits as if it were on its way
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Callable

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vineworker.slot_protocol import MOST_IN_FLIGHT, Reply
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.state.memory_results import InMemoryResults, MemoryGroup

SHORT_S = 0.001  # calls up to this long are written to a slot ahead of need
IN_FLIGHT_S = 0.002  # and as many as take so long together
MAX_IDLE_EXITS = 5  # slots of a library that die one after another without a call
MOST_WALLS = 10_000
MAX_OBJECTS_PER_MESSAGE = 1_000  # objects in one message
SMOOTHING = 0.2
UNEXPECTED_REPLY = "its process gave an answer that belongs to no call"


class Task:
    """A task this worker has been given."""

    __slots__ = ("missing", "run", "slot")

    def __init__(self, run: m.RunTask) -> None:
        self.run, self.missing = run, 0
        self.slot: Slot | None = None


class Slot:
    """A forked process."""

    __slots__ = (
        "all_short",
        "host",
        "id",
        "in_flight",
        "killed",
        "memory_group",
        "shared_objects",
        "verdict",
    )

    def __init__(self, number: int, host: ForkServer) -> None:
        self.id, self.host = number, host
        self.in_flight: deque[Task] = deque()
        self.all_short = True  # all that is in flight is expected to be over soon
        self.killed = False  # by this worker: nobody is to blame
        self.verdict: m.TaskDone | m.TaskFailed | None = None  # on the call for which it was killed
        self.shared_objects: set[str] = set()
        self.memory_group: MemoryGroup | None = None


class ForkServer:
    """A forking process: a library, or the warm Python of single tasks."""

    __slots__ = (
        "environment",
        "idle_exits",
        "library",
        "mean_duration_s",
        "missing",
        "name",
        "queue",
        "ready",
        "slots",
    )

    def __init__(self, name: str, library: m.Library | None, environment: str) -> None:
        self.name, self.library, self.environment = name, library, environment
        self.missing: set[str] = set()
        self.ready = False
        self.queue: deque[Task] = deque()
        self.slots: dict[int, Slot] = {}
        self.mean_duration_s: dict[
            str, float
        ] = {}  # function -> seconds of its calls, the longer ones of late
        self.idle_exits = 0

    def max_in_flight(self, function: str) -> int:
        """How many calls may be in flight to a slot with one of this function as the last of them."""
        wall = self.mean_duration_s.get(function, SHORT_S)
        if wall >= SHORT_S:
            return 1
        return MOST_IN_FLIGHT if wall * MOST_IN_FLIGHT <= IN_FLIGHT_S else int(IN_FLIGHT_S / wall)

    def depth_for(self, run: m.RunTask) -> int:
        """How many calls may be in flight to a slot with this one as the last of them: one that may be ended is alone, so that no other goes with it."""
        return 1 if "time_max" in run.options else self.max_in_flight(run.function)

    def record_duration(self, function: str, wall: float) -> None:
        """Take notice of how long a call took."""
        expected = self.mean_duration_s.get(function, 0.0)
        if len(self.mean_duration_s) > MOST_WALLS:
            self.mean_duration_s.clear()
        self.mean_duration_s[function] = max(wall, expected + SMOOTHING * (wall - expected))


def required_objects(run: m.RunTask) -> list[str]:
    """All objects a task reads."""
    names = [*run.shared, *run.inputs]
    if run.options:
        names += [mount[0] for mount in run.options.get("mounts", ())]
        if run.options.get("environment"):
            names.append(run.options["environment"])
    return names


class WorkerStateMachine:
    """What a worker knows and decides."""

    def __init__(self) -> None:
        self.objects: dict[str, int] = {}
        self.kept: dict[str, str] = {}  # of these, those that outlive the session, with their digests
        self._digests: dict[str, str] = {}  # of these, those that are known
        self._unverified: dict[str, e.ObjectArrived] = {}  # none of `objects`
        self._retains: dict[str, i.PersistObject] = {}  # of these, those that are to outlive the session
        self.tasks: dict[int, Task] = {}
        self.hosts: dict[str, ForkServer] = {}
        self.slots: dict[int, Slot] = {}
        self.processes: set[int] = set()
        self._waiting: dict[str, list[Task]] = {}  # object -> tasks that lack it
        self._producers_in_flight: dict[str, Task] = {}  # object -> the call in flight that makes it
        self._unpacks: dict[str, list[m.Unpack]] = {}  # archive -> what is to be made of it
        self._next_slot = 0
        self._restarts = 0
        self._families = InMemoryResults(self)
        self._out: list[Any] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.RunTask: self._run, m.PutObject: self._put, m.Fetch: self._fetch, m.Unpack: self._unpack, m.Upload: self._upload,
            m.RemoveObjects: self._unlink, m.PurgeObjects: self._purge, m.RetainObjects: self._retain, m.Library: self._library, m.RemoveLibrary: self._remove_library, m.Restart: self._restart, m.Cancel: self._cancel,
            m.StealRequest: self._recall, m.Shutdown: lambda said: self._out.append(i.LeaveManager(said.reason, said.final)),
            m.Ping: lambda _e: self._out.append(i.SendMessage(m.Pong())), m.Pong: lambda _e: None, m.Welcome: lambda _e: None,
            e.ObjectArrived: self._arrived, e.ObjectVerified: self._compared, e.PersistentObjectsFound: self._on_persistent_found,
            e.OrphansAdopted: self._on_orphans_adopted, e.ObjectPersisted: self._on_persisted, e.ForkServerReady: self._host_up, e.HostSlow: self._host_slow,
            e.ForkServerExited: self._host_down, e.CallsReturned: self._replied, e.SlotExited: self._slot_down, e.ProcessTaskFinished: self._on_process_task_finished,
            e.Overrun: self._overrun, e.Exhausted: self._exhausted,
        }  # fmt: skip

    def handle(self, events: Iterable[Any]) -> list[Any]:
        """Take events in order; give instructions in order."""
        handlers = self._handlers
        for event in events:
            handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tasks

    def orphaned_objects(self, session: str) -> e.OrphansAdopted:
        """What the next manager may want if this one has vanished: what is neither named after it nor kept anyway."""
        own = f"-{session}-"
        names = [name for name in self.objects if own not in name and name not in self.kept]
        return e.OrphansAdopted(
            names, [self.objects[name] for name in names], [self._digests.get(name, "") for name in names]
        )

    # ---- objects

    def _put(self, event: m.PutObject) -> None:
        self._out.append(i.StoreBytes(event.name, event.payload))
        self._available(event.name, len(event.payload))

    def _arrived(self, event: e.ObjectArrived) -> None:
        name, size, asked, digest, compared = event
        if not compared and name in self.objects:  # there is one that need not be compared: that stays
            asked, size, digest, compared = (
                name in self.kept,
                self.objects[name],
                self.kept.get(name, ""),
                True,
            )
        if asked:
            self._out.append(i.SendMessage(m.Cached(name, size, digest, compared)))
        if compared:
            self._available(name, size, digest)
        else:
            self._unverified[name] = event

    def _compared(self, event: e.ObjectVerified) -> None:
        arrival, failure = event
        name = arrival.name
        if (
            self._unverified.get(name) is not arrival
        ):  # it was forgotten, or one came that need not be compared
            return
        if failure is None:
            self._available(name, arrival.size, arrival.digest)
        else:
            del self._unverified[name]
            self._retains.pop(name, None)
            self._out.append(i.SendMessage(failure))

    def _available(self, name: str, size: int, digest: str = "") -> None:
        self.objects[name] = size
        self._families.forget([name])
        if digest:
            self._digests[name] = digest
        elif self._digests:
            self._digests.pop(name, None)
        if name in self._unverified:
            del self._unverified[name]
            self._out.append(i.SendMessage(m.Verified(name)))
            if name in self._retains:
                self._out.append(self._retains.pop(name))
        for unpack in self._unpacks.pop(name, ()):
            self._out.append(i.StartUnpack(unpack))
        for task in self._waiting.pop(name, ()):
            task.missing -= 1
            if not task.missing and task.slot is None and self.tasks.get(task.run.task) is task:
                self._enqueue(task, first=True)
        for host in [h for h in self.hosts.values() if name in h.missing]:
            host.missing.discard(name)
            self._start_if_complete(host)

    def _on_persistent_found(self, event: e.PersistentObjectsFound) -> None:
        new = [found for found in zip(*event) if found[0] not in self.objects]
        if new:
            self._out.append(i.SendMessage(m.PersistentObjects(*map(list, zip(*new)))))
        for found in new:
            self._available(*found)
        self.kept.update(zip(event.names, event.digests))

    def _on_orphans_adopted(self, event: e.OrphansAdopted) -> None:
        for place in range(0, len(event.names), MAX_OBJECTS_PER_MESSAGE):
            part = slice(place, place + MAX_OBJECTS_PER_MESSAGE)
            self._out.append(
                i.SendMessage(m.OrphanedObjects(event.names[part], event.sizes[part], event.digests[part]))
            )
        for found in zip(*event):
            self._available(*found)

    def _on_persisted(self, event: e.ObjectPersisted) -> None:
        if event.name in self.objects:
            self.kept[event.name] = event.digest

    def _retain(self, event: m.RetainObjects) -> None:
        for name, digest in zip(event.names, event.digests):
            if name in self.objects:
                self._out.append(i.PersistObject(name, event.forever, digest))
            elif name in self._unverified:
                self._retains[name] = i.PersistObject(name, event.forever, digest)

    def _fetch(self, event: m.Fetch) -> None:
        name = event.name
        if name in self.objects:  # found just now
            digest = self.kept.get(name) or self._digests.get(name, "")
            self._out.append(i.SendMessage(m.Cached(name, self.objects[name], digest)))
        elif name in self._unverified:  # it came just now
            _name, size, _asked, digest, _compared = self._unverified[name]
            self._out.append(i.SendMessage(m.Cached(name, size, digest, verified=False)))
        else:
            self._out.append(i.StartFetch(event))

    def _unpack(self, event: m.Unpack) -> None:
        if event.archive in self.objects:
            self._out.append(i.StartUnpack(event))
        else:
            self._unpacks.setdefault(event.archive, []).append(event)

    def _upload(self, event: m.Upload) -> None:
        if self._has(event.name):
            self._out.append(i.StartUpload(event.name, event.digest))
        else:
            self._out.append(i.SendMessage(m.UploadFailed(event.name, "this worker does not have it")))

    def _unlink(self, event: m.RemoveObjects) -> None:
        self._forget([name for name in event.names if name not in self.kept])

    def _purge(self, event: m.PurgeObjects) -> None:
        gone = self.objects.keys() & event.names
        for name in event.names:
            self.kept.pop(name, None)
        self._forget(event.names)
        self._out.append(i.ReleasePersisted(event.names))
        if gone:
            self._wait_again(gone)

    def _has(self, name: str) -> bool:
        """Whether there is an object, compared or not."""
        return name in self.objects or name in self._unverified

    def _wait_again(self, gone: set[str]) -> None:
        """Have tasks that have not begun wait for objects that have gone; they may come again."""
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
                self._waiting.setdefault(name, []).append(task)

    def _remove_from_queue(self, task: Task) -> bool:
        """Take a task out of its queue, if it is in one."""
        for host in self.hosts.values():
            if task in host.queue:
                host.queue.remove(task)
                return True
        return False

    def _forget(self, names: list[str]) -> None:
        self._families.forget(names)
        names = [name for name in names if self._has(name)]
        for name in names:
            self.objects.pop(name, None)
            self._digests.pop(name, None)
            self._unverified.pop(name, None)
            self._retains.pop(name, None)
        gone = set(names)
        for slot in self.slots.values():
            if slot.shared_objects and not slot.shared_objects.isdisjoint(gone):
                drop = slot.shared_objects & gone
                slot.shared_objects -= drop
                self._out.append(i.DropShared(slot.id, sorted(drop)))
        self._out.append(i.Delete(names))

    def waiting_for(self, name: str) -> list[Task]:
        """The tasks that lack an object."""
        return list(self._waiting.get(name, ()))

    def missing_inputs(self, task: Task) -> list[str]:
        """What a task reads and is not here."""
        return [name for name in required_objects(task.run) if name not in self.objects]

    def emit(self, instruction: Any) -> None:
        """Have something done."""
        self._out.append(instruction)

    # ---- tasks

    def _run(self, event: m.RunTask) -> None:
        if event.library and event.library not in self.hosts:  # it died while this was on its way
            self._no_library(event)
            return
        task = self.tasks[event.task] = Task(event)
        self._enqueue_or_wait(task, first=False)

    def _enqueue_or_wait(self, task: Task, *, first: bool) -> None:
        """Have a task wait for what is not here, or queue."""
        lacking = self.missing_inputs(task)
        task.missing = len(lacking)
        for name in lacking:
            self._waiting.setdefault(name, []).append(task)
        if not lacking:
            self._enqueue(task, first=first)
            return
        self._families.report_consumed(lacking)
        if len(lacking) == 1 and lacking[0] in self._producers_in_flight:
            self._chain_successor(self._producers_in_flight[lacking[0]])

    def _enqueue(self, task: Task, *, first: bool) -> None:
        run = task.run
        if run.library:
            host = self.hosts[run.library]
        elif run.options.get("command"):
            self.processes.add(run.task)
            self._out.append(i.StartProcess(run))
            return
        else:
            host = self._python_host(run.options.get("environment", ""))
        if first:  # it became ready by work done here: finish what was begun
            host.queue.appendleft(task)
        else:
            host.queue.append(task)
        if first or len(host.queue) == 1:  # else others wait already, because no slot has room
            self._dispatch(host)

    def queue_first(self, host: ForkServer, tasks: Iterable[Task]) -> None:
        """Have these go before all others, in this order."""
        for task in reversed(list(tasks)):
            self._enqueue(task, first=True)

    def _no_library(self, run: m.RunTask) -> None:
        info = {"reason": "the library is not on this worker"}
        self._out.append(i.SendMessage(m.TaskFailed(run.task, "library", info, b"")))

    def _python_host(self, environment: str) -> ForkServer:
        name = f"python{self._restarts or ''}:{environment}"
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = ForkServer(name, None, environment)
            self._out.append(i.StartForkServer(name, None, environment))
        return host

    def _dispatch(self, host: ForkServer) -> None:
        if not host.ready:
            return
        queue = host.queue
        if host.library is None:
            while queue:
                task = queue.popleft()
                if self.tasks.get(task.run.task) is task:
                    self.send_call(self._new_slot(host, task.run), task)
            return
        while queue and host.slots:
            if self.tasks.get(queue[0].run.task) is not queue[0]:
                queue.popleft()  # it was cancelled
                continue
            slot = min(host.slots.values(), key=_slot_load)
            depth = host.depth_for(queue[0].run)
            if slot.killed or slot.memory_group or len(slot.in_flight) >= (depth if slot.all_short else 1):
                return
            slot.all_short = depth > 1
            self.send_call(slot, queue.popleft())

    def send_call(self, slot: Slot, task: Task, fed: tuple[str, int] | None = None) -> None:
        """Have a slot run a call."""
        run = task.run
        new = [name for name in run.shared if name not in slot.shared_objects]
        slot.shared_objects.update(new)
        hold, held = self._families.hold_limits(slot, task), self._families.held_inputs(slot, task)
        task.slot = slot
        slot.in_flight.append(task)
        self._out.append(i.SendCall(slot.id, run, new, fed, hold, held))
        if slot.host.library is not None:
            self._producers_in_flight[run.result] = task
            self._chain_successor(task)

    def _chain_successor(self, maker: Task) -> None:
        """Write the first that waits for what a call in flight makes, and for nothing else, behind it to the same slot.

        Only the first: what else waits for it may run beside that one, in other slots.
        """
        waiting, slot = self._waiting.get(maker.run.result), maker.slot
        if not waiting or slot is None or slot.killed or not slot.all_short:
            return
        task = waiting[0]
        run, host = task.run, slot.host
        if (
            task.missing == 1
            and task.slot is None
            and run.library == host.name
            and maker.run.result in run.inputs
            and 1 < host.depth_for(run) > len(slot.in_flight)
            and self.tasks.get(maker.run.task) is maker
        ):
            self.send_call(slot, task, (maker.run.result, maker.run.task))

    def _new_slot(self, host: ForkServer, run: m.RunTask | None) -> Slot:
        self._next_slot += 1
        slot = self.slots[self._next_slot] = host.slots[self._next_slot] = Slot(self._next_slot, host)
        self._out.append(i.StartSlot(host.name, slot.id, run))
        return slot

    def _replied(self, event: e.CallsReturned) -> None:
        slot = self.slots.get(event.slot)
        if slot is None:
            return
        host = slot.host
        for reply in event.replies:
            if self._families.on_spilled(slot, reply):
                continue
            if not slot.in_flight or slot.in_flight[0].run.task != reply.task:
                self._kill_on_protocol_violation(slot)
                return
            task = slot.in_flight.popleft()
            host.idle_exits = 0
            if reply.info.pop("ends", None) and not slot.killed:
                # its process is not fit for another call, and ends: nobody is to blame
                slot.killed = True
                self._out.append(i.KillSlot(slot.id))
            if host.library is None:
                continue  # its outputs are collected first; then it comes back as `TaskOver`
            self._remove_in_flight(task)
            if reply.kind == "unfed":
                self._requeue(task)
                continue
            host.record_duration(task.run.function, reply.wall_s)
            slot.all_short = slot.all_short or not slot.in_flight
            if self._families.on_call_finished(slot, task, reply):
                continue
            if self.tasks.get(reply.task) is task:
                del self.tasks[reply.task]
                self._finish(task.run, reply)
            elif reply.kind == "done" and not _inline(reply) and not self._has(task.run.result):
                self._out += [
                    i.StoreResultFile(task.run.result, reply.task),
                    i.Delete([task.run.result]),
                ]  # its file has to go
        self._kill_if_cancelled(slot)
        if slot.in_flight:
            self._chain_successor(slot.in_flight[-1])
        self._families.advance(slot)
        self._dispatch(host)

    def _kill_on_protocol_violation(self, slot: Slot) -> None:
        """A slot answers what it was not asked: what it runs has written to its socket."""
        if not slot.killed:
            slot.killed = True
            self._out.append(i.KillSlot(slot.id))
            if slot.in_flight:
                task = slot.in_flight.popleft()
                self._remove_in_flight(task)
                self._crashed(task, e.SlotExited(slot.id, task.run.task, {"reason": UNEXPECTED_REPLY}))

    def _remove_in_flight(self, task: Task) -> None:
        """A call is not in flight any more."""
        task.slot = None
        if self._producers_in_flight.get(task.run.result) is task:
            del self._producers_in_flight[task.run.result]
        if task.missing:  # it was to be fed, and whatever it has got was not kept
            self.stop_waiting(task)

    def _requeue(self, task: Task) -> None:
        """A call that was in flight has not been run."""
        if self.tasks.get(task.run.task) is task:
            self._enqueue_or_wait(task, first=True)

    def _finish(self, run: m.RunTask, reply: Reply) -> None:
        if reply.kind == "done":
            self.store_result(run, reply)
            self.publish_result(run, reply)  # what waits for it starts before the manager is told
        self.report_finished(run, reply)

    def store_result(self, run: m.RunTask, reply: Reply) -> None:
        """Put a result where it is looked for."""
        if _is_stored(run, reply):
            inline = _inline(reply)
            self._out.append(
                i.StoreBytes(run.result, reply.payload)
                if inline
                else i.StoreResultFile(run.result, run.task, reply.info.get("digest", ""))
            )

    def publish_result(self, run: m.RunTask, reply: Reply) -> None:
        """A result that is where it is looked for is here for all."""
        if _is_stored(run, reply):
            self._available(run.result, reply.size, reply.info.get("digest", ""))

    def discard(self, run: m.RunTask) -> None:
        """Nobody needs a result that was stored."""
        if not self._has(run.result):
            self._out.append(i.Delete([run.result]))

    def report_finished(self, run: m.RunTask, reply: Reply) -> None:
        """Tell the manager how a call has ended."""
        if reply.kind == "done":
            sent = reply.payload if run.return_result else b""
            self._out.append(i.SendMessage(m.TaskDone(run.task, reply.size, reply.wall_s, reply.info, sent)))
        else:
            self._out.append(i.SendMessage(m.TaskFailed(run.task, reply.kind, reply.info, reply.payload)))

    def report_lost(self, names: list[str]) -> None:
        """Tell the manager that objects are not here."""
        self._out.append(i.SendMessage(m.ObjectsLost(names)))

    def _on_process_task_finished(self, event: e.ProcessTaskFinished) -> None:
        self.processes.discard(event.task)
        task = self.tasks.pop(event.task, None)
        if task is None:
            # it was cancelled; what it should have made may have been made by another one since
            self._out.append(i.Delete([name for name in event.outputs if not self._has(name)]))
            return
        self._out.append(i.SendMessage(event.message))
        info = event.message.info
        digests = {**info.get("digests", {}), task.run.result: info.get("digest", "")}
        for name, size in event.outputs.items():
            self._available(name, size, digests.get(name, ""))

    def _overrun(self, event: e.Overrun) -> None:
        """A call is to be ended with its slot, whose place another process takes; when nothing of it runs any more it has failed."""
        task = self.tasks.get(event.message.task)
        if task is not None and task.slot is not None and not task.slot.killed:
            task.slot.killed, task.slot.verdict = True, event.message
            self._out.append(i.KillSlot(task.slot.id))

    def _exhausted(self, event: e.Exhausted) -> None:
        """A slot goes, with what it has written. The call that it runs, if there is one, has failed."""
        slot = self.slots.get(event.slot)
        if slot is None or slot.killed:
            return
        slot.killed = True
        if slot.in_flight:
            slot.verdict = m.TaskFailed(slot.in_flight[0].run.task, "exhausted", event.info, b"")
        self._out.append(i.KillSlot(slot.id))

    def _tell_verdict(self, slot: Slot) -> None:
        """Tell of the call for which a slot was killed; if that was faster, it is over already."""
        if slot.verdict is not None and self.tasks.pop(slot.verdict.task, None) is not None:
            self._out.append(i.SendMessage(slot.verdict))

    def _cancel(self, event: m.Cancel) -> None:
        for number in event.tasks:
            task = self.tasks.pop(number, None)
            if task is None:
                continue
            if task.slot is not None:
                self.stop_waiting(task)
                self._kill_if_cancelled(task.slot)
            elif number in self.processes:
                self._out.append(i.KillProcess(number))
            else:
                self.stop_waiting(task)

    def stop_waiting(self, task: Task) -> None:
        """Have a task wait for nothing any more."""
        for name in required_objects(task.run) if task.missing else ():
            waiting = self._waiting.get(name, [])
            if task in waiting:
                waiting.remove(task)
                if not waiting:
                    del self._waiting[name]

    def _kill_if_cancelled(self, slot: Slot) -> None:
        """Kill a slot whose turn it is to run what was cancelled; what is behind that in its socket goes to another slot."""
        if slot.in_flight and not slot.killed:
            first = slot.in_flight[0]
            if self.tasks.get(first.run.task) is not first:
                slot.killed = True
                self._out.append(i.KillSlot(slot.id))

    def _recall(self, event: m.StealRequest) -> None:
        host = self.hosts.get(event.library)
        given: list[int] = []
        while host is not None and host.queue and len(given) < event.max_calls:
            task = host.queue.pop()
            if self.tasks.pop(task.run.task, None) is not None:
                given.append(task.run.task)
        self._out.append(i.SendMessage(m.StealResponse(event.library, given)))

    # ---- hosts and slots

    def _library(self, event: m.Library) -> None:
        host = self.hosts.get(event.name)
        if host is not None:
            host.library = event
            self._fill_slots(host)
            return
        host = self.hosts[event.name] = ForkServer(event.name, event, event.environment)
        mounts = [mount[0] for mount in event.options.get("mounts", ())]
        host.missing = {
            name for name in (event.setup, event.environment, *mounts) if name and name not in self.objects
        }
        self._start_if_complete(host)

    def _start_if_complete(self, host: ForkServer) -> None:
        if not host.missing and host.library is not None and not host.ready:
            self._out.append(i.StartForkServer(host.name, host.library, host.environment))

    def _fill_slots(self, host: ForkServer) -> None:
        if host.library is not None and host.ready:
            while len(host.slots) < host.library.slots:
                self._new_slot(host, None)
            self._dispatch(host)

    def _host_up(self, event: e.ForkServerReady) -> None:
        host = self.hosts.get(event.host)
        if host is None:
            return
        host.ready = True
        if host.library is not None:
            self._out.append(i.SendMessage(m.LibraryReady(host.name, event.wall_s, event.versions)))
            self._fill_slots(host)
        else:
            self._dispatch(host)
            self._end_if_old(host)

    def _host_slow(self, event: e.HostSlow) -> None:
        if event.host in self.hosts:
            self._out.append(i.SendMessage(m.LibrarySlow(event.host, event.where)))

    def _host_down(self, event: e.ForkServerExited) -> None:
        host = self.hosts.pop(event.host, None)
        if host is None:
            return
        self._kill_slots(host)
        lost = [task for task in self.tasks.values() if self._belongs(task, host)]
        for task in lost:
            del self.tasks[task.run.task]
            self.stop_waiting(task)
        if host.library is not None:
            self._out.append(
                i.SendMessage(m.LibraryFailed(host.name, event.reason, event.final, event.payload))
            )
        else:
            for task in lost:
                kind = "input" if event.final else "library" if task.slot is None else "crash"
                self._out.append(
                    i.SendMessage(m.TaskFailed(task.run.task, kind, {"reason": event.reason}, b""))
                )

    def _kill_slots(self, host: ForkServer) -> None:
        for slot in host.slots.values():
            del self.slots[slot.id]
            self._out.append(i.KillSlot(slot.id))
            self._families.on_slot_lost(slot)
            for task in slot.in_flight if host.library is not None else ():
                self._remove_in_flight(task)

    def _belongs(self, task: Task, host: ForkServer) -> bool:
        if host.library is not None:
            return task.run.library == host.name
        return task in host.queue or (task.slot is not None and task.slot.host is host)

    def _remove_library(self, event: m.RemoveLibrary) -> None:
        host = self.hosts.pop(event.name, None)
        if host is None:
            return
        self._kill_slots(host)
        for task in [task for task in self.tasks.values() if task.run.library == event.name]:
            del self.tasks[task.run.task]
            self.stop_waiting(task)
        self._out.append(i.StopForkServer(event.name))

    def _restart(self, _event: m.Restart) -> None:
        """Fork the next single tasks from new processes; the old ones end when what they have forked is over."""
        self._restarts += 1
        for host in [host for host in self.hosts.values() if host.library is None]:
            self._end_if_old(host)

    def _end_if_old(self, host: ForkServer) -> None:
        current = f"python{self._restarts or ''}:{host.environment}"
        if host.library is None and host.name != current and not host.slots and not host.queue:
            del self.hosts[host.name]
            self._out.append(i.StopForkServer(host.name))

    def _slot_down(self, event: e.SlotExited) -> None:
        slot = self.slots.pop(event.slot, None)
        if slot is None:
            return
        host = slot.host
        del host.slots[slot.id]
        self._tell_verdict(slot)
        if host.library is None:
            for task in slot.in_flight:
                self._crashed(task, event)
            self._end_if_old(host)
            return
        if event.running < 0 and not slot.killed:
            host.idle_exits += 1
        for task in slot.in_flight:
            self._remove_in_flight(task)
        anew = self._families.on_slot_lost(slot)
        for task in reversed(slot.in_flight):
            if task.run.task == event.running and not slot.killed:
                self._crashed(task, event)
            elif task.missing or self.missing_inputs(task):
                self._requeue(task)
            elif self.tasks.get(task.run.task) is task:
                host.queue.appendleft(task)
        for task in reversed(anew):
            self._requeue(task)
        if host.idle_exits > MAX_IDLE_EXITS:
            self._out.append(i.StopForkServer(host.name))
            self._host_down(
                e.ForkServerExited(host.name, f"its slots die: {event.info.get('reason')}", False, b"")
            )
        else:
            self._fill_slots(host)

    def _crashed(self, task: Task, event: e.SlotExited) -> None:
        if self.tasks.get(task.run.task) is task:
            del self.tasks[task.run.task]
            self._out.append(i.SendMessage(m.TaskFailed(task.run.task, "crash", event.info, b"")))


def _slot_load(slot: Slot) -> tuple[bool, bool, int]:
    return slot.killed or slot.memory_group is not None, not slot.all_short, len(slot.in_flight)


def _is_stored(run: m.RunTask, reply: Reply) -> bool:
    """Whether a result stays here: not if only the manager wants it, which it is sent to."""
    return not (run.return_result and reply.payload and run.options.get("once"))


def _inline(reply: Reply) -> bool:
    """Whether a result is in its reply and not in a file."""
    return reply.size <= INLINE_LIMIT
